"""examples/translation/published-format.sh, with small models, on a tiny corpus in the place of Multi30k."""

import gzip
import json
import os
import subprocess

import pytest

from tests import warm_start
from tests.integration.test_examples import EXAMPLES, sentences

pytest.importorskip("subword_nmt", reason="subword-nmt is not installed")
pytest.importorskip("sacremoses", reason="sacremoses is not installed")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The folder of the published text, and captions that need lower case and tokens."""
    folder = tmp_path_factory.mktemp("published text")
    for seed, (name, count) in enumerate([("train", 120), ("val", 9), ("test_2016_flickr", 8)]):
        for lang in ("en", "de"):
            with gzip.open(folder / f"{name}.lc.norm.tok.{lang}.gz", "wt", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in sentences(lang, count, seed)))
    for lang in ("en", "de"):
        said = [line[:-2].capitalize() + "." for line in sentences(lang, 30, 7)]
        (folder / f"captions.{lang}").write_text("\n".join(said) + "\n", encoding="utf-8")
    return folder


def run(text, out, *captions, **variables):
    small = {"TEACHERS": "1 2", "SEEDS": "1", "TEACHER_UPDATES": "10", "UPDATES": "10", "MAX_TOKENS": "600",
             "FILTER": "--max-length-ratio 100000 --min-letters 0 --max-repeats 100000 --copied-source keep",
             "OMP_NUM_THREADS": "1", "JOBS": "2"}  # fmt: skip
    env = {**os.environ, **small, "PATH": warm_start.path_of_commands() + os.pathsep + os.environ["PATH"], **variables}
    return subprocess.run(
        ["bash", str(EXAMPLES / "published-format.sh"), str(text), str(out), *map(str, captions)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.slow
def test_from_text_to_scores_and_again(text, tmp_path):
    out = tmp_path / "o ut"
    captions = text / "captions.en", text / "captions.de"
    done = run(text, out, *captions)
    assert done.returncode == 0, done.stdout
    scores = {}
    for split in ("valid", "test"):
        for size in ("large", "small"):
            found = json.loads((out / split / size / "evaluation.json").read_text(encoding="utf-8"))
            scores[split, size] = [model["name"] for model in found["models"]]
    assert scores["test", "large"] == ["large-seed1", "teacher1", "teacher2", "teachers"]
    assert scores["valid", "small"] == ["small-seed1"]
    first = (out / "captions.de").read_text(encoding="utf-8").split("\n")[0]
    assert first == first.lower() and first.endswith(" .")
    tagged = (out / "large-mixed" / "train2.en-de.en.bin").stat().st_size
    assert tagged > 0 and (out / "small-mixed" / "train1.en-de.de.idx").is_file()
    models = {path: path.stat().st_mtime_ns for path in out.glob("*/averaged.pt")}
    assert len(models) == 5
    again = run(text, out, *captions)
    assert again.returncode == 0 and "==" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/averaged.pt")} == models


def test_what_is_missing_is_said_first(text, tmp_path):
    for variables, captions, message in [
        ({}, (text / "captions.en", tmp_path / "absent"), "absent is missing"),
        ({"SIZES": "small"}, (), "large comes first"),
        ({"SIZES": "large huge"}, (), "huge is neither large nor small"),
        ({"START": str(tmp_path / "no.pt")}, (), "no.pt is missing"),
        ({"UPDATES": "9"}, (), "9 updates: a whole number of 10 or more"),
    ]:
        done = run(text, tmp_path / "out", *captions, **variables)
        assert done.returncode == 1 and message in done.stdout, done.stdout
        assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("my own")
    done = run(text, tmp_path / "mine")
    assert done.returncode == 1 and "is not empty" in done.stdout
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["text"]
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "settings").write_text("others\n")
    done = run(text, tmp_path / "begun")
    assert done.returncode == 1 and "was begun with other settings (others)" in done.stdout
    done = run(tmp_path, tmp_path / "out")
    assert done.returncode == 1 and "train.lc.norm.tok.en.gz is missing" in done.stdout
