"""A model computed without padding gives what fairseq's own forward gives, or is not computed so."""

from unittest import mock

import pytest
import torch
from fairseq import utils
from fairseq.models.transformer import TransformerModel
from fairseq.modules import FairseqDropout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd_plugin.models import packed
from kd_plugin.models.packed import can_pack, packed_features, packed_forward
from tests.support import MODEL, make_checkpoint

pytestmark = pytest.mark.skipif(not packed.AVAILABLE, reason="torch < 2.2: no teacher is packed")

PAD, EOS = 1, 2
LANGS = ["-s", "en", "-t", "de"]
PACKED = {
    "post-norm": [],
    "pre-norm, three and two layers": [
        "--encoder-normalize-before", "--decoder-normalize-before", "--encoder-layers", 3, "--decoder-layers", 2,
    ],
    "gelu, learned positions": [
        "--activation-fn", "gelu", "--encoder-learned-pos", "--decoder-learned-pos", "--layernorm-embedding",
    ],
    "no positions, unscaled": ["--no-token-positional-embeddings", "--no-scale-embedding"],
    "narrow source, narrow features": ["--encoder-embed-dim", 12, "--decoder-output-dim", 8],
    "shared embeddings": ["--share-all-embeddings"],
    "quantisation noise": ["--quant-noise-pq", 0.1, "--quant-noise-pq-block-size", 1],
    "layer drop": ["--encoder-layerdrop", 0.5, "--decoder-layerdrop", 0.5],
    "adaptive softmax": ["--adaptive-softmax-cutoff", "10,20"],
}  # fmt: skip
NOT_PACKED = {
    "attention to source and target at once": ["--cross-self-attention", "--no-cross-attention"],
    "no attention to the source": ["--no-cross-attention"],
    "checkpointed activations": ["--checkpoint-activations"],
}


def build(dictionaries, tmp_path, *arguments):
    """A model of float64 with every parameter, biases and layer norms too, drawn anew."""
    model = make_checkpoint(tmp_path / "teacher.pt", dictionaries, *LANGS, *MODEL, *arguments).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def rectangle(lengths, pad_left, first=None):
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(tokens, lengths):
        sentence = torch.randint(4, 32, (length,), generator=generator)
        sentence[-1 if first is None else 0] = EOS
        row[len(row) - length if pad_left else 0 :][:length] = sentence
    return tokens


def inputs(source_lengths, target_lengths, pad_left_source=True, pad_left_target=False):
    return {
        "src_tokens": rectangle(source_lengths, pad_left_source),
        "src_lengths": torch.tensor(source_lengths),
        "prev_output_tokens": rectangle(target_lengths, pad_left_target, first=EOS),
    }


def real_rows(net_input):
    return net_input["prev_output_tokens"].flatten().ne(PAD).nonzero().squeeze(1)


def fairseqs(model, net_input, rows, **how):
    # its attention to the source computes its softmax in fp32 whatever the model's dtype
    with mock.patch.object(utils, "softmax", lambda x, dim, onnx_trace=False: torch.softmax(x, dim)):
        return model(**net_input, **how)[0].flatten(0, 1)[rows]


@torch.no_grad()
def check(model, net_input, rows=None):
    rows = real_rows(net_input) if rows is None else rows
    expected = fairseqs(model, net_input, rows, features_only=True)
    features = packed_features(model, net_input, rows)
    # with older torch (2.4, say) fairseq itself makes NaN of targets that are padded on the left
    usable = expected.isfinite().all(dim=-1)
    assert usable.all() or (net_input["prev_output_tokens"][:, 0] == PAD).any()
    torch.testing.assert_close(features[usable], expected[usable], rtol=1e-12, atol=1e-12)
    assert features.isfinite().all() and usable.any()
    assert features.shape[0] == len(rows) and features.abs().sum() > 0
    return features


@pytest.mark.parametrize("pad_left_target", [False, True])
@pytest.mark.parametrize("pad_left_source", [False, True])
@pytest.mark.parametrize("name", PACKED)
def test_features_are_fairseqs(name, pad_left_source, pad_left_target, dictionaries, tmp_path):
    model = build(dictionaries, tmp_path, *PACKED[name])
    assert can_pack(model)
    check(model, inputs([6, 3, 1, 4], [2, 5, 7, 1], pad_left_source, pad_left_target))
    check(model, inputs([4, 4], [3, 3], pad_left_source, pad_left_target))


def test_any_lengths(dictionaries, tmp_path):
    model = build(dictionaries, tmp_path)
    lengths = st.integers(1, 9)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(lengths, lengths), min_size=1, max_size=5), st.booleans(), st.booleans())
    def holds(pairs, pad_left_source, pad_left_target):
        source, target = map(list, zip(*pairs))
        check(model, inputs(source, target, pad_left_source, pad_left_target))

    holds()


def test_rows_may_be_few_and_of_padding(dictionaries, tmp_path):
    """Some of the rows, in any order, and a target whose input is padding: fairseq answers for it as well."""
    model = build(dictionaries, tmp_path)
    for pad_left in (False, True):
        net_input = inputs([6, 3], [2, 5], pad_left_target=pad_left)
        check(model, net_input, real_rows(net_input)[[4, 0, 2]])
    check(model, inputs([6, 3], [2, 5]), torch.tensor([6, 3, 0]))


def test_embeddings_may_be_projected(dictionaries, tmp_path):
    model = build(dictionaries, tmp_path)
    model.decoder.project_in_dim = torch.nn.Linear(16, 16).double()  # of models made from a configuration alone
    check(model, inputs([6, 3], [2, 5]))


def test_padding_is_not_computed(dictionaries, tmp_path):
    model = build(dictionaries, tmp_path)
    seen = []
    for side in (model.encoder, model.decoder):
        side.layers[0].fc1.register_forward_hook(lambda module, x, y: seen.append(tuple(y.shape[:-1])))
    check(model, inputs([6, 3], [2, 5]))
    assert seen == [(6, 2), (5, 2), (9,), (7,)]  # fairseq's rectangles, then the tokens that there are


def test_sentences_do_not_see_each_other(dictionaries, tmp_path):
    model = build(dictionaries, tmp_path)
    together = inputs([6, 3], [2, 5])
    alone = {name: values[1:, -3:] if name == "src_tokens" else values[1:] for name, values in together.items()}
    torch.testing.assert_close(check(model, alone), check(model, together)[2:], rtol=1e-12, atol=1e-12)


TRAINED = {name: flags for name, flags in PACKED.items() if name != "quantisation noise"}


@pytest.mark.parametrize("features_only", [True, False])
@pytest.mark.parametrize("pad_left_source,pad_left_target", [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("name", TRAINED)
def test_training_has_fairseqs_gradients(
    name, pad_left_source, pad_left_target, features_only, dictionaries, tmp_path, monkeypatch
):
    """Of every parameter, with each dropout where fairseq has it: here it multiplies by a number of its own, and layers
    are dropped by the same draws."""
    dropouts = ["--dropout", 0.1, "--activation-dropout", 0.3]
    model = build(dictionaries, tmp_path, *TRAINED[name], *dropouts).train()
    monkeypatch.setattr(FairseqDropout, "forward", lambda self, x, inplace=False: x * (1 + self.p))
    net_input = inputs([6, 3, 1, 4], [2, 5, 7, 1], pad_left_source, pad_left_target)
    rows = real_rows(net_input)
    generator = torch.Generator().manual_seed(3)

    def gradients(compute):
        torch.manual_seed(4)
        assert can_pack(model)  # draws nothing
        output = compute()
        slope = torch.randn(output.shape, generator=generator.manual_seed(3), dtype=torch.float64)
        model.zero_grad()
        output.backward(slope)
        return output, {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}

    def packed_output():
        with packed_forward(model, rows):
            return model(**net_input, features_only=features_only)[0]

    output, got = gradients(packed_output)
    expected_output, expected = gradients(lambda: fairseqs(model, net_input, rows, features_only=features_only))
    if pad_left_target and not all(g.isfinite().all() for g in expected.values() if g is not None):
        pytest.skip("with this torch fairseq itself makes NaN of targets that are padded on the left")
    torch.testing.assert_close(output, expected_output, rtol=1e-12, atol=1e-12)
    assert "forward" not in vars(model) and sum(g is not None for g in got.values()) > 10
    for parameter, gradient in got.items():
        wanted = expected[parameter]
        assert (gradient is None) == (wanted is None), parameter
        if gradient is not None:
            torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-11, msg=parameter)


@pytest.mark.parametrize("training", [True, False])
def test_attention_weights_are_dropped_as_often_as_fairseq_says(training, dictionaries, tmp_path, monkeypatch):
    model = build(dictionaries, tmp_path, "--attention-dropout", 0.25, "--dropout", 0).train(training)
    net_input = inputs([6, 3], [2, 5])
    rates, attention = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*arguments, dropout_p, **keywords):
        rates.append(dropout_p)
        return attention(*arguments, dropout_p=dropout_p, **keywords)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    one, other = (packed_features(model, net_input, real_rows(net_input)) for _ in range(2))
    assert rates == [0.25 if training else 0.0] * 6  # two of three attentions
    assert torch.equal(one, other) != training


def test_dropout_under_training_has_fairseqs_mean(dictionaries, tmp_path):
    """Means over 1,000 draws of both, all dropouts at work: they lie within five standard errors of each other."""
    rates = ["--dropout", 0.2, "--attention-dropout", 0.2, "--activation-dropout", 0.2]
    model = build(dictionaries, tmp_path, *rates).train()
    # 25 equal copies of two sentences in a batch: what is dropped of one tells nothing of another
    net_input = {name: value.repeat(25, *[1] * (value.dim() - 1)) for name, value in inputs([6, 3], [2, 5]).items()}
    rows = real_rows(net_input)

    def draws(features):
        return torch.cat([features().view(25, 7, -1) for _ in range(40)])

    with torch.no_grad():
        ours = draws(lambda: packed_features(model, net_input, rows))
        theirs = draws(lambda: fairseqs(model, net_input, rows, features_only=True))
    for moment in (1, 2):
        one, other = ours**moment, theirs**moment
        error = (one.var(dim=0) / 1000 + other.var(dim=0) / 1000).sqrt()
        assert ((one.mean(dim=0) - other.mean(dim=0)).abs() < 5 * error).all()


def test_quantisation_noise_in_training_is_left_to_fairseq(dictionaries, tmp_path):
    """Its attention does not put that noise on the projections' weights: here they would be called, and get it."""
    model = build(dictionaries, tmp_path, *PACKED["quantisation noise"])
    assert can_pack(model) and not can_pack(model.train())


def test_forward_is_fairseqs_again_after_an_error(dictionaries, tmp_path):
    model = build(dictionaries, tmp_path)
    with pytest.raises(KeyError), packed_forward(model, torch.tensor([0])):
        model(src_tokens=torch.tensor([[4]]))
    assert "forward" not in vars(model)


def test_layers_that_a_draw_would_drop_are_looked_at_too(dictionaries, tmp_path):
    model = build(dictionaries, tmp_path, *PACKED["layer drop"]).train()
    model.decoder.layers.append(torch.nn.Identity())
    assert not any(can_pack(model) for _ in range(20))


def test_leading_padding_sees_nothing_that_comes_later(dictionaries, tmp_path):
    """A target whose input is padding, with no word before it: its features are its own affair."""
    model, rows = build(dictionaries, tmp_path), torch.tensor([0, 1, 2, 3, 4])
    net_input = inputs([6], [5])
    net_input["prev_output_tokens"][0, 0] = PAD
    before = packed_features(model, net_input, rows)
    net_input["prev_output_tokens"][0, 4] += 1
    after = packed_features(model, net_input, rows)
    assert torch.equal(before[:4], after[:4]) and not torch.equal(before[4], after[4])


@pytest.mark.parametrize("name", NOT_PACKED)
def test_other_ways_of_computing_are_left_to_fairseq(name, dictionaries, tmp_path):
    assert not can_pack(build(dictionaries, tmp_path, *NOT_PACKED[name]))


def test_changed_methods_are_left_to_fairseq(dictionaries, tmp_path):
    model = build(dictionaries, tmp_path)
    layer = model.encoder.layers[0]
    layer.forward = lambda x, **_: x
    assert not can_pack(model)
    del layer.forward
    layer.self_attn.bias_k = torch.nn.Parameter(torch.zeros(1, 1, 16))
    assert not can_pack(model)
    layer.self_attn.bias_k = None
    model.decoder.layers[0].c_attn = torch.nn.Parameter(torch.ones(2))
    assert not can_pack(model)
    model.decoder.layers[0].c_attn = None
    for watch in (layer.register_forward_hook, layer.register_full_backward_hook):
        watching = watch(lambda *_: None)
        assert not can_pack(model)
        watching.remove()
    adapted, attention = type("Adapted", (torch.nn.Linear,), {}), layer.self_attn
    projection, attention.v_proj = attention.v_proj, adapted(16, 16)
    assert not can_pack(model)
    attention.v_proj = projection
    dropout, layer.activation_dropout_module = layer.activation_dropout_module, torch.nn.Identity()
    assert not can_pack(model)
    layer.activation_dropout_module = dropout
    dropout.apply_during_inference = True
    assert not can_pack(model)
    dropout.apply_during_inference = False
    model.decoder.buffered_future_mask = lambda tensor: None
    assert not can_pack(model)
    del model.decoder.buffered_future_mask
    assert can_pack(model)

    class Other(TransformerModel):
        def forward(self, *arguments, **keywords):
            return super().forward(*arguments, **keywords)

    model.__class__ = Other
    assert not can_pack(model)
    assert not can_pack(torch.nn.Linear(2, 2))
