"""`kd-plugin init` and what follows: its loss before training, fairseq-generate, fine-tuning, export."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.support import (
    BATCHES,
    LOGS,
    OPTIMIZER,
    PLUGIN,
    ROOT,
    STOCK,
    assert_same_weights,
    load,
    logged,
    make_checkpoint,
    run,
)

SHARED = Path(ROOT).parent / "shared"
MULTI30K = SHARED / "teachers" / "multi30k.en-de"
CUTS = {
    "one decoder layer of two": ["--decoder-layers", 1],
    "half the width": ["--embed-dim", 16],
    "half the units": ["--ffn-dim", 16],
    "one head": ["--heads", 1],
    "all of it": ["--encoder-layers", 1, "--decoder-layers", 1, "--embed-dim", 16, "--ffn-dim", 16, "--heads", 1],
}


@pytest.fixture(scope="module")
def teacher(workspace, tmp_path_factory):
    """A trained teacher with two layers on each side."""
    folder = tmp_path_factory.mktemp("teacher")
    run(
        "fairseq-train", workspace.data, "--cpu", "--save-dir", folder, *STOCK, "--label-smoothing", 0.1,
        "--arch", "transformer", "--encoder-layers", 2, "--decoder-layers", 2, "--encoder-embed-dim", 32,
        "--decoder-embed-dim", 32, "--encoder-ffn-embed-dim", 32, "--decoder-ffn-embed-dim", 32,
        "--encoder-attention-heads", 2, "--decoder-attention-heads", 2, "--share-all-embeddings", "--dropout", 0.1,
        *OPTIMIZER, *BATCHES, *LOGS, "--max-update", 150, "--disable-validation", "--no-epoch-checkpoints",
        "--lr", "0.005",
    )  # fmt: skip
    return folder / "checkpoint_last.pt"


def losses(output):
    """Printed: the student's and that of random weights."""
    found = re.search(r"valid nll before training, bits per token: ([\d.]+); random weights: ([\d.]+)", output)
    return tuple(map(float, found.groups()))


def flags_of(output):
    """The flags of fairseq-train that it prints."""
    return output.rstrip().rpartition("\n")[2].split()


def trained(data, save_dir, flags, *extra):
    return run(
        "fairseq-train", data, "--cpu", "--save-dir", save_dir, "--label-smoothing", 0.1, *flags, *OPTIMIZER, *BATCHES,
        *LOGS, "--no-epoch-checkpoints", *extra,
    )  # fmt: skip


@pytest.mark.parametrize("name", CUTS)
def test_the_loss_before_training_is_below_that_of_random_weights(name, teacher, workspace, tmp_path):
    output = run(
        "kd-plugin", "init", teacher, "--output", tmp_path / "student.pt", "--data", workspace.data, *CUTS[name]
    ).stdout
    student, random = losses(output)
    assert student < random - 0.5
    with_weights = run(
        "kd-plugin", "init", teacher, "--output", tmp_path / "blind.pt", "--data", workspace.data, *CUTS[name],
        "--sample-sentences", 0,
    ).stdout  # fmt: skip
    assert losses(with_weights)[0] < random == losses(with_weights)[1]
    described = json.loads((tmp_path / "student.init.json").read_text(encoding="utf-8"))
    assert described["valid_nll"]["student"] == pytest.approx(student, abs=1e-3)
    assert described["sample_text"] == (name != "one decoder layer of two")


def test_the_printed_loss_is_that_of_fairseq_validate_and_random_weights_that_of_fairseq_train(
    teacher, workspace, tmp_path
):
    output = run(
        "kd-plugin", "init", teacher, "--output", tmp_path / "student.pt", "--data", workspace.data, *CUTS["all of it"]
    ).stdout
    student, random = losses(output)
    said = run("fairseq-validate", workspace.data, "--path", tmp_path / "student.pt", "--cpu", *BATCHES, *STOCK).stdout
    assert float(re.search(r"nll_loss ([\d.]+)", said).group(1)) == pytest.approx(student, abs=2e-3)
    # random weights: those that fairseq-train starts from, to three digits, with its seed
    path = tmp_path / "random.pt"
    make_checkpoint(path, workspace.data, "-s", "en", "-t", "de", *flags_of(output), seed=1)
    state = load(tmp_path / "student.pt")
    torch.save({**state, "model": load(path)["model"]}, str(path))
    said = run("fairseq-validate", workspace.data, "--path", path, "--cpu", *BATCHES, *STOCK).stdout
    assert float(re.search(r"nll_loss ([\d.]+)", said).group(1)) == pytest.approx(random, abs=2e-3)


def test_stock_fairseq_generate_reads_it_without_the_plugin(teacher, workspace, tmp_path):
    run("kd-plugin", "init", teacher, "--output", tmp_path / "whole.pt")
    run("kd-plugin", "init", teacher, "--output", tmp_path / "student.pt", "--data", workspace.data, "--embed-dim", 24)
    outputs = {}
    for name, path in (("teacher", teacher), ("whole", tmp_path / "whole.pt"), ("student", tmp_path / "student.pt")):
        # stock fairseq cannot read the teacher itself without the plugin on torch >= 2.6
        plugin = PLUGIN[:2] if name == "teacher" else []
        output = run(
            "fairseq-generate", workspace.data, *plugin, "--path", path, "--cpu", "--beam", 2, *BATCHES,
            "--skip-invalid-size-inputs-valid-test",
        ).stdout  # fmt: skip
        outputs[name] = re.findall(r"^H-\d+\t.*$", output, flags=re.MULTILINE)
        assert len(outputs[name]) == 41
    assert outputs["whole"] == outputs["teacher"]


@pytest.mark.parametrize("how", ["--finetune-from-model", "--restore-file"])
def test_training_starts_from_its_weights(how, teacher, workspace, tmp_path):
    output = run(
        "kd-plugin", "init", teacher, "--output", tmp_path / "student.pt", "--data", workspace.data, *CUTS["all of it"]
    ).stdout
    start = [how, tmp_path / "student.pt"]
    if how == "--restore-file":
        start += ["--reset-optimizer", "--reset-lr-scheduler", "--reset-dataloader", "--reset-meters"]
    objective = [*PLUGIN, "--teacher-path", teacher] if how == "--finetune-from-model" else STOCK
    trained(workspace.data, tmp_path / "out", flags_of(output), *objective, *start, "--max-update", 1, "--lr", "1e-30")
    assert_same_weights(tmp_path / "out" / "checkpoint_last.pt", tmp_path / "student.pt", 1e-7)
    said = trained(
        workspace.data, tmp_path / "more", flags_of(output), *objective, *start, "--max-update", 40, "--lr", "0.003"
    ).stdout
    assert logged(said, "valid")[-1]["valid_nll_loss"] < losses(output)[0] - 0.2


def test_it_can_be_exported_and_ctranslate2_translates_with_it(teacher, workspace, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    run("kd-plugin", "init", teacher, "--output", tmp_path / "student.pt", "--data", workspace.data, "--ffn-dim", 24)
    (tmp_path / "check.en").write_text("one red car and two blue cat\n" * 3, encoding="utf-8")
    out = tmp_path / "exported"
    run(
        "kd-plugin", "export", tmp_path / "student.pt", "--output", out, "--format", "ctranslate2", "--quantization",
        "float32", "--dict-dir", workspace.data, "--check", tmp_path / "check.en", "--check-threshold", 99,
    )  # fmt: skip
    model = ctranslate2.Translator(str(out))
    (answer,) = model.translate_batch(["one red car".split()], max_decoding_length=20)
    assert set(answer.hypotheses[0]) & {"auto", "eins", "rot"}


def test_data_with_another_dictionary_or_without_a_split_are_refused(teacher, workspace, tmp_path):
    short = tmp_path / "data"
    short.mkdir()
    for path in workspace.data.iterdir():
        (short / path.name).write_bytes(path.read_bytes())
    for language in ("en", "de"):
        lines = (short / f"dict.{language}.txt").read_text(encoding="utf-8").splitlines()
        (short / f"dict.{language}.txt").write_text("\n".join(lines[:10]) + "\n", encoding="utf-8")
    command = ["kd-plugin", "init", teacher, "--output", tmp_path / "x.pt", "--embed-dim", 16, "--data"]
    result = run(*command, short, check=False)
    assert result.returncode == 1 and "its dictionary has 14 symbols" in result.stdout
    result = run(*command, workspace.data, "--dict-dir", short, check=False)
    assert result.returncode == 1 and "was binarised with other dictionaries than --dict-dir" in result.stdout
    turned = tmp_path / "turned"
    run(
        "fairseq-preprocess", "-s", "de", "-t", "en", "--trainpref", workspace.folder / "train", "--validpref",
        workspace.folder / "valid", "--destdir", turned, "--srcdict", workspace.data / "dict.en.txt",
        "--joined-dictionary",
    )  # fmt: skip
    result = run(*command, turned, check=False)
    assert result.returncode == 1 and "this teacher translates en-de" in result.stdout
    shutil.rmtree(turned)
    for path in short.glob("valid*"):
        path.unlink()
    result = run(*command, short, check=False)
    assert result.returncode == 1 and "no binarised split 'valid'" in result.stdout
    assert sorted(tmp_path.iterdir()) == [short]


@pytest.mark.skipif(not MULTI30K.is_dir(), reason="the shared teacher is not there")
@pytest.mark.slow
@pytest.mark.parametrize(
    "cut",
    [
        ["--encoder-layers", 2, "--decoder-layers", 2],
        ["--embed-dim", 64, "--ffn-dim", 128],
        ["--encoder-layers", 2, "--decoder-layers", 2, "--embed-dim", 64, "--ffn-dim", 128, "--heads", 2],
    ],
    ids=["fewer layers", "narrower", "both"],
)
def test_the_multi30k_teachers_students_begin_below_random_weights(cut, tmp_path):
    import gzip

    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(MULTI30K / "spm.model"))
    for split, name, number in (("train", "train", 300), ("valid", "val", 200)):
        for language in ("en", "de"):
            with gzip.open(SHARED / "data" / "multi30k" / f"{name}.{language}.gz", "rt", encoding="utf-8") as file:
                lines = [" ".join(model.encode(line, out_type=str)) for line, _ in zip(file, range(number))]
            (tmp_path / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run(
        "fairseq-preprocess", "-s", "en", "-t", "de", "--trainpref", tmp_path / "train", "--validpref",
        tmp_path / "valid", "--destdir", tmp_path / "data", "--srcdict", MULTI30K / "dict.txt", "--joined-dictionary",
    )  # fmt: skip
    output = run(
        "kd-plugin", "init", MULTI30K / "teacher.pt", "--output", tmp_path / "student.pt", "--data", tmp_path / "data",
        *cut,
    ).stdout  # fmt: skip
    student, random = losses(output)
    assert student < random - 4
