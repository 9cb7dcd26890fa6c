"""What students that label may be given: pairs, empty and long sentences, damaged dictionaries, other architectures."""

import shutil

import pytest
import torch

from kd_plugin.cli import main
from kd_plugin.errors import KDPluginError
from tests.labelled import CLASSES, TAGS, binarise, build, make_folders, make_pairs, pieces, save_checkpoint, sentences

PAIRS = [*CLASSES, "--separator-token", 2]
HALF = ["--kd-alpha", 0.5]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    make_folders(root)
    make_pairs(root / "pairs")
    save_checkpoint(root / "pairs.pt", build(root / "pairs", *PAIRS, "--kd-alpha", 1, seed=8), root / "pairs")
    save_checkpoint(root / "tags.pt", build(root / "tags", *TAGS, "--kd-alpha", 1, seed=9), root / "tags")
    return root


def test_a_fairseq_teacher_of_pairs_reads_what_the_student_reads(root):
    """A teacher that is the student teaches nothing, and both sides count."""
    built = build(root / "pairs", *PAIRS, "--kd-alpha", 0, "--teacher-path", root / "pairs.pt")
    built.model.load_state_dict(built.task.teacher.members[0].model.state_dict())
    batch = built.batch(range(8))
    tokens = batch["net_input"]["src_tokens"]
    assert bool(((tokens == 2).sum(dim=1) == 3).all())  # the ends of both sentences, and the separator
    assert abs(float(built.loss(batch)[0])) < 1e-6


@pytest.mark.parametrize("command", ["evaluate-classifier", "export"])
def test_models_of_pairs_are_neither_evaluated_nor_exported(root, tmp_path, capsys, command):
    (tmp_path / "text").write_text("\u2581the \u2581film\n")
    (tmp_path / "label").write_text("same\n")
    arguments = {
        "evaluate-classifier": ["--model", f"a={root / 'pairs.pt'}", "--test", f"t={tmp_path}/text,{tmp_path}/label"],
        "export": [str(root / "pairs.pt"), "--format", "onnx"],
    }[command]
    if command == "export":
        pytest.importorskip("onnxruntime")
    assert main([command, *arguments, "--output", str(tmp_path / "out")]) != 0
    said = capsys.readouterr().err
    assert f"{root / 'pairs.pt'}: reads pairs of sentences" in said and "Remedy: fairseq-validate" in said
    assert not (tmp_path / "out").exists()


def test_pairs_of_different_numbers_are_refused(root, tmp_path):
    folder = tmp_path / "uneven"
    shutil.copytree(root / "pairs", folder)
    for file in ("train.bin", "train.idx"):
        (folder / "input1" / file).write_bytes(
            (root / "pairs" / "input1" / file.replace("train", "valid")).read_bytes()
        )
    with pytest.raises(KDPluginError, match="input1/train: has 13 sentences, but input0 64.*Remedy"):
        build(folder, *PAIRS, "--kd-alpha", 1).task.load_dataset("train")


def rewritten(root, folder, lines):
    """The folder of classes with other sentences."""
    (folder / "label").parent.mkdir()
    (folder / "label").symlink_to(root / "classes" / "label")
    dictionary = (root / "classes" / "input0" / "dict.txt").read_text(encoding="utf-8")
    binarise(lines, folder / "input0", [line.split(" ")[0] for line in dictionary.splitlines()])
    return folder


def test_empty_sentences_are_counted_and_learned(root, tmp_path, caplog):
    lines = [" ".join(p for w in words for p in pieces(w)) for words, _ in sentences(64, 1)]
    lines[3] = lines[7] = ""
    folder = rewritten(root, tmp_path / "empty", {"train": lines})
    built = build(folder, *CLASSES, "--kd-alpha", 1)
    batch = built.batch([3, 7, 8])
    assert "input0/train: 2 of 64 sentences are empty" in caplog.text
    loss, size, _ = built.loss(batch)
    assert size == 3 and torch.isfinite(loss)


@pytest.mark.parametrize("kind", ["classes", "tags"])
def test_sentences_that_the_student_cuts_are_counted(root, caplog, kind):
    """As many as are longer than its limit, with the symbol before them and their end."""
    flags = [*(CLASSES if kind == "classes" else TAGS), "--kd-alpha", 1, "--max-positions", 6]
    long = sum(sum(len(pieces(word)) for word in words) + 2 > 6 for words, _ in sentences(64, 1))
    built = build(root / kind, *flags, "--shorten-method", "truncate")
    assert max(map(len, (built.batch([at])["net_input"]["src_tokens"][0] for at in range(64)))) == 6
    assert 0 < long < 64
    assert f"train: of {long} of 64 sentences the student reads only 6 symbols" in caplog.text
    caplog.clear()
    build(root / kind, *flags).task.load_dataset("train")
    assert "the student reads only" not in caplog.text


@pytest.mark.parametrize(
    "content", ["pos 3\nneg 3\npos 2\n", "pos 3\nneg 3\n<pad> 1\n", "<s> 1\npos 3\n", "pos\n"], ids=repr
)
def test_damaged_label_dictionaries_are_refused(root, tmp_path, content):
    folder = tmp_path / "damaged"
    shutil.copytree(root / "classes", folder)
    (folder / "label" / "dict.txt").write_text(content)
    with pytest.raises(KDPluginError, match="label/dict.txt: not a fairseq dictionary.*Remedy: each label once"):
        build(folder, *CLASSES, "--kd-alpha", 1)


def test_the_labelled_folder_is_no_folder_without_labels(root, tmp_path):
    (tmp_path / "same").symlink_to(root / "tags")
    built = build(root / "tags", *TAGS, *HALF, "--teacher-path", root / "tags.pt", "--kd-unlabelled", tmp_path / "same")
    with pytest.raises(KDPluginError, match="--kd-unlabelled .*same: is the folder of the labelled text.*Remedy"):
        built.task.load_dataset("train")


BART = ["--arch", "bart_base", "--encoder-layers", 1, "--decoder-layers", 1, "--encoder-embed-dim", 16]
BART += ["--decoder-embed-dim", 16, "--encoder-attention-heads", 2, "--decoder-attention-heads", 2]
BART += ["--encoder-ffn-embed-dim", 16, "--decoder-ffn-embed-dim", 16]


@pytest.mark.parametrize(
    "arch, message",
    [
        (["--arch", "transformer"], "--arch transformer: has no classification heads.*Remedy: --arch roberta"),
        (BART, "--arch bart_base: its decoder reads the sentence as well.*Remedy: --add-prev-output-tokens"),
    ],
)
def test_architectures_that_cannot_classify_are_refused_before_any_work(root, arch, message):
    with pytest.raises(KDPluginError, match=message):
        build_of(root, *arch)


def test_bart_classifies_if_its_decoder_reads_the_sentence(root):
    built = build_of(root, *BART, "--add-prev-output-tokens")
    loss, size, _ = built.loss(built.batch([0, 1]))
    assert size == 2 and torch.isfinite(loss)


def build_of(root, *flags):
    """As build, without the flags of a RoBERTa."""
    from tests import labelled

    kept, labelled.MODEL, none = labelled.MODEL, ["--max-positions", 24], labelled.NO_DROPOUT
    labelled.NO_DROPOUT = []
    try:
        return build(root / "classes", *CLASSES, "--kd-alpha", 1, *flags)
    finally:
        labelled.MODEL, labelled.NO_DROPOUT = kept, none
