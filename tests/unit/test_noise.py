"""Noise for the text that a student reads: what a SPEC means, what each kind does, and that seeds decide everything."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_plugin.corpus.noise import KINDS, Noise, cased, kinds_of, parsed, rewritten, without_punctuation
from kd_plugin.errors import KDPluginError

TEXT = "<2de> The 'old' man's cat, 3.5 kg - cost 12500 in 2024!"


def test_a_spec_names_kinds_and_their_probabilities():
    noise = parsed(" upper:0.05, typo:0.1:0.02 ,punct:0")
    assert noise == Noise({"upper": 0.05, "typo": 0.1, "punct": 0.0}, 0.02)
    assert (
        noise.asked
        and str(noise) == "upper:0.05,typo:0.1:0.02"
        and parsed(str(noise)) == parsed("upper:.05,typo:.1:.02")
    )
    assert not parsed(None).asked and not parsed("").asked and not parsed("upper:0,typo:0").asked


@pytest.mark.parametrize(
    "spec, message",
    [
        ("uper:0.1", "no noise 'uper'. Remedy: upper"),
        ("colour:0.1", "no noise 'colour'. Remedy: one of upper, title"),
        ("upper", "'upper' is not one kind"),
        ("upper:0.1:0.1", "is not one kind"),
        ("upper:0.1,upper:0.2", "given once"),
        ("upper:1.1", "'1.1' is not a number from 0 to 1"),
        ("upper:-0.1", "is not a number from 0 to 1"),
        ("upper:nan", "is not a number from 0 to 1"),
        ("typo:0.1:2", "'2' is not a number from 0 to 1"),
        ("upper:x", "'x' is not a number"),
        ("upper:0.6,lower:0.6", "at most one case"),
    ],
)
def test_wrong_specs_are_refused_by_name(spec, message):
    with pytest.raises(KDPluginError, match="--kd-augment .*Remedy") as error:
        parsed(spec)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("upper", "<2de> THE 'OLD' MAN'S CAT, 3.5 KG - COST 12500 IN 2024!"),
        ("lower", "<2de> the 'old' man's cat, 3.5 kg - cost 12500 in 2024!"),
        ("title", "<2de> The 'Old' Man's Cat, 3.5 Kg - Cost 12500 In 2024!"),
        ("punct", "<2de> The old man's cat 3.5 kg cost 12500 in 2024"),
    ],
)
def test_each_kind_changes_the_text_and_leaves_tags(kind, expected):
    assert Noise({kind: 1.0}).added(TEXT, [kind], Random(1)) == expected


def test_other_scripts():
    assert cased("straße", "upper") == "STRASSE" and cased("»wort", "title") == "»Wort"
    assert without_punctuation("你好，世界。") == "你好世界" and without_punctuation("…") == ""
    assert Noise({}).added("。", ["punct"], Random(1)) == "。"  # nothing would be left


def test_long_numbers_are_written_otherwise_and_keep_their_digits():
    texts = ["12500", "1,234,567", "1.234.567", "12\u00a0500"]
    assert {rewritten("12500", Random(seed)) for seed in range(50)} == {"12 500", "12\u00a0500"}
    for seed in range(20):
        for number in texts:
            found = Noise({}).added(f"a {number}, b", ["numbers"], Random(seed))
            written = found[2 : found.index(", b")]
            assert written != number and list(filter(str.isdigit, written)) == list(filter(str.isdigit, number))
    for text in ("in 2024", "12,500 m", "3.142", "0.12345", "route 66 500 m", "A12345", "12345.67"):
        assert Noise({}).added(text, ["numbers"], Random(1)) == text


def distance(one, other):
    """The number of insertions, deletions and replacements."""
    row = list(range(len(other) + 1))
    for at, character in enumerate(one, 1):
        before, row[0] = row[0], at
        for to, same in enumerate(other, 1):
            before, row[to] = row[to], min(row[to] + 1, row[to - 1] + 1, before + (character != same))
    return row[-1]


WORDS = st.text(st.sampled_from("abcçéж1.,'- "), min_size=1, max_size=30)


@given(WORDS, st.integers(0, 2**32), st.floats(0.01, 1.0))
def test_typos_are_as_many_as_asked_for_and_use_the_sentence_s_letters(text, seed, share):
    letters = [character for character in text if character.isalpha()]
    number = max(1, round(share * len(letters))) if letters else 0
    found = Noise({}, share).added(text, ["typo"], Random(seed))
    assert distance(text, found) <= 2 * number  # swapping two letters is two edits
    assert set(found) <= set(text) and len(found) <= len(text) + number
    assert [c for c in found if not c.isalpha()] == [c for c in text if not c.isalpha()]


@given(WORDS, st.integers(0, 2**32), st.integers(1, 9))
def test_the_seed_decides_everything(text, seed, epoch):
    noise = Noise(dict.fromkeys(KINDS, 0.33), 0.2)
    masks = noise.drawn(40, seed, epoch)
    assert np.array_equal(masks[:7], noise.drawn(7, seed, epoch))  # however many sentences there are
    assert not np.array_equal(masks, noise.drawn(40, seed, epoch + 1))
    assert not np.array_equal(masks, noise.drawn(40, seed + 1, epoch))
    kinds = kinds_of(masks[0])
    one, other = (noise.added(text, kinds, Random(seed)) for _ in range(2))
    assert one == other and (one.strip() or not text.strip())
    assert all(sum(kind in ("upper", "title", "lower") for kind in kinds_of(mask)) <= 1 for mask in masks)


def test_kinds_occur_as_often_as_asked_for_and_apart_from_each_other():
    noise = Noise({"upper": 0.2, "lower": 0.5, "typo": 0.3})
    drawn = [kinds_of(mask) for mask in noise.drawn(4000, 1, 1)]
    shares = {kind: sum(kind in one for one in drawn) / len(drawn) for kind in KINDS}
    for kind in KINDS:
        assert shares[kind] == pytest.approx(noise.chances.get(kind, 0.0), abs=0.03)
    assert sum({"lower", "typo"} <= set(one) for one in drawn) / len(drawn) == pytest.approx(0.15, abs=0.03)
    assert all(kinds_of(mask) == ["punct"] for mask in Noise({"punct": 1.0}).drawn(50, 3, 2))
