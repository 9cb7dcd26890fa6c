"""Inner states: those of fairseq's own forward, with hooks and packed, at the positions that count."""

import pytest
import torch

from kd_plugin.models import packed
from kd_plugin.models.hooks import hooked
from kd_plugin.models.states import Inner, Recorder, StateKey, layers_of, shape_of
from tests.unit.inner_models import PRE_NORM, WIDER, batch, model_of
from tests.unit.test_criterion import PAD

LAYERS = range(3)
NORMS = pytest.mark.parametrize("flags", [[], PRE_NORM, ["--layernorm-embedding"]], ids=["post", "pre", "embedding"])


def rows_of(sample):
    return sample["target"].flatten().ne(PAD).nonzero().squeeze(1)


def recorded(model, sample, keys, pack):
    recorder = Recorder(model, sample["net_input"], Inner(frozenset(keys), rows_of(sample)))
    with torch.no_grad():
        if pack:
            packed.packed_features(model, sample["net_input"], rows_of(sample)[::2], recorder)
        else:
            with hooked(recorder, model):
                model(**sample["net_input"])
    return recorder.states()


@pytest.fixture(params=[False, True], ids=["hooks", "packed"])
def pack(request):
    if request.param and not packed.AVAILABLE:
        pytest.skip("torch < 2.2: no model is packed")
    return request.param


@NORMS
def test_outputs_are_fairseqs_own(flags, pack, dictionaries, tmp_path):
    """Of all layers, beside what fairseq returns with return_all_hiddens; the last after the final norm."""
    model, sample = model_of(tmp_path, dictionaries, *WIDER, *flags), batch()
    keys = [StateKey("output", side, layer) for side in ("encoder", "decoder") for layer in LAYERS]
    found = recorded(model, sample, keys, pack)
    net_input = sample["net_input"]
    with torch.no_grad():
        encoded = model.encoder(net_input["src_tokens"], net_input["src_lengths"], return_all_hiddens=True)
        features, extra = model.decoder(net_input["prev_output_tokens"], encoded, features_only=True)
    states = {"encoder": encoded["encoder_states"][1:], "decoder": extra["inner_states"][1:]}
    finals = {"encoder": encoded["encoder_out"][0].transpose(0, 1), "decoder": features}
    rows = {"encoder": net_input["src_tokens"].flatten().ne(PAD), "decoder": rows_of(sample)}
    for key in keys:
        whole = finals[key.side] if key.layer == 2 else states[key.side][key.layer].transpose(0, 1)
        expected = whole.reshape(-1, 24)[rows[key.side]]
        torch.testing.assert_close(found[key], expected, rtol=1e-5, atol=2e-6, msg=str(key))
    assert len(found[keys[0]]) == 9 and len(found[keys[-1]]) == 10


@NORMS
def test_attention_is_fairseqs_own(flags, pack, dictionaries, tmp_path):
    """Of every head, beside what fairseq's and PyTorch's attention return for the same inputs."""
    model, sample = model_of(tmp_path, dictionaries, *WIDER, *flags), batch()
    kinds = [("self", "encoder"), ("self", "decoder"), ("cross", "decoder")]
    keys = [StateKey(*kind, layer) for kind in kinds for layer in LAYERS]
    found = recorded(model, sample, keys, pack)
    expected = {}

    def watch(key, attention):
        real = attention.forward

        def forward(query, key=None, value=None, key_padding_mask=None, attn_mask=None, **rest):
            weights = [layer.weight for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
            expected[name] = torch.nn.functional.multi_head_attention_forward(
                query, key, value, attention.embed_dim, attention.num_heads, torch.empty(0),
                torch.cat([attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias]), None, None, False,
                0.0, attention.out_proj.weight, attention.out_proj.bias, training=False,
                key_padding_mask=key_padding_mask,
                need_weights=True, attn_mask=attn_mask, use_separate_proj_weight=True, q_proj_weight=weights[0],
                k_proj_weight=weights[1], v_proj_weight=weights[2], average_attn_weights=False,
            )[1]  # fmt: skip
            return real(query, key, value, key_padding_mask=key_padding_mask, attn_mask=attn_mask, **rest)

        name = key
        attention.forward = forward

    for key in keys:
        layer = getattr(model, key.side).layers[key.layer]
        watch(key, layer.encoder_attn if key.what == "cross" else layer.self_attn)
    with torch.no_grad():
        model(**sample["net_input"])
    rows = {"encoder": sample["net_input"]["src_tokens"].flatten().ne(PAD), "decoder": rows_of(sample)}
    for key in keys:
        wanted = expected[key].transpose(1, 2).flatten(0, 1)[rows[key.side]]
        torch.testing.assert_close(found[key], wanted, rtol=1e-5, atol=2e-6, msg=str(key))
        torch.testing.assert_close(found[key].sum(-1), torch.ones(found[key].shape[:2]))


@NORMS
def test_queries_keys_and_values_are_those_of_self_attention(flags, pack, dictionaries, tmp_path):
    model, sample = model_of(tmp_path, dictionaries, *WIDER, *flags), batch()
    keys = [StateKey(what, side, 1) for what in ("query", "key", "value") for side in ("encoder", "decoder")]
    found = recorded(model, sample, keys, pack)
    rows = {"encoder": sample["net_input"]["src_tokens"].flatten().ne(PAD), "decoder": rows_of(sample)}
    for side in ("encoder", "decoder"):
        attention = getattr(model, side).layers[1].self_attn
        inputs = []
        real = attention.forward
        attention.forward = lambda query, *rest, _inputs=inputs, _real=real, **more: (
            _inputs.append(query),
            _real(query, *rest, **more),
        )[1]
        with torch.no_grad():
            model(**sample["net_input"])
        for what, layer in zip(("query", "key", "value"), (attention.q_proj, attention.k_proj, attention.v_proj)):
            expected = layer(inputs[0]).transpose(0, 1).reshape(-1, 24)[rows[side]]
            torch.testing.assert_close(found[StateKey(what, side, 1)], expected, rtol=1e-5, atol=2e-6, msg=what)


def test_states_have_gradients_and_hooks_are_gone_afterwards(pack, dictionaries, tmp_path):
    model, sample = model_of(tmp_path, dictionaries).train(), batch()
    keys = [StateKey("output", "encoder", 0), StateKey("cross", "decoder", 0)]
    recorder = Recorder(model, sample["net_input"], Inner(frozenset(keys), rows_of(sample)))
    if pack:
        packed.packed_features(model, sample["net_input"], rows_of(sample), recorder)
    else:
        with pytest.raises(ZeroDivisionError), hooked(recorder, model):
            model(**sample["net_input"])
            raise ZeroDivisionError
    for key in keys:
        assert recorder.states()[key].requires_grad
    assert not packed.has_hooks(model)


def test_layerdrop_pairs_layers_by_identity(pack, dictionaries, tmp_path):
    """Layers that were left out are absent; the others are under their own number, whatever ran before them."""
    flags = ["--encoder-layerdrop", 0.5, "--decoder-layerdrop", 0.5]
    model, sample = model_of(tmp_path, dictionaries, *WIDER, *flags).train(), batch()
    keys = [StateKey("output", side, layer) for side in ("encoder", "decoder") for layer in LAYERS]
    ran, counts = [], set()
    for key in keys:
        fc1 = layers_of(model, key.side)[key.layer].fc1
        fc1.register_forward_hook(lambda *_, key=key: ran.append(key))
    for seed in range(8):
        ran.clear()
        torch.manual_seed(seed)
        found = recorded(model, sample, keys, pack)
        assert set(found) == set(ran)
        counts.add(len(ran))
    assert len(counts) > 1 and min(counts) < 6


def test_other_models_have_no_readable_layers(dictionaries, tmp_path):
    from tests.unit.test_teachers import ARCHITECTURES, LANGS, make_checkpoint

    for name in ("lstm", "fconv"):
        model = make_checkpoint(tmp_path / f"{name}.pt", dictionaries, *LANGS, *ARCHITECTURES[name])
        assert shape_of(model) is None
    assert shape_of(object()) is None
    assert shape_of(model_of(tmp_path, dictionaries)).attention_hidden == ""
    checkpointed = model_of(tmp_path, dictionaries, "--checkpoint-activations")
    assert "--checkpoint-activations" in shape_of(checkpointed).attention_hidden
