"""Teachers: whatever their architecture, frozen, in the student's vocabulary, mixed as probabilities."""

import argparse

import pytest
import torch

from kd_plugin.checkpoints.overrides import parse_overrides
from kd_plugin.checkpoints.read import read_checkpoint
from kd_plugin.compat import BETTER_TRANSFORMER_COPY
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.engine.memory import LinearHead
from kd_plugin.tasks.distillation_translation import (
    DistillationTranslationConfig,
    DistillationTranslationTask,
)
from kd_plugin.teachers.fairseq import load_teacher
from kd_plugin.teachers.online import OnlineTeacher
from kd_plugin.teachers.opening import parse_weights
from tests.support import MODEL, asked, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries

LANGS = ["-s", "en", "-t", "de"]
SIZES = MODEL[2:]
ARCHITECTURES = {
    "post_norm": ["--arch", "transformer", *SIZES],
    "pre_norm_gelu_deeper": [
        "--arch", "transformer", *SIZES, "--encoder-layers", 3, "--decoder-layers", 2, "--activation-fn", "gelu",
        "--encoder-normalize-before", "--decoder-normalize-before", "--share-decoder-input-output-embed",
    ],
    "shared_embeddings": ["--arch", "transformer", *SIZES, "--share-all-embeddings"],
    "iwslt": ["--arch", "transformer_iwslt_de_en", *SIZES],
    "student_architecture": ["--arch", "transformer_student_micro"],
    "fconv": [
        "--arch", "fconv", "--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--decoder-out-embed-dim", 8,
        "--encoder-layers", "[(16, 3)] * 2", "--decoder-layers", "[(16, 3)] * 2",
    ],
    "lstm": [
        "--arch", "lstm", "--encoder-embed-dim", 16, "--decoder-embed-dim", 16, "--encoder-hidden-size", 16,
        "--decoder-hidden-size", 16, "--decoder-out-embed-dim", 16,
    ],
    "adaptive_softmax": ["--arch", "transformer", *SIZES, "--adaptive-softmax-cutoff", "10,20"],
}  # fmt: skip


def student_task(folder):
    cfg = DistillationTranslationConfig(data=str(folder), source_lang="en", target_lang="de")
    return DistillationTranslationTask.setup_task(cfg)


def batch(pad=1, eos=2):
    """Two sentence pairs of different lengths, as fairseq collates them."""
    generator = torch.Generator().manual_seed(3)
    source = torch.randint(4, 32, (2, 6), generator=generator)
    target = torch.randint(4, 32, (2, 5), generator=generator)
    source[1, :2], target[1, 3:] = pad, pad
    target[1, 2] = target[0, 4] = eos
    source[:, -1] = eos
    previous = torch.cat([torch.full((2, 1), eos), target[:, :-1]], dim=1)
    previous[1, 3:] = pad
    net_input = {"src_tokens": source, "src_lengths": torch.tensor([6, 4]), "prev_output_tokens": previous}
    return {"id": torch.tensor([7, 9]), "net_input": net_input, "target": target, "ntokens": 8, "nsentences": 2}


ROWS = torch.arange(8)  # the positions of the flattened target that are no padding


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_architecture_is_read_from_its_own_checkpoint(name, dictionaries, tmp_path):
    path = tmp_path / "teacher.pt"
    model = make_checkpoint(path, dictionaries, *LANGS, *ARCHITECTURES[name])
    loaded = load_teacher(str(path), student_task(dictionaries))
    assert not any(module.training for module in loaded.model.modules())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    own = (weights for name, weights in model.named_parameters() if not BETTER_TRANSFORMER_COPY.search(name))
    assert loaded.parameters == sum(weights.numel() for weights in own)

    answer = asked(OnlineTeacher([loaded]), batch(), ROWS, torch.float32)
    with torch.no_grad():
        expected = model.get_normalized_probs(model(**batch()["net_input"]), log_probs=True)
    expected = expected.reshape(-1, 32)[ROWS]
    torch.testing.assert_close(torch.log_softmax(answer.logits, dim=-1), expected, rtol=1e-5, atol=1e-5)
    assert not answer.logits.requires_grad


@pytest.mark.parametrize("name", ["post_norm", "pre_norm_gelu_deeper", "shared_embeddings", "iwslt", "fconv"])
def test_answer_is_fairseqs_and_can_be_had_in_pieces(name, dictionaries, tmp_path):
    """Logits within 2e-6 of fairseq's own eval forward in fp32: attention without weights adds up in another order."""
    model = make_checkpoint(tmp_path / "teacher.pt", dictionaries, *LANGS, *ARCHITECTURES[name])
    loaded = load_teacher(str(tmp_path / "teacher.pt"), student_task(dictionaries))
    rows = torch.tensor([0, 2, 3, 5, 7])
    answer = asked(OnlineTeacher([loaded]), batch(), rows, torch.float32)
    with torch.no_grad():
        expected = model(**batch()["net_input"])[0].reshape(-1, 32)[rows]
    torch.testing.assert_close(answer.logits, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(answer.chunk(1, 4), answer.logits[1:4], rtol=0, atol=1e-6)


@pytest.mark.parametrize("packed", [True, False])
def test_teacher_computes_no_attention_weights_and_projects_only_the_rows_asked_for(
    packed, dictionaries, tmp_path, monkeypatch
):
    make_checkpoint(tmp_path / "teacher.pt", dictionaries, *LANGS, *ARCHITECTURES["post_norm"])
    loaded = load_teacher(str(tmp_path / "teacher.pt"), student_task(dictionaries))
    weights, projected = [], []
    for layer in [] if packed else loaded.model.decoder.layers:  # with hooks no model is packed
        layer.encoder_attn.register_forward_hook(lambda module, inputs, output: weights.append(output[1]))
    real = LinearHead.__call__
    monkeypatch.setattr(
        LinearHead, "__call__", lambda head, x, *rest: (projected.append(tuple(x.shape)), real(head, x, *rest))[1]
    )
    answer = asked(OnlineTeacher([loaded]), batch(), torch.tensor([0, 2, 3]), torch.float32)
    assert weights == ([] if packed else [None]) and projected == []
    assert answer.product[1].shape == (3, 16) and projected == []
    assert answer.logits.shape == (3, 32) and projected == [(3, 16)]


def test_old_checkpoints_with_args_are_read(dictionaries, tmp_path):
    path = tmp_path / "teacher.pt"
    make_checkpoint(path, dictionaries, *LANGS, *MODEL)
    state = torch.load(str(path), **({"weights_only": False} if "weights_only" in torch.load.__doc__ else {}))
    args = argparse.Namespace(**vars(state["cfg"]["model"]))
    torch.save({"args": args, "model": state["model"]}, str(path))
    assert load_teacher(str(path), student_task(dictionaries)).parameters > 0


def test_pretrained_embeddings_of_its_training_are_not_looked_for(dictionaries, tmp_path):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("1 16\nword1 " + " ".join(["0.5"] * 16) + "\n")
    path = tmp_path / "teacher.pt"
    model = make_checkpoint(path, dictionaries, *LANGS, *MODEL, "--encoder-embed-path", vectors)
    vectors.unlink()
    loaded = load_teacher(str(path), student_task(dictionaries)).model
    assert torch.equal(loaded.encoder.embed_tokens.weight, model.encoder.embed_tokens.weight)


@pytest.mark.parametrize("content", [b"word1 1\nword2\n", b"word1 1\nword1 1\n", b"\xff\xfe 1\n"])
def test_a_damaged_dictionary_is_named(content, dictionaries, tmp_path):
    make_checkpoint(tmp_path / "teacher.pt", dictionaries, *LANGS, *MODEL)
    (tmp_path / "dict.en.txt").write_bytes(content)
    with pytest.raises(KDPluginError, match=r"dict\.en\.txt: not a fairseq dictionary .* Remedy: "):
        load_teacher(str(tmp_path / "teacher.pt"), student_task(dictionaries))


def test_dictionary_in_another_order_gives_the_same_answers(dictionaries, tmp_path):
    """The same model with its vocabulary permuted, and its dictionary with it, must answer the same."""
    path = tmp_path / "teacher.pt"
    model = make_checkpoint(path, dictionaries, *LANGS, *ARCHITECTURES["post_norm"])
    expected = asked(OnlineTeacher([load_teacher(str(path), student_task(dictionaries))]), batch(), ROWS, torch.float32)

    order = torch.randperm(28, generator=torch.Generator().manual_seed(1))
    other = write_dictionaries(tmp_path / "other", [WORDS[i] for i in order])
    rows = torch.cat([torch.arange(4), order + 4])
    permuted = make_checkpoint(tmp_path / "other.pt", other, *LANGS, *ARCHITECTURES["post_norm"])
    weights = model.state_dict()
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        weights[name] = weights[name][rows]
    permuted.load_state_dict(weights)
    state = read_checkpoint(str(tmp_path / "other.pt"))
    torch.save({**state, "cfg": _plain(state["cfg"]), "model": permuted.state_dict()}, str(tmp_path / "other.pt"))

    loaded = load_teacher(str(tmp_path / "other.pt"), student_task(dictionaries))
    assert loaded.target_indices is not None
    answer = asked(OnlineTeacher([loaded]), batch(), ROWS, torch.float32)
    torch.testing.assert_close(answer.logits, expected.logits, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(answer.logits[:, rows], expected.logits, atol=1e-3)  # the order does matter


def _plain(cfg):
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)


def test_ensemble_is_the_mixture_of_probabilities(dictionaries, tmp_path):
    models = [
        make_checkpoint(tmp_path / f"{seed}.pt", dictionaries, *LANGS, *ARCHITECTURES["post_norm"], seed=seed)
        for seed in (0, 1)
    ]
    task = student_task(dictionaries)
    members = [load_teacher(str(tmp_path / f"{seed}.pt"), task) for seed in (0, 1)]
    with torch.no_grad():
        probs = [model(**batch()["net_input"])[0].reshape(-1, 32)[ROWS].double().softmax(-1) for model in models]
    for weights, shares in ((None, (0.5, 0.5)), ([3, 1], (0.75, 0.25)), ([1, 0], (1.0, 0.0))):
        answer = asked(OnlineTeacher(members, weights), batch(), ROWS, torch.float32).logits.double()
        torch.testing.assert_close(
            answer.softmax(-1), shares[0] * probs[0] + shares[1] * probs[1], rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]])
def test_weights_out_of_range_are_refused(weights, dictionaries, tmp_path):
    make_checkpoint(tmp_path / "teacher.pt", dictionaries, *LANGS, *ARCHITECTURES["post_norm"])
    member = load_teacher(str(tmp_path / "teacher.pt"), student_task(dictionaries))
    with pytest.raises(KDPluginError, match="--teacher-weights"):
        OnlineTeacher([member, member], weights)


def test_dtype_and_overrides_reach_the_teacher(dictionaries, tmp_path):
    make_checkpoint(tmp_path / "teacher.pt", dictionaries, *LANGS, *ARCHITECTURES["post_norm"])
    overrides = {"dropout": 0.77}
    member = load_teacher(str(tmp_path / "teacher.pt"), student_task(dictionaries), overrides=overrides)
    assert member.model.encoder.dropout_module.p == 0.77
    exact = asked(OnlineTeacher([member], dtype="auto"), batch(), ROWS, torch.bfloat16).logits  # auto on a CPU is fp32
    coarse = asked(OnlineTeacher([member], dtype="bf16"), batch(), ROWS, torch.float32).logits
    assert (exact.dtype, coarse.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(coarse.float(), exact, rtol=0.05, atol=0.05)


def test_longest_sentence_is_the_shorter_of_student_and_teacher(dictionaries, tmp_path):
    positions = ["--max-source-positions", 17, "--max-target-positions", 12]
    make_checkpoint(tmp_path / "teacher.pt", dictionaries, *LANGS, *ARCHITECTURES["post_norm"], *positions)
    task = student_task(dictionaries)
    task.teacher = OnlineTeacher([load_teacher(str(tmp_path / "teacher.pt"), task)])
    assert tuple(task.max_positions()) == (17, 12)


@pytest.mark.parametrize(
    "words,named",
    [
        (WORDS[:-1], r"teacher 31, student 32.*index 31.*nothing \(its end\).*'word27'"),
        (WORDS[:10] + ["other"] + WORDS[11:], r"index 14: teacher 'other', student 'word10'"),
        (WORDS[:-1] + ["word0 #fairseq:overwrite"], "dictionary"),
    ],
)
def test_dictionary_of_other_symbols_is_refused_with_the_first_difference(words, named, dictionaries, tmp_path):
    other = write_dictionaries(tmp_path / "other", words[:27] if "#" in words[-1] else words)
    make_checkpoint(tmp_path / "teacher.pt", other, *LANGS, *ARCHITECTURES["post_norm"])
    with pytest.raises(KDPluginError, match=named):
        load_teacher(str(tmp_path / "teacher.pt"), student_task(dictionaries))


def test_other_special_symbols_are_refused(dictionaries):
    from fairseq.data import Dictionary

    from kd_plugin.teachers.vocabulary import teacher_symbols

    usual, other = Dictionary(), Dictionary(pad="<blank>")
    with pytest.raises(KDPluginError, match="pad.*'<blank>'.*'<pad>'"):
        teacher_symbols(usual, other, "teacher.pt", "target")


def test_dictionary_beside_the_checkpoint_comes_before_the_training_data(dictionaries, tmp_path):
    """The training folder may have been written anew since; what lies beside the file belongs to it."""
    make_checkpoint(tmp_path / "alone" / "teacher.pt", dictionaries, *LANGS, *ARCHITECTURES["post_norm"])
    (tmp_path / "alone" / "dict.txt").write_text("".join(f"{word} 1\n" for word in reversed(WORDS)))
    loaded = load_teacher(str(tmp_path / "alone" / "teacher.pt"), student_task(dictionaries))
    assert loaded.target_indices.tolist() == [0, 1, 2, 3, *range(31, 3, -1)]


def test_teacher_without_any_dictionary_is_refused_unless_told_where(dictionaries, tmp_path):
    gone = write_dictionaries(tmp_path / "gone", WORDS)
    path = tmp_path / "alone" / "teacher.pt"
    make_checkpoint(path, gone, *LANGS, *ARCHITECTURES["post_norm"])
    for file in gone.iterdir():
        file.unlink()
    task = student_task(dictionaries)
    with pytest.raises(KDPluginError, match="no dictionary of this teacher"):
        load_teacher(str(path), task)
    assert load_teacher(str(path), task, overrides={"data": str(dictionaries)}).target_indices is None


def test_teacher_of_the_other_direction_is_refused(dictionaries, tmp_path):
    make_checkpoint(tmp_path / "teacher.pt", dictionaries, "-s", "de", "-t", "en", *ARCHITECTURES["post_norm"])
    with pytest.raises(KDPluginError, match="translates de-en, but the student en-de"):
        load_teacher(str(tmp_path / "teacher.pt"), student_task(dictionaries))


def test_flag_values_in_both_spellings():
    assert parse_weights("0.7,0.3") == parse_weights([0.7, 0.3]) == [0.7, 0.3]
    assert parse_weights(None) is None and parse_weights("2") == [2.0]
    with pytest.raises(KDPluginError, match="--teacher-weights"):
        parse_weights("a,b")
    assert parse_overrides('{"data": "x"}') == parse_overrides("{'data': 'x'}") == parse_overrides({"data": "x"})
    for wrong in ("[1]", "{", "__import__('os')"):
        with pytest.raises(KDPluginError, match="--teacher-overrides"):
            parse_overrides(wrong)
