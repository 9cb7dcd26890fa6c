"""examples/translation/from-server.sh: a corpus, a server that answers most of the time, and a student."""

import json
import os
import subprocess

import pytest

from tests import warm_start
from tests.llm_server import serving, translation
from tests.support import ROOT

pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("tenacity", reason="tenacity is not installed")

SCRIPT = os.path.join(ROOT, "examples", "translation", "from-server.sh")
TINY = {
    "MAX_EPOCH": "1", "AVERAGE": "1", "WARMUP": "2", "ENCODER_LAYERS": "1", "DECODER_LAYERS": "1", "DIM": "16",
    "FFN": "16", "HEADS": "2", "VOCAB": "60", "FILTER": "--copied-source keep", "OMP_NUM_THREADS": "1",
    "TRAIN_FLAGS": "--cpu --num-workers 0", "MAX_TOKENS": "600",
}  # fmt: skip
WORDS = "a the dog cat house runs sleeps under over green tired seven people snow".split()


def sentence(number):
    return f"{WORDS[number % 14]} {WORDS[number // 14 % 14]} {WORDS[number % 11]} {WORDS[number % 13]} {number % 10}"


@pytest.mark.slow
@pytest.mark.parametrize("with_references", [False, True])
def test_the_recipe_ends_with_a_student_of_what_the_server_said(tmp_path, with_references):
    corpus, out = tmp_path / "corpus", tmp_path / "out folder"
    corpus.mkdir()
    for split, numbers in (("train", range(120)), ("valid", range(120, 130)), ("test", range(130, 140))):
        (corpus / f"{split}.en").write_text("".join(sentence(n) + "\n" for n in numbers))
        if split != "train" or with_references:
            (corpus / f"{split}.de").write_text("".join(translation(sentence(n)) + "\n" for n in numbers))
    path = warm_start.path_of_commands() + os.pathsep + os.environ["PATH"]
    with serving(lambda asked: (500, {}, {}) if asked.attempt == 1 and asked.source.endswith("3") else None) as server:
        for _ in range(1 + with_references):  # a second time there is nothing left to do
            with open(tmp_path / "log", "w+", encoding="utf-8") as log:
                done = subprocess.run(
                    ["bash", SCRIPT, server.url, "m", str(corpus), str(out)],
                    env={**os.environ, **TINY, "PATH": path}, stdout=log, stderr=log, timeout=600,
                )  # fmt: skip
                log.seek(0)
                said = log.read()
            assert done.returncode == 0, said
        assert sum(server.answered.values()) == len({sentence(n) for n in range(120)})
    train = out / "prepared" / "raw" / ("train1.de" if with_references else "train.de")
    assert train.read_text() == "".join(translation(sentence(n)) + "\n" for n in range(120))
    assert (out / "student" / "averaged.pt").is_file()
    assert json.loads((out / "evaluation" / "evaluation.json").read_text())["models"][0]["name"] == "student"
    assert not list(out.glob("*.tmp.*"))
