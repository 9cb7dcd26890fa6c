"""`kd-plugin import`: every row arrives once, or the file is refused by line and nothing is written."""

import gzip
import json
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from kd_plugin.pipeline.translations import Hypothesis, Translations
from tests.unit.translation_folders import counts_of, record, records_of, refusal, run_verb, texts_by_line

LANGUAGES = ("--source-lang", "en", "--target-lang", "de")
texts = st.text(st.characters(blacklist_characters="\t\r\n", blacklist_categories=["Cs"]), min_size=1, max_size=8)
filled = texts.filter(lambda text: text.strip() != "" and not text.startswith("\ufeff"))
rows = st.lists(st.tuples(st.integers(0, 4), texts, st.none() | st.floats(-9, 0), st.sampled_from(["", "X", "Y"])))


def write_rows(folder, rows, format_name):
    """rows: (source, text, score, system)"""
    path = Path(folder) / f"in.{format_name}"
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for source, text, score, system in rows:
            if format_name == "tsv":
                file.write("\t".join((source, text, "" if score is None else repr(score), system)) + "\n")
            else:
                row = {"source": source, "hypothesis": text, "score": score, "model": system or None, "cost": 3}
                file.write(json.dumps(row) + "\n")
    return path


def expected_hypotheses(rows):
    """By the definition: per source its different texts, each with its best score; best first if all have one."""
    by_source = {}
    for source, text, score, _ in rows:
        kept = by_source.setdefault(source, {})
        if text.strip():
            scores = [s for s in (kept.get(text), score) if s is not None]
            kept[text] = max(scores, default=None)
    for source, kept in by_source.items():
        hypotheses = [Hypothesis(text, score) for text, score in kept.items()]
        if None not in kept.values():
            hypotheses = sorted(hypotheses, key=lambda hypothesis: hypothesis.score, reverse=True)
        by_source[source] = hypotheses
    return by_source


@given(rows.filter(bool), st.lists(filled, min_size=5, max_size=5, unique=True), st.sampled_from(["tsv", "jsonl"]))
@settings(max_examples=80, deadline=None)
def test_nothing_is_lost_doubled_or_reordered(numbered, sources, format_name):
    rows = [(sources[number], *rest) for number, *rest in numbered]
    expected = expected_hypotheses(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = write_rows(folder, rows, format_name)
        run_verb("import", path, *LANGUAGES, "--output", Path(folder) / "out")
        lines = list(Translations(Path(folder) / "out").lines())
        counts = Translations(Path(folder) / "out").manifest.counts
    assert [(line, found.source, found.hypotheses) for line, found in lines] == [
        (line, source, hypotheses) for line, (source, hypotheses) in enumerate(expected.items())
    ]
    kept = sum(map(len, expected.values()))
    assert counts["rows"] == len(rows) == kept + counts["empty_dropped"] + counts["repeated_dropped"]
    assert counts["empty_dropped"] == sum(not text.strip() for _, text, _, _ in rows)
    assert counts["lines_without_translation"] == sum(not hypotheses for hypotheses in expected.values())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), rows, st.randoms())
@settings(max_examples=40, deadline=None)
def test_with_a_corpus_the_numbers_are_its_lines(corpus, numbered, random):
    rows = [(f"s{number}", *rest) for number, *rest in numbered if number in corpus]
    expected = expected_hypotheses(rows)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "corpus").write_text("".join(f"s{number}\n" for number in corpus))
        path = write_rows(folder, rows, "tsv")
        run_verb("import", path, *LANGUAGES, "--source", Path(folder) / "corpus", "--output", Path(folder) / "out")
        translations = Translations(Path(folder) / "out")
        lines = list(translations.lines())
    assert [(line, found.source) for line, found in lines] == [(i, f"s{number}") for i, number in enumerate(corpus)]
    assert all(found.hypotheses == expected.get(found.source, []) for _, found in lines)
    assert len(translations) == len(set(corpus))
    without = sum(not expected.get(f"s{number}") for number in corpus)
    assert translations.manifest.counts["lines_without_translation"] == without


def imported(folder, content, *options, name="in.jsonl"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    run_verb("import", folder / name, *LANGUAGES, "--output", folder / "out", *options)
    return records_of(folder / "out")


def test_every_shape_of_a_json_line(tmp_path):
    content = """
{"source": "a", "hypothesis": "A", "score": -1}
{"source": "b", "hypotheses": ["B", {"text": "BB", "score": -2.5}, {"text": "BBB"}], "system": "S"}
{"source": "c", "hypotheses": [], "model": null}

{"source": "d", "hypotheses": [{"text": "D", "score": -2}, {"text": "DD", "score": -1}]}
"""
    assert imported(tmp_path, content) == [
        record(0, "a", ("A", -1.0)),
        record(1, "b", "B", ("BB", -2.5), "BBB", system="S"),
        record(2, "c"),
        record(3, "d", ("DD", -1.0), ("D", -2.0)),
    ]


def test_tsv_has_two_to_four_columns_and_no_quotes(tmp_path):
    content = '\ufeffa\t"A\r\nb\tB\t-0.5\r\nc\tC\t\tS\nd\tD\t1e-3\tS\u2028'
    assert imported(tmp_path, content, name="in.tsv") == [
        record(0, "a", '"A'),
        record(1, "b", ("B", -0.5)),
        record(2, "c", "C", system="S"),
        record(3, "d", ("D", 0.001), system="S\u2028"),
    ]


def test_of_equal_translations_the_one_with_the_best_score_stays(tmp_path):
    content = "a\tA\t-3\na\tB\t-2\na\tA\t-1\na\tB\na\tB\t-4\n"
    assert imported(tmp_path, content, name="in.tsv") == [record(0, "a", ("A", -1.0), ("B", -2.0))]
    assert counts_of(tmp_path / "out") == {"rows": 5, "repeated_dropped": 3}


def test_a_system_is_named_where_all_hypotheses_are_its_own(tmp_path):
    content = "a\tA\t\tX\nb\tB\t\tX\na\tAA\t\tY\nb\tBB\t\tX\nc\tC\t\tX\nc\tCC\n"
    assert [found.system for found in imported(tmp_path, content, name="in.tsv")] == [None, "X", None]


def test_line_breaks_become_a_space_and_empty_ones_are_dropped(tmp_path):
    hypotheses = ["one \n\n  two\r\nthree\n", "\n \n", "", "four  five", "six\u2028seven"]
    content = json.dumps({"source": "a", "hypotheses": hypotheses})
    assert imported(tmp_path, content) == [record(0, "a", "one two three", "four  five", "six\u2028seven")]
    assert counts_of(tmp_path / "out") == {"rows": 1, "line_breaks_joined": 2, "empty_dropped": 2}


def test_packed_files_of_either_format_and_a_format_that_the_name_does_not_tell(tmp_path):
    for name, options in [("x.tsv.gz", []), ("x.gz", ["--format", "tsv"]), ("x.txt", ["--format", "tsv"])]:
        packed = gzip.compress(b"a\tA\n") if name.endswith(".gz") else b"a\tA\n"
        (tmp_path / name).mkdir()
        assert imported(tmp_path / name, packed, *options, name=name) == [record(0, "a", "A")]


def test_sources_are_found_in_a_corpus_with_other_line_ends(tmp_path):
    (tmp_path / "corpus.gz").write_bytes(gzip.compress("ein\u2028s\r\nzw\rei\r\nein\u2028s".encode()))
    imported(tmp_path, "zw\rei\t2\nein\u2028s\t1\n", "--source", tmp_path / "corpus.gz", name="in.tsv")
    assert texts_by_line(tmp_path / "out") == {0: ["1"], 1: ["2"], 2: ["1"]}


BAD = [
    ("tsv", b"a\tA\nb\xff\tB\n", "line 2: no UTF-8 (invalid start byte at byte 1)"),
    ("tsv", b"a\tA\nb\n", "line 2: 1 columns"),
    ("tsv", b"a\tA\t1\tS\tx\n", "line 1: 5 columns"),
    ("tsv", b"a\tA\n\n", "line 2: 1 columns"),
    ("tsv", b"a\tA\tnan\n", "line 1: score 'nan' is not finite"),
    ("tsv", b"a\tA\t-inf\n", "line 1: score '-inf' is not finite"),
    ("tsv", b"a\tA\t1_0\n", "line 1: score '1_0' is no number"),
    ("tsv", b"a\tA\tx\n", "line 1: score 'x' is no number"),
    ("tsv", b"a\tA\n \tB\n", "line 2: its source is empty"),
    ("tsv", b"", "is empty"),
    ("jsonl", b'{"source": "a", "hypothesis": "b"\n', "line 1: no JSON"),
    ("jsonl", b"[" * 100_000, "line 1: no JSON"),
    ("jsonl", b'\n["a"]\n', "line 2: no object"),
    ("jsonl", b'{"hypothesis": "b"}', "line 1: source is missing"),
    ("jsonl", b'{"source": 3, "hypothesis": "b"}', "line 1: source is no text: 3"),
    ("jsonl", b'{"source": "a"}', "line 1: needs either hypothesis or hypotheses"),
    ("jsonl", b'{"source": "a", "hypothesis": null}', "line 1: hypothesis is no text: None"),
    ("jsonl", b'{"source": "a", "hypothesis": "b", "hypotheses": []}', "line 1: needs either"),
    ("jsonl", b'{"source": "a", "hypotheses": "b"}', "line 1: hypotheses is no list"),
    ("jsonl", b'{"source": "a", "hypotheses": [3]}', "line 1: hypothesis 3 is no text"),
    ("jsonl", b'{"source": "a", "hypotheses": [{"score": 3}]}', "line 1: text is missing"),
    ("jsonl", b'{"source": "a", "hypotheses": ["b"], "score": 3}', "line 1: one score for several"),
    ("jsonl", b'{"source": "a", "hypothesis": "b", "score": NaN}', "line 1: score nan is not finite"),
    ("jsonl", b'{"source": "a", "hypothesis": "b", "score": 1' + b"0" * 400 + b"}", "is no number"),
    ("jsonl", b'{"source": "a", "hypothesis": "b", "score": true}', "line 1: score True is no number"),
    ("jsonl", b'{"source": "a", "hypothesis": "b", "score": "3"}', "line 1: score '3' is no number"),
    ("jsonl", b'{"source": "a\\nb", "hypothesis": "b"}', "line 1: a line break inside the source"),
    ("jsonl", b'{"source": "a", "hypothesis": "\\ud800"}', "line 1: half of a surrogate pair"),
    ("jsonl", b'{"source": "a", "hypothesis": "b", "model": 4}', "line 1: model is no text"),
    ("tsv.gz", gzip.compress(b"a\tA\n" * 50, mtime=0)[:-9], "cannot be read after line"),
    ("tsv.gz", b"a\tA\n", "cannot be read after line 0"),
    ("csv", b"a,b\n", "--format {tsv,jsonl}"),
]


@pytest.mark.parametrize("suffix, content, message", BAD)
def test_a_bad_row_is_named_and_nothing_is_written(suffix, content, message, tmp_path, capsys):
    (tmp_path / f"in.{suffix}").write_bytes(content)
    error = refusal(capsys, "import", tmp_path / f"in.{suffix}", *LANGUAGES, "--output", tmp_path / "out")
    assert message in error and f"in.{suffix}" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--source", "corpus"], "line 2: its source is no line of --source corpus: 'b '"),
        (["--source", "none"], "--source none: No such file"),
        (["--source", "latin1"], "--source latin1, line 1: no UTF-8"),
        (["--target-lang", "en"], "--target-lang en is the source's"),
        (["--target-lang", "a/b"], "--target-lang 'a/b'"),
        (["--target-lang", "scores"], "--target-lang 'scores'"),
    ],
)
def test_wrong_options_are_refused(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("in.tsv").write_text("a\tA\nb \tB\n")
    Path("corpus").write_text("a\nb\n")
    Path("latin1").write_bytes(b"\xfc\n")
    assert message in refusal(capsys, "import", "in.tsv", *LANGUAGES, *options, "--output", "out")
    assert not Path("out").exists()


def test_a_missing_file_is_named(tmp_path, capsys):
    error = refusal(capsys, "import", tmp_path / "none.tsv", *LANGUAGES, "--output", tmp_path / "out")
    assert "none.tsv: No such file" in error
