"""The corpus of the quickstart: what its scores can only be trusted with."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("num2words", reason="the quickstart's corpus needs num2words (the extra `quickstart`)")
pytest.importorskip("babel", reason="the quickstart's corpus needs Babel (the extra `quickstart`)")

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "quickstart_corpus.py"


def load_script():
    spec = importlib.util.spec_from_file_location("quickstart_corpus", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


corpus = load_script()
PAIRS = corpus.generate(800, seed=1)


def test_same_seed_same_corpus():
    assert corpus.generate(200, seed=1) == PAIRS[:200]
    assert corpus.generate(200, seed=2) != PAIRS[:200]


@pytest.mark.parametrize("side", [0, 1])
def test_no_line_occurs_twice_on_either_side(side):
    lines = [pair[side] for pair in PAIRS]
    assert len(set(lines)) == len(lines) == 800


@pytest.mark.parametrize("side", [0, 1])
def test_lines_are_clean(side):
    for pair in PAIRS:
        line = pair[side]
        assert line and line == " ".join(line.split()) and line.isprintable()


def test_the_languages_differ():
    assert all(english != german for english, german in PAIRS)
    english_words = {word for english, _ in PAIRS for word in english.split()}
    german_words = {word for _, german in PAIRS for word in german.split()}
    assert {"and", "two", "for"} <= english_words - german_words
    assert {"und", "zwei", "für"} <= german_words - english_words


def test_every_kind_of_expression_is_there():
    english, german = ("\n".join(pair[side] for pair in PAIRS) for side in (0, 1))
    for example in (
        "thousand",
        "nineteen",
        "kilometers",
        "dollars",
        "euros",
        " PM",
        "January",
        "%",
        "ago",
        "the twenty-",
    ):
        assert example in english, example
    for example in (
        "tausend",
        "neunzehn",
        "Kilometer",
        "Dollar",
        "Euro",
        " Uhr ",
        "Januar",
        " %",
        "vor ",
        "zwanzigste",
    ):
        assert example in german, example


def test_the_length_of_lines_varies():
    lengths = [len(english.split()) for english, _ in PAIRS]
    assert min(lengths) <= 2 and max(lengths) >= 15


def test_misaligned_share_is_exact_and_moves_german_lines_only():
    slipped = corpus.misalign(PAIRS, 0.25, seed=1)
    assert sum(pair != original for pair, original in zip(slipped, PAIRS)) == 200
    assert [english for english, _ in slipped] == [english for english, _ in PAIRS]
    assert sorted(german for _, german in slipped) == sorted(german for _, german in PAIRS)
    assert corpus.misalign(PAIRS, 0.0, seed=1) == PAIRS


def test_only_training_lines_are_misaligned(tmp_path):
    read = {}
    for share in ("0", "0.5"):
        out = tmp_path / share
        arguments = ["--train", "40", "--valid", "10", "--test", "10", "--misaligned", share]
        subprocess.run([sys.executable, str(SCRIPT), str(out), *arguments], check=True)
        read[share] = {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()}
    assert {name for name in read["0"] if read["0"][name] != read["0.5"][name]} == {"train.de"}


def test_known_translations():
    import random
    from datetime import datetime

    assert corpus.spell(1999, to="year") == ("nineteen ninety-nine", "neunzehnhundertneunundneunzig")
    assert corpus.spell(21, to="ordinal") == ("twenty-first", "einundzwanzigste")
    early = datetime(2021, 3, 5, 1, 7)
    original, corpus.random_moment = corpus.random_moment, lambda rng: early
    try:
        assert tuple(map(corpus.plain_spaces, corpus.clock(random.Random(1)))) == ("1:07 AM", "01:07")
        english, german = corpus.spelled_clock(random.Random(1))
        assert english.startswith("one ") and english.endswith(" AM") and german.startswith("ein Uhr ")
    finally:
        corpus.random_moment = original


def test_command_line_writes_splits_of_the_sizes_asked_for(tmp_path):
    out = tmp_path / "out put"
    sizes = {"train": 120, "valid": 30, "test": 20}
    arguments = [argument for name, size in sizes.items() for argument in (f"--{name}", str(size))]
    subprocess.run([sys.executable, str(SCRIPT), str(out), *arguments], check=True)
    seen = {"en": set(), "de": set()}
    for name, size in sizes.items():
        for language, earlier in seen.items():
            lines = (out / f"{name}.{language}").read_text(encoding="utf-8").splitlines()
            assert len(lines) == size and all(lines)
            assert not earlier & set(lines), f"{name}.{language} shares a line with another split"
            earlier.update(lines)
