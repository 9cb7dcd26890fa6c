"""examples/translation/from-folder.sh: a teacher of Hugging Face's, a corpus, and a student of it, by each way."""

import json
import os
import subprocess

import pytest

from tests import warm_start
from tests.support import ROOT, write_corpus
from tests.unit.huggingface_folders import make_folder

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
pytest.importorskip("google.protobuf", reason="protobuf is not installed")

SCRIPT = os.path.join(ROOT, "examples", "translation", "from-folder.sh")
TINY = {
    "MAX_EPOCH": "1", "AVERAGE": "1", "WARMUP": "2", "ENCODER_LAYERS": "1", "DECODER_LAYERS": "1", "DIM": "16",
    "FILTER": "--max-length-ratio 1000 --max-repeats 1000", "FFN": "16", "HEADS": "2", "OMP_NUM_THREADS": "1",
    "TEACHER_SRC": "eng_Latn", "TEACHER_TGT": "deu_Latn",
}  # fmt: skip
CPU = ["--cpu", "--num-workers", "0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("from a folder by script")
    (place / "corpus").mkdir()
    write_corpus(place / "corpus")
    for language in ("en", "de"):
        lines = (place / "corpus" / f"valid.{language}").read_text(encoding="utf-8").splitlines(keepends=True)
        (place / "corpus" / f"test.{language}").write_text("".join(lines[:12]), encoding="utf-8")
    make_folder("nllb", place / "nllb")
    return place


def script(place, *flags, status=0, **env):
    path = warm_start.path_of_commands() + os.pathsep + os.environ["PATH"]
    command = ["bash", SCRIPT, str(place / "nllb"), str(place / "corpus"), str(place / "out"), *CPU, *flags]
    with open(place / "log", "w+", encoding="utf-8") as log:
        environment = {**os.environ, **TINY, "PATH": path, **env}
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=600)
        log.seek(0)
        said = log.read()
    assert done.returncode == status, said
    return said


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cache", "sequence"])
def test_the_recipe_ends_with_teacher_and_student_in_one_table(place, way):
    was_there = (place / "out" / "vocabulary").is_dir()
    said = script(place, WAY=way)
    evaluation = json.loads((place / "out" / f"evaluation-{way}" / "evaluation.json").read_text())
    assert [(row["name"], row["engine"]) for row in evaluation["models"]] == [
        ("teacher", "ctranslate2"),
        (way, "fairseq"),
    ]
    assert (place / "out" / f"student-{way}" / "averaged.pt").is_file()
    assert ("sentencepiece.model" in said) != was_there  # the vocabulary is made once


def test_what_is_missing_is_named_before_any_work(place):
    assert "WAY=wrong: must be cache, online, sequence or plain" in script(place, status=1, WAY="wrong")
    assert "train.fr is missing or empty" in script(place, status=1, TGT="fr")
