"""scripts/distill_pipeline.sh from decoding to the report, and examples/translation/mix-data.sh, on a tiny corpus."""

import hashlib
import json
import re

import pytest
from fairseq.data import Dictionary, data_utils

from kd_plugin.checkpoints.read import read_checkpoint
from tests.integration.test_examples import EXAMPLES, REPO, lines, multi30k, prepared, run  # noqa: F401
from tests.support import MODEL


def begun(text):
    """What a run says that it has begun, in order."""
    return re.findall(r"^(.*) \(log: ", text, re.MULTILINE)


def text_of(data, split, lang):
    dictionary = Dictionary.load(str(data / f"dict.{lang}.txt"))
    dataset = data_utils.load_indexed_dataset(str(data / f"{split}.en-de.{lang}"), dictionary)
    return [dictionary.string(dataset[i], bpe_symbol="sentencepiece") for i in range(len(dataset))]


def test_mixed_data_has_each_part_as_a_training_split(prepared, tmp_path):  # noqa: F811
    pseudo = tmp_path / "pseudo text"
    few = {lang: lines(prepared / "raw" / f"train.{lang}")[:3] for lang in ("en", "de")}
    for lang, chosen in few.items():
        (tmp_path / f"pseudo text.{lang}").write_text("".join(line + "\n" for line in chosen), encoding="utf-8")
    out = tmp_path / "mixed"
    result = run("bash", EXAMPLES / "mix-data.sh", prepared, out, pseudo, "original", pseudo)
    assert result.returncode == 0, result.stderr
    data = out / "data-bin"
    assert text_of(data, "train", "de") == text_of(data, "train2", "de") == few["de"]
    assert text_of(data, "train1", "en") == lines(prepared / "raw" / "train.en")
    for split in ("valid", "test"):
        name = f"{split}.en-de.de.bin"
        assert (data / name).read_bytes() == (prepared / "data-bin" / name).read_bytes()
    assert (
        not list(data.glob("valid1*"))
        and (data / "dict.de.txt").read_text().split() == (prepared / "dict.txt").read_text().split()
    )

    missing = run("bash", EXAMPLES / "mix-data.sh", prepared, tmp_path / "other", tmp_path / "none")
    assert missing.returncode != 0 and "none.en is missing" in missing.stderr and not (tmp_path / "other").exists()
    again = run("bash", EXAMPLES / "mix-data.sh", prepared, out, "original")
    assert again.returncode != 0 and "other input" in again.stderr


BEFORE = ["--encoder-normalize-before", "--decoder-normalize-before"]
TEACHER = ["--max-epoch", 15, "--max-tokens", 1000, "--lr", 0.01, "--warmup-updates", 10, "--validate-interval", 15]
TEACHER += ["--num-workers", 0]  # a process that reads, for each epoch anew, takes longer than the epoch


def test_from_decoding_to_the_report_and_again(prepared, tmp_path):  # noqa: F811
    for needed in ("ctranslate2", "snakemake"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    mono = tmp_path / "mono.en"
    one, other = lines(prepared / "raw" / "train.en")[:2]
    mono.write_text(f"{one}\n\n{one}\n{other}\n", encoding="utf-8")
    out = tmp_path / "out"
    settings = {
        # so many updates that it ends its sentences: all that follows takes as long as they are
        "TEACHER_FLAGS": " ".join(map(str, [*MODEL, "--encoder-ffn-embed-dim", 48, *TEACHER])),
        "TEACHER_AVERAGE": "1", "MAX_UPDATE": "25", "AVERAGE": "2", "WARMUP": "2",
        "DIM": "16", "FFN": "16", "ENCODER_LAYERS": "1",
        "HEADS": "2", "DECODER_LAYERS": "1", "NBEST": "2", "BEAM": "2", "CACHE": "4", "MAX_TOKENS": "2000",
        "CHECK_THRESHOLD": "0", "BASELINE": "0", "MONO": str(mono), "LR": "0.01",
        # a teacher of few updates writes nothing but loops
        "FILTER": "--max-repeats 1000 --max-length-ratio 1000 --min-letters 0 --copied-source keep",
    }  # fmt: skip
    command = ["bash", REPO / "scripts" / "distill_pipeline.sh", prepared, out]
    first = run(*command, **settings)
    assert first.returncode == 0, first.stdout + first.stderr
    # neither takes the other's sizes, and each ends where it should
    of_teacher, of_student = (read_checkpoint(str(out / name / "averaged.pt")) for name in ("teacher", "student"))
    assert of_teacher["cfg"].model.encoder_ffn_embed_dim == 48
    assert of_student["cfg"].model.encoder_ffn_embed_dim == 16
    assert of_student["optimizer_history"][-1]["num_updates"] == 24
    assert "averaged.pt: mean of 2" in (out / "logs" / "student.log").read_text(encoding="utf-8")
    records = [line for path in sorted((out / "decoded").glob("*.jsonl")) for line in lines(path)]
    assert sum(len(json.loads(line)["ids"]) for line in records) == 200
    dropped = json.loads((out / "mono-filtered" / "manifest.json").read_text())
    assert dropped["input_lines"] == 4
    evaluation = json.loads((out / "evaluation" / "evaluation.json").read_text())
    names = [model["name"] for model in evaluation["models"]]
    assert names == ["teacher", "student", "student-float32", "student-int8"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in names) and "kd_loss" in page

    assert len(begun(first.stdout)) == 15
    again = run(*command, **{**settings, "WORKERS": "2", "KD": "0"})
    assert again.returncode == 0 and begun(again.stdout) == []
    # what no step would take is refused before any (what a change repeats: test_distill.py)
    third = run(*command, **{**settings, "ALPHA": "0.3", "CHECK_THRESHOLD": "101"})
    assert third.returncode != 0 and "--check-threshold" in third.stderr and begun(third.stdout) == []


def test_a_student_may_start_from_its_teachers_weights(prepared, tmp_path):  # noqa: F811
    for needed in ("ctranslate2", "snakemake"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    # only the steps around the student: what is decoded and kept does not matter here
    out = tmp_path / "out"
    layers = ["--encoder-layers", 2, "--decoder-layers", 2]
    settings = {
        "TEACHER_FLAGS": " ".join(map(str, [*MODEL, *layers, *TEACHER, *BEFORE])),
        "TEACHER_AVERAGE": "1", "MAX_UPDATE": "4", "AVERAGE": "1", "WARMUP": "2", "DIM": "8", "FFN": "16", "HEADS": "2",
        "ENCODER_LAYERS": "2", "DECODER_LAYERS": "1", "NBEST": "1", "BEAM": "1", "CACHE": "0", "MAX_TOKENS": "2000",
        "SELECT": "score", "CHECK_THRESHOLD": "0", "BASELINE": "1", "INIT": "teacher",
        "ROUNDS": "1", "ROUND_UPDATES": "3",
        "FILTER": "--max-repeats 1000 --max-length-ratio 1000 --min-letters 0 --copied-source keep",
    }  # fmt: skip
    command = ["bash", REPO / "scripts" / "distill_pipeline.sh", prepared, out]
    first = run(*command, **settings)
    assert first.returncode == 0, first.stdout + first.stderr
    described = json.loads((out / "init" / "student.init.json").read_text(encoding="utf-8"))
    assert described["layers"] == {"encoder": [0, 1], "decoder": [0]} and described["ranks"]["encoder"] == [16, 8]
    assert "loading pretrained model from init/student.pt" in (out / "logs" / "student.log").read_text(encoding="utf-8")
    assert "loading pretrained model" not in (out / "logs" / "baseline.log").read_text(encoding="utf-8")
    for name in ("student", "baseline"):  # as the teacher is, which distill.sh alone would not make
        model = read_checkpoint(str(out / name / "averaged.pt"))["cfg"].model
        assert model.encoder_normalize_before and model.encoder_embed_dim == 8 and model.decoder_layers == 1

    # the student goes on from its own translations, and is what is deployed
    log = (out / "logs" / "round1.log").read_text(encoding="utf-8")
    assert "loading pretrained model from student/averaged.pt" in log and "kd|alpha:0.0|" in log
    assert "sentences with answers from cache1" in log
    text = [(out / "rollouts1" / f"own.{lang}").read_text(encoding="utf-8").splitlines() for lang in ("en", "de")]
    assert len(text[0]) == len(text[1]) > 0
    assert "round1" in (out / "evaluation" / "evaluation.md").read_text(encoding="utf-8")
    exported = json.loads((out / "student-float32" / "kd_plugin.json").read_text(encoding="utf-8"))
    assert exported["checkpoint_sha256"] == hashlib.sha256((out / "round1" / "averaged.pt").read_bytes()).hexdigest()

    # other layers: their student and what follows, and nothing before (whether they are made: test_init.py)
    dry = tmp_path / "dry"
    dry.write_text('#!/bin/sh\nshift 2\nexec kd-plugin "$@" --dry-run\n')
    dry.chmod(0o755)
    other = {"INIT": "--encoder-layers 1, --decoder-layers 1,", "BASELINE": "0", "ROUNDS": "0", "PYTHON": str(dry)}
    second = run(*command, **{**settings, **other})
    assert second.returncode == 0, second.stdout + second.stderr
    rows = re.findall(r"^\| (\S+) \| (.*?) \| `(.*?)` \|", second.stdout, re.MULTILINE)
    assert [step for step, why, _ in rows if why != "no: done before"][:2] == ["init", "student"]
    (of_init,) = (called for step, _, called in rows if step == "init")
    assert "--encoder-layers 1, --decoder-layers 1," in of_init
