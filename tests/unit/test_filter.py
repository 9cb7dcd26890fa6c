"""`kd-plugin filter`: what each rule drops, that all of it is counted, and that nothing else goes."""

import argparse
import math
import sys
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from kd_plugin.cli import filter as cli_filter
from kd_plugin.cli import main
from kd_plugin.corpus.hypotheses import Hypothesis, Record
from kd_plugin.curate import filter as filtering
from kd_plugin.curate.rules import RULES, Rule, has_loop
from kd_plugin.runners import local
from tests.unit.translation_folders import counts_of, record, records_of, refusal, run_verb, texts_by_line, write_folder


def verdict(source, hypothesis, *flags, languages=("en", "de")):
    """The first rule that drops the pair."""
    parser = argparse.ArgumentParser()
    cli_filter.add_arguments(parser)
    args = parser.parse_args(["in", "--output", "out", *map(str, flags)])
    filtering.check(args)
    return filtering.Judge(args, languages)((source, [hypothesis]))[0]


WORDS = "one two three four five six seven eight nine ten"
CASES = [
    ("A dog runs.", "Ein Hund läuft.", [], None),
    ("A dog.", "Ein \ufffdund.", [], "broken_characters"),
    ("A dog.", "Ein Hund\x07.", [], "broken_characters"),
    ("A dog.", "Ein\x85Hund.", [], "broken_characters"),
    ("A dog.", "Ein\tHund.\u2028\u200d", [], None),
    ("A dog.", "Ein \u2047 läuft.", [], "unknown_symbols"),
    ("\u2047 runs.", "Er läuft.", [], "unknown_symbols"),
    ("A dog runs.", "Ein Hund \u2047", [], "unknown_symbols"),
    ("A dog runs.", "Ein Hund<unk>läuft", [], "unknown_symbols"),
    ("A <<unk>> runs.", "Ein Hund läuft.", [], "unknown_symbols"),
    ("A dog runs.", "Ein &lt;unk&gt; läuft", [], "unknown_symbols"),
    ("A dog runs.", "Ein [UNK] läuft", [], "unknown_symbols"),
    ("A dog runs.", "Ein UNK läuft", [], "unknown_symbols"),
    ("A dog runs.", "Ein \u2047 läuft.", ["--unknown-symbols", "keep"], None),
    ("The UNK has students", "Die UNK hat Studenten", [], None),
    ("The UNK has students", "Die Universität hat Studenten", [], None),
    ("A junk dog: <unknown>", "Ein UNKRAUT, unk (UNK)", [], None),
    ("What\u2047 A dog", "Was\u2047 Ein Hund", [], None),
    ("“What\u2047” A dog!\u2047", "„Was\u2047“ Ein Hund!\u2047", [], None),
    ("The {unk} and < UNK >", "Das {UNK} und <unk >", [], None),
    ("The {unk} runs", "Das ⟨unk⟩ läuft", [], "unknown_symbols"),
    ("A „\u2047“ runs.", "Er läuft.", [], "unknown_symbols"),
    ("A dog runs.", "Ein Hund \u2047. läuft", [], "unknown_symbols"),
    ("A dog runs.", "„\u2047 Hund läuft“", [], "unknown_symbols"),
    ("A dog runs.", "Ein Hund \u2047\u2047 läuft", [], "unknown_symbols"),
    ("A dog runs.", "Ein Hund \u2581\u2047 läuft.", [], "unknown_symbols"),
    ("A dog runs.", "\u2581Ein\u2581\u2047\u2581läuft", [], "unknown_symbols"),
    ("A dog runs.", "Ein (\u2047), er läuft", [], "unknown_symbols"),
    ("A dog runs.", "Ein < unk > läuft", [], "unknown_symbols"),
    ("A dog runs.", "Ein {unk} läuft", [], "unknown_symbols"),
    ("A dog runs.", "Ein ⟨unk⟩ läuft", [], "unknown_symbols"),
    ("A dog runs.", "Ein &lt; UNK &gt; läuft", [], "unknown_symbols"),
    ("A dog runs.", "Ein [ unk ] läuft", [], "unknown_symbols"),
    ("A dog.", "", [], "length"),
    ("A dog.", " \u3000 ", [], "length"),
    ("", "Ein Hund.", [], "length"),
    ("A dog.", "Ein Hund.", ["--min-length", 3], "length"),
    (" ".join("abcdefghij"), "eins zwei drei vier", ["--max-length", 9], "length"),
    ("eins zwei drei vier", " ".join("abcdefghij"), ["--max-length", 9], "length"),
    ("eins zwei drei vier", " ".join("abcdefghij"), ["--max-length", 10], None),
    ("x", "a b c", [], None),
    ("x", "a b c d", [], "length_ratio"),
    ("a b c d", "x", [], "length_ratio"),
    ("a b c d", "x", ["--max-length-ratio", 4], None),
    ("ab c", "我是学生们", ["--length-unit", "characters"], None),
    ("a", "我是学生", ["--length-unit", "characters"], "length_ratio"),
    ("A dog runs", "... --- Hu", [], "few_letters"),
    ("A dog runs", "... --- Hu", ["--min-letters", 0.2], None),
    ("... !!!", "--- ???", [], None),
    ("namaste duniya", "नमस्ते दुनिया", ["--min-letters", 1], None),  # every fourth character is a mark
    ("A  dog runs.", "a dog RUNS.", [], "copied_source"),
    ("A dog runs.", "a dog RUNS.", ["--copied-source", "keep"], None),
    ("Straße", "STRASSE", [], "copied_source"),
    ("12:30 – 14:00", "12:30 – 14:00", [], None),
    ("the big dog runs home", "the big dog läuft heim", [], None),  # 3 of 7
    ("the big dog runs", "the big dog läuft", [], "copied_source"),  # 3 of 5
    ("the big dog runs", "the big dog läuft", ["--copy-overlap", 0.7], None),
    ("the big dog runs", "(The) big, 'dog' 12 läuft!", [], "copied_source"),
    (WORDS, "das ist so so so schön hier heute", [], "repetition"),
    (WORDS, "das ist so so schön hier heute", [], None),
    (WORDS, "das ist so so so schön hier heute", ["--max-repeats", 4], None),
    (WORDS, "er ging nach Haus er ging nach Haus er ging nach Haus", [], "repetition"),
    (WORDS, "x er ging nach Haus er ging nach Haus er ging nach Hof", [], None),
    ("no no no " + WORDS, "das ist so so so schön hier heute", [], None),
    ("A man with shaggy hair", "Ein Mann mit verwahrwahrwahrlostem Haar", [], "repetition"),
    ("A man with shaggy hair", "Ein Mann mit verwahrwahrwahrlostem Haar", ["--max-repeats", 4], None),
    ("A man with shaggy hair", "Ein Mann mit Haaaaaaar", [], None),  # seven
    ("A man with shaggy hair", "Ein Mann mit Haaaaaaaar", [], "repetition"),
    ("He said hahahaha", "Er sagte hahahaha", [], None),
    ("Solar energy of my great-great-grandfather", "Sonnenenergie meines Urururgroßvaters", [], None),
    ("Call 10101010", "Ruf 10101010 an", [], None),
    ("Er kam mit der Schifffahrt", "Il est venu en bateau", ["--length-unit", "characters"], None),
    ("One says ha and goes", "我说哈哈哈哈哈哈哈哈", ["--length-unit", "characters"], "repetition"),
    ("One says ha and goes", "我说哈哈哈哈哈", ["--length-unit", "characters"], None),
    ("1,234.5 of 20", "20 von 1.234,5", ["--numbers"], None),
    ("25 of 20", "٢٠ von 25", ["--numbers"], None),
    ("25 of 20", "20 von 26", ["--numbers"], "numbers"),
    ("25 of 20", "20 von 26", [], None),
    ("A dog runs", "Der Hund läuft", ["--script", "latin"], None),
    ("A dog runs", "Собака der бежит", ["--script", "latin"], "foreign_script"),
    ("A dog runs", "Собака der бежит", ["--script", "LATIN,CYRILLIC"], None),
    ("A dog runs", "Собака der бежит", ["--script", "latin", "--script-share", 0.1], None),
    ("1 = 1 OK", "1 = 1 2", ["--script", "latin", "--min-letters", 0], None),
    ("A dog runs", "ＤＯＧ ｈｕｎｄ", ["--script", "latin"], None),
]


@pytest.mark.parametrize("source, hypothesis, flags, expected", CASES)
def test_each_rule_drops_what_it_says(source, hypothesis, flags, expected):
    assert verdict(source, hypothesis, *flags) == expected


def test_every_rule_is_tested():
    assert {expected for _, _, _, expected in CASES} == {None, *RULES}


@given(st.lists(st.sampled_from("ab"), max_size=14), st.integers(2, 4))
@settings(max_examples=300, deadline=None)
def test_loops_by_their_definition(units, times):
    expected = any(
        units[at : at + size] * times == units[at : at + size * times] and at + size <= len(units)
        for size in (1, 2, 3, 4)
        for at in range(len(units))
    )
    assert has_loop(units, times) == expected


sides = st.lists(st.sampled_from(["ein", "Hund", "a", "7", "...", "\ufffd", "дом", "so so so"]), max_size=6).map(
    " ".join
)


@given(
    st.lists(st.tuples(sides, st.lists(st.tuples(sides, st.floats(-3, 0)), max_size=4), st.integers(1, 3)), max_size=9),
    st.sampled_from([[], ["--numbers"], ["--script", "latin"], ["--keep-best", "0.5"], ["--min-score", "-1"]]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_kept_and_what_is_dropped_is_all_there_was(corpus, flags):
    records, line = [], 0
    for source, hypotheses, copies in corpus:
        records.append(Record(list(range(line, line + copies)), source, [Hypothesis(*h) for h in hypotheses]))
        line += copies
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "in", records)
        command = ["filter", Path(folder) / "in", *flags, "--output", Path(folder) / "out"]
        if main(list(map(str, command))) == 1:  # nothing is left
            assert not (Path(folder) / "out").exists()
            return
        kept = {found.ids[0]: found for found in records_of(Path(folder) / "out")}
        counts = counts_of(Path(folder) / "out")
    lost = {"lines_untranslated_before": 0, "lines_without_translation": 0}
    dropped = 0
    for each in records:
        found = kept.pop(each.ids[0], None)
        left = iter(each.hypotheses)
        if found is None:
            name = "lines_without_translation" if each.hypotheses else "lines_untranslated_before"
            lost[name] += len(each.ids)
            dropped += len(each.hypotheses)
        else:
            assert found.hypotheses and (found.ids, found.source) == (each.ids, each.source)
            assert all(hypothesis in left for hypothesis in found.hypotheses)  # in their order
            dropped += len(each.hypotheses) - len(found.hypotheses)
    assert kept == {}
    assert sum(count for name, count in counts.items() if name.startswith("dropped_")) == dropped
    assert {name: counts.get(name, 0) for name in lost} == lost


def test_the_first_rule_is_charged_and_all_of_them_are_told(tmp_path, capsys):
    write_folder(
        tmp_path / "in",
        [
            record([0, 3], "A dog runs home", "A dog runs home", "Ein Hund", "x " * 30 + "\ufffd"),
            record(1, "A cat", "\x00", "so so so so"),
            record(2, "Nothing"),
        ],
    )
    run_verb("filter", tmp_path / "in", "--output", tmp_path / "o", "--text", tmp_path / "x")
    assert texts_by_line(tmp_path / "o") == {0: ["Ein Hund"], 3: ["Ein Hund"]}
    counts = {"dropped_broken_characters": 2, "dropped_copied_source": 1, "dropped_repetition": 1}
    lines = {"lines_untranslated_before": 1, "lines_without_translation": 1}
    assert counts_of(tmp_path / "o") == {**counts, **lines}
    table = [row.rsplit(maxsplit=2) for row in capsys.readouterr().out.splitlines()]
    assert ["broken characters", "2", "40.00%"] in table and ["kept", "1", "20.00%"] in table
    assert [row[0].replace(" ", "_") for row in table[: len(RULES)]] == list(RULES)
    assert (tmp_path / "x.de").read_text() == "Ein Hund\nEin Hund\n"


def test_a_new_rule_is_a_function_and_its_row(tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "no_zebras", Rule(lambda pair, options: "Zebra" in pair.hypothesis.text))
    write_folder(tmp_path / "in", [record(0, "A dog", "Ein Zebra"), record(1, "A zebra", "Ein Pferd")])
    run_verb("filter", tmp_path / "in", "--output", tmp_path / "o")
    assert texts_by_line(tmp_path / "o") == {1: ["Ein Pferd"]}
    assert counts_of(tmp_path / "o") == {"dropped_no_zebras": 1, "lines_without_translation": 1}


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.integers(1, 100))
@settings(max_examples=200, deadline=None)
def test_the_best_share_is_as_many_as_asked_for_and_their_equals(scores, percent):
    lowest = filtering.threshold(np.array(scores, np.float64), percent / 100)
    wanted = -(-percent * len(scores) // 100)
    assert lowest == sorted(scores, reverse=True)[wanted - 1]


SCORED = [
    record([0, 2], "A dog runs", ("Ein Hund", -1.0), ("Der Hund", -4.0)),
    record(1, "A cat", ("Eine Katze", -2.0)),
    record(3, "A house", ("Ein Haus", -3.0)),
]


@pytest.mark.parametrize(
    "flags, kept",
    [
        (["--min-score", "-2"], {0: ["Ein Hund"], 1: ["Eine Katze"], 2: ["Ein Hund"]}),
        (["--keep-best", "0.25"], {0: ["Ein Hund"], 2: ["Ein Hund"]}),
        (["--keep-best", "0.26"], {0: ["Ein Hund"], 1: ["Eine Katze"], 2: ["Ein Hund"]}),
        (["--keep-best", "1"], {line: [h.text for h in r.hypotheses] for r in SCORED for line in r.ids}),
        (["--keep-best", "0.75", "--min-score", "-1.5"], {0: ["Ein Hund"], 2: ["Ein Hund"]}),
        (["--scores", "scores", "--keep-best-by-scores", "0.5"], {0: ["Der Hund"], 2: ["Der Hund"], 3: ["Ein Haus"]}),
        (["--scores", "scores", "--keep-best-by-scores", "0.5", "--min-score", "-3.5"], {3: ["Ein Haus"]}),
    ],
)
def test_scores_decide(flags, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder("in", SCORED)
    # line 2 has the source of line 0: its scores are not looked at again
    Path("scores").write_text("0\t-7\n0\t-2\n1\t-3\n2\t-9\n2\t-9\n3\t-1\n")
    run_verb("filter", "in", *flags, "--output", "out")
    assert texts_by_line("out") == kept
    counts = counts_of("out")
    left = sum(len(found.hypotheses) for found in records_of("out"))
    assert counts.get("dropped_low_score", 0) + counts.get("dropped_low_other_score", 0) == 4 - left
    assert ("dropped_low_other_score" in counts) == ("--scores" in flags)


def test_the_scores_that_text_writes_can_be_read_as_scores(tmp_path):
    write_folder(tmp_path / "in", SCORED)
    run_verb("filter", tmp_path / "in", "--output", tmp_path / "all", "--text", tmp_path / "x")
    run_verb("filter", tmp_path / "in", "--output", tmp_path / "one", "--keep-best", 0.5)
    other = ["--keep-best-by-scores", 0.5, "--scores", tmp_path / "x.scores"]
    run_verb("filter", tmp_path / "in", "--output", tmp_path / "two", *other)
    assert texts_by_line(tmp_path / "one") == {0: ["Ein Hund"], 1: ["Eine Katze"], 2: ["Ein Hund"]}
    assert records_of(tmp_path / "one") == records_of(tmp_path / "two")


ROWS = "0\t-7\n0\t-2\n1\t-3\n2\t-9\n2\t-9\n3\t-1\n"


@pytest.mark.parametrize(
    "rows, message",
    [
        (ROWS[:-5], "ends after 5 rows; line 3 has none"),
        ("", "ends after 0 rows"),
        (ROWS + "3\t1\n", "more than 6 rows"),
        (ROWS.replace("1\t", "2\t", 1), "line 3: is for line 2 instead of 1"),
        (ROWS.replace("-3", "nan"), "line 3: score nan is not finite"),
        (ROWS.replace("-3", "x"), "line 3: '1\\tx' is not number TAB score"),
        (ROWS.replace("1\t-3", "1 -3"), "line 3: '1 -3' is not number TAB score"),
    ],
)
def test_scores_that_do_not_fit_are_refused(rows, message, tmp_path, capsys):
    write_folder(tmp_path / "in", SCORED)
    (tmp_path / "scores").write_text(rows)
    options = ["--scores", tmp_path / "scores", "--keep-best-by-scores", 0.5]
    assert message in refusal(capsys, "filter", tmp_path / "in", *options, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max-length-ratio", "0.5"], "--max-length-ratio 0.5: out of range. Remedy: 1 or more"),
        (["--max-length-ratio", "nan"], "--max-length-ratio nan"),
        (["--min-length", "0"], "--min-length 0"),
        (["--max-length", "-1"], "--max-length -1"),
        (["--min-letters", "1.5"], "--min-letters 1.5: out of range. Remedy: 0 … 1"),
        (["--copy-overlap", "-0.1"], "--copy-overlap"),
        (["--max-repeats", "1"], "--max-repeats 1"),
        (["--keep-best", "0"], "--keep-best 0"),
        (["--keep-best", "80"], "--keep-best 80"),
        (["--min-score", "nan"], "--min-score nan"),
        (["--keep-best-by-scores", "0.5"], "--scores and --keep-best-by-scores go together"),
        (["--scores", "scores"], "--scores and --keep-best-by-scores go together"),
        (["--scores", "none", "--keep-best-by-scores", "1"], "--scores none: No such file"),
        (["--script", "latin,klingon"], "--script KLINGON"),
        (["--workers", "-1"], "--workers -1: must lie in 1"),
        (["--keep-best", "0.5"], "line 1 (from 0) has a translation without a score: 'Eine Katze'"),
        (["--min-score", "-3"], "line 1 (from 0) has a translation without a score"),
    ],
)
def test_what_cannot_be_is_refused(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folder("in", [SCORED[0], record(1, "A cat", "Eine Katze")])
    Path("scores").write_text("0\t1\n")
    assert message in refusal(capsys, "filter", "in", *flags, "--output", "out")
    assert not Path("out").exists()


@pytest.mark.slow
def test_two_processes_drop_what_one_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local, "CHUNK", 3)
    monkeypatch.setattr(sys, "argv", ["kd-plugin", "filter"])  # by which a worker knows that it needs no fairseq
    good, loop, copy = "Ein Hund läuft", "Hund Hund Hund Hund", "a dog runs"
    records = [
        record(i, f"a dog runs {i}", *[(good, loop, f"{copy} {i}")[(i + k) % 3] for k in range(2)]) for i in range(20)
    ]
    write_folder(tmp_path / "in", records)
    tables = []
    for workers in (1, 2):
        run_verb("filter", tmp_path / "in", "--workers", workers, "--output", tmp_path / f"{workers}")
        tables.append(capsys.readouterr().out.replace(str(tmp_path / f"{workers}"), ""))
    one, two = ((tmp_path / f"{workers}" / "manifest.json").read_bytes() for workers in (1, 2))
    assert one == two and tables[0] == tables[1]
    assert (
        counts_of(tmp_path / "2")["dropped_copied_source"] > 5 and counts_of(tmp_path / "2")["dropped_repetition"] > 5
    )


def test_options_are_in_the_identity(tmp_path, capsys):
    write_folder(tmp_path / "in", SCORED)
    command = ["filter", tmp_path / "in", "--output", tmp_path / "o"]
    run_verb(*command)
    run_verb(*command, "--max-length-ratio", 3)
    for flags in (["--max-length-ratio", 4], ["--numbers"], ["--min-score", "-9"]):
        assert "holds other translations" in refusal(capsys, *command, *flags)
    run_verb("filter", tmp_path / "in", "--output", tmp_path / "p", "--max-length-ratio", math.inf)
    run_verb("filter", tmp_path / "in", "--output", tmp_path / "p", "--max-length-ratio", math.inf)
