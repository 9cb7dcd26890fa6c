"""text_cnn, bilstm and bag_of_embeddings: plain PyTorch's numbers in float64, padding that nobody sees, their flags."""

import argparse
import itertools

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, build_model
from omegaconf import OmegaConf
from torch import nn

from kd_plugin.errors import KDPluginError
from kd_plugin.models.simple.text_cnn import widths_of

HEAD = "sentence_classification_head"
SIZES = {
    "text_cnn": {"encoder_embed_dim": 6, "filters": 5, "filter_widths": "1,2,3,4"},
    "bilstm": {"encoder_embed_dim": 6, "encoder_hidden_size": 7},
    "bag_of_embeddings": {"encoder_embed_dim": 6},
}
TAGGERS = ["text_cnn", "bilstm"]


@pytest.fixture(scope="module")
def dictionary():
    made = Dictionary()
    for number in range(20):
        made.add_symbol(f"w{number}")
    return made


def config(arch, **flags):
    """What fairseq-train makes of an architecture's name and flags."""
    args = argparse.Namespace(**flags)
    ARCH_CONFIG_REGISTRY[arch](args)
    return OmegaConf.merge(
        OmegaConf.structured(ARCH_MODEL_REGISTRY[arch].__dataclass),
        {**vars(args), "_name": arch, "max_positions": None},
    )


def make(dictionary, arch, tokens=False, labels=3, **flags):
    torch.manual_seed(1)
    task = argparse.Namespace(source_dictionary=dictionary)
    model = build_model(config(arch, **{**SIZES.get(arch, {}), **flags}), task)
    register = model.register_token_classification_head if tokens else model.register_classification_head
    register(HEAD, num_classes=labels)
    return model.double().eval()


def logits(model, tokens):
    return model(src_tokens=tokens, src_lengths=None, features_only=True, classification_head_name=HEAD)[0]


def sentences(*lengths):
    torch.manual_seed(2)
    return [torch.randint(4, 24, (length,)) for length in lengths]


def batch(rows, dictionary, more=0):
    length = max(map(len, rows)) + more
    return torch.stack([nn.functional.pad(row, (0, length - len(row)), value=dictionary.pad()) for row in rows])


@pytest.mark.parametrize(
    "arch, layers, tokens",
    [("bag_of_embeddings", None, False), *itertools.product(TAGGERS, (1, 3), (False, True))],
)
def test_padding_changes_nothing(dictionary, arch, layers, tokens):
    flags = {} if layers is None else {"encoder_layers": layers}
    model = make(dictionary, arch, tokens=tokens, **flags)
    # what an optimizer with weight decay or a careless file of embeddings may leave in the row of padding
    model.embed_tokens.weight.data[dictionary.pad()] = 5.0
    rows = sentences(9, 1, 4, 2)
    together = logits(model, batch(rows, dictionary, more=3))
    for row, found in zip(rows, together):
        alone = logits(model, row.unsqueeze(0))[0]
        torch.testing.assert_close(found[: len(row)] if tokens else found, alone, rtol=0, atol=1e-12)


def test_text_cnn_is_kims_network_in_plain_pytorch(dictionary):
    model = make(dictionary, "text_cnn")
    for row in sentences(6, 1):
        embedded = model.embed_tokens.weight[row]
        pooled = []
        for width, convolution in zip((1, 2, 3, 4), model.layers[0]):
            left, right = (width - 1) // 2, width // 2
            around = torch.cat([embedded.new_zeros(left, 6), embedded, embedded.new_zeros(right, 6)])
            maps = []
            for at in range(len(row)):
                window = around[at : at + width]  # width × 6
                value = (convolution.weight * window.t().unsqueeze(0)).sum(dim=(1, 2)) + convolution.bias
                maps.append(value.clamp(min=0))
            pooled.append(torch.stack(maps).max(dim=0).values)
        head = model.classification_heads[HEAD].out_proj
        expected = head.weight @ torch.cat(pooled) + head.bias
        torch.testing.assert_close(logits(model, row.unsqueeze(0))[0], expected, rtol=0, atol=1e-12)


def test_bilstm_is_two_recurrences_of_lstm_cells(dictionary):
    model = make(dictionary, "bilstm", tokens=True)
    lstm, head = model.lstm, model.classification_heads[HEAD].out_proj
    (row,) = sentences(7)
    embedded, directions = model.embed_tokens.weight[row], []
    for suffix, order in (("", range(7)), ("_reverse", range(6, -1, -1))):
        cell = nn.LSTMCell(6, 7).double()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, name).data.copy_(getattr(lstm, f"{name}_l0{suffix}"))
        state, states = None, {}
        for at in order:
            state = cell(embedded[at].unsqueeze(0), state)
            states[at] = state[0][0]
        directions.append(torch.stack([states[at] for at in range(7)]))
    expected = torch.cat(directions, dim=1) @ head.weight.t() + head.bias
    torch.testing.assert_close(logits(model, row.unsqueeze(0))[0], expected, rtol=0, atol=1e-12)


def test_bag_of_embeddings_is_a_mean_without_order(dictionary):
    model = make(dictionary, "bag_of_embeddings")
    (row,) = sentences(7)
    head = model.classification_heads[HEAD].out_proj
    expected = head.weight @ model.embed_tokens.weight[row].mean(dim=0) + head.bias
    torch.testing.assert_close(logits(model, row.unsqueeze(0))[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(logits(model, row.flip(0).unsqueeze(0))[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("arch", SIZES)
def test_a_sentence_of_padding_alone_gives_finite_logits_and_gradients(dictionary, arch):
    model = make(dictionary, arch).train()
    rows = batch([*sentences(3), torch.tensor([], dtype=torch.long)], dictionary)
    found = logits(model, rows)
    found.square().sum().backward()
    assert torch.isfinite(found).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("arch", SIZES)
def test_dropout_is_applied_in_training_and_every_parameter_learns(dictionary, arch):
    model = make(dictionary, arch).train()
    rows = batch(sentences(8, 5, 6), dictionary)
    torch.manual_seed(3)
    first, second = logits(model, rows), logits(model, rows)
    assert not torch.equal(first, second)
    first.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_only_what_sees_neighbours_tags(dictionary):
    for arch in TAGGERS:
        assert logits(make(dictionary, arch, tokens=True, labels=5), sentences(4)[0].unsqueeze(0)).shape == (1, 4, 5)
    with pytest.raises(KDPluginError, match="bag_of_embeddings.*cannot tag.*Remedy: text_cnn or bilstm"):
        make(dictionary, "bag_of_embeddings", tokens=True)


@pytest.mark.parametrize("arch", ["text_cnn_tiny", "bilstm_tiny", "bag_of_embeddings_tiny"])
def test_small_architectures_are_small_unless_flags_say_otherwise(arch):
    assert config(arch).encoder_embed_dim == 64
    assert config(arch, encoder_embed_dim=96).encoder_embed_dim == 96
    assert config(arch[: -len("_tiny")]).encoder_embed_dim == 300


@pytest.mark.parametrize("flag", ["", "3,x", "0", "3,3", "2,-1"])
def test_widths_that_are_none_are_refused(flag):
    with pytest.raises(KDPluginError, match="--filter-widths.*Remedy"):
        widths_of(flag)


def test_pretrained_embeddings_are_those_of_the_file(dictionary, tmp_path):
    path = tmp_path / "embeddings.txt"
    path.write_text("3 6\nw3 1 2 3 4 5 6\nother 9 9 9 9 9 9\nw0 0.5 0 0 0 0 -1\n")
    model = make(dictionary, "bag_of_embeddings", encoder_embed_path=str(path), encoder_freeze_embed=True)
    assert model.embed_tokens.weight[dictionary.index("w3")].tolist() == [1, 2, 3, 4, 5, 6]
    assert model.embed_tokens.weight[dictionary.index("w0")].tolist() == [0.5, 0, 0, 0, 0, -1]
    assert model.embed_tokens.weight[dictionary.index("w1")].abs().sum() > 0
    assert not model.embed_tokens.weight.requires_grad


@pytest.mark.parametrize(
    "content, message",
    [
        ("1 6\nother 1 2 3 4 5 6\n", "none of the dictionary's 24 symbols"),
        ("1 3\nw3 1 2 3\n", "have 3 numbers, but --encoder-embed-dim is 6"),
        ("1 6\nw3 1 2 x 4 5 6\n", "cannot be read"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(dictionary, tmp_path, content, message):
    path = tmp_path / "embeddings.txt"
    path.write_text(content)
    with pytest.raises(KDPluginError, match=f"--encoder-embed-path {path}: .*{message}.*Remedy"):
        make(dictionary, "text_cnn", encoder_embed_path=str(path))


def test_a_checkpoint_s_heads_are_taken_by_name_and_size(dictionary):
    model = make(dictionary, "text_cnn")
    state = {name: torch.full_like(value, 0.25) for name, value in model.state_dict().items()}
    state["classification_heads.else.out_proj.weight"] = torch.ones(2, 20)
    model.load_state_dict(dict(state))
    assert (model.classification_heads[HEAD].out_proj.weight == 0.25).all()
    assert "else" not in model.classification_heads
    more = make(dictionary, "text_cnn", labels=4)
    before = more.classification_heads[HEAD].out_proj.weight.clone()
    more.load_state_dict(dict(state))  # its head has another size: the model keeps its own
    assert torch.equal(more.classification_heads[HEAD].out_proj.weight, before)
    assert (more.embed_tokens.weight == 0.25).all()
