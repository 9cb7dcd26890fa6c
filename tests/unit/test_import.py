"""`kd-plugin import`: every row arrives once, or the file is refused by line and nothing is written."""

import gzip
import json
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from kd_plugin.corpus.hypotheses import Hypothesis
from kd_plugin.corpus.translations import Translations
from tests.unit.translation_folders import counts_of, record, records_of, refusal, run_verb, texts_by_line

LANGUAGES = ("--source-lang", "en", "--target-lang", "de")
# without digits: texts of them look like numbers of lines
texts = st.text(
    st.characters(blacklist_characters="\t\r\n\0", blacklist_categories=["Cs", "Nd"]), min_size=1, max_size=8
)
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
    assume(any(text.strip() for _, text, _, _ in rows))
    assume(len(rows) < 4 or len({source for source, *_ in rows}) > 1)  # one source looks like a label
    expected = expected_hypotheses(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = write_rows(folder, rows, format_name)
        said = ["--format", "tsv", "--columns", "source,hypothesis,score,system"] if format_name == "tsv" else []
        run_verb("import", path, *LANGUAGES, *said, "--output", Path(folder) / "out")
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
    assume(any(text.strip() for _, text, _, _ in rows))
    expected = expected_hypotheses(rows)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "corpus").write_text("".join(f"s{number}\n" for number in corpus))
        path = write_rows(folder, rows, "tsv")
        said = ["--format", "tsv", "--columns", "source,hypothesis,score,system", "--source", Path(folder) / "corpus"]
        run_verb("import", path, *LANGUAGES, *said, "--output", Path(folder) / "out")
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
    imported(tmp_path, "zw\rei\ttwo\nein\u2028s\tone\n", "--source", tmp_path / "corpus.gz", name="in.tsv")
    assert texts_by_line(tmp_path / "out") == {0: ["one"], 1: ["two"], 2: ["one"]}


BAD = [
    ("tsv", b"a\tA\nb\xff\tB\n", "line 2: not UTF-8 (invalid start byte at byte 1)"),
    ("tsv", b"a\tA\nb\n", "line 2: 1 columns"),
    ("tsv", b"a\tA\t1\tS\tx\n", "line 1: 5 columns"),
    ("tsv", b"a\tA\n\n", "line 2: 1 columns"),
    ("tsv", b"a\tA\tnan\n", "line 1: score 'nan' is not finite"),
    ("tsv", b"a\tA\t-inf\n", "line 1: score '-inf' is not finite"),
    ("tsv", b"a\tA\t1_0\n", "line 1: score '1_0' is not a number"),
    ("tsv", b"a\tA\tx\n", "line 1: score 'x' is not a number"),
    ("tsv", b"a\tA\n \tB\n", "line 2: its source is empty"),
    ("tsv", b"", "is empty"),
    ("jsonl", b'{"source": "a", "hypothesis": "b"\n', "line 1: not JSON"),
    ("jsonl", b"[" * 100_000, "line 1: not JSON"),
    ("jsonl", b'\n["a"]\n', "line 2: not an object"),
    ("jsonl", b'{"hypothesis": "b"}', "line 1: source is missing"),
    ("jsonl", b'{"source": 3, "hypothesis": "b"}', "line 1: source is not text: 3"),
    ("jsonl", b'{"source": "a"}', "line 1: needs either hypothesis or hypotheses"),
    ("jsonl", b'{"source": "a", "hypothesis": null}', "line 1: hypothesis is not text: None"),
    ("jsonl", b'{"source": "a", "hypothesis": "b", "hypotheses": []}', "line 1: needs either"),
    ("jsonl", b'{"source": "a", "hypotheses": "b"}', "line 1: hypotheses is not a list"),
    ("jsonl", b'{"source": "a", "hypotheses": [3]}', "line 1: hypothesis 3 is not text"),
    ("jsonl", b'{"source": "a", "hypotheses": [{"score": 3}]}', "line 1: text is missing"),
    ("jsonl", b'{"source": "a", "hypotheses": ["b"], "score": 3}', "line 1: one score for several"),
    ("jsonl", b'{"source": "a", "hypothesis": "b", "score": NaN}', "line 1: score nan is not finite"),
    ("jsonl", b'{"source": "a", "hypothesis": "b", "score": 1' + b"0" * 400 + b"}", "is not a number"),
    ("jsonl", b'{"source": "a", "hypothesis": "b", "score": true}', "line 1: score True is not a number"),
    ("jsonl", b'{"source": "a", "hypothesis": "b", "score": "3"}', "line 1: score '3' is not a number"),
    ("jsonl", b'{"source": "a\\nb", "hypothesis": "b"}', "line 1: a line break inside the source"),
    ("jsonl", b'{"source": "a", "hypothesis": "\\ud800"}', "line 1: half of a surrogate pair"),
    ("jsonl", b'{"source": "a", "hypothesis": "b", "model": 4}', "line 1: model is not text"),
    ("tsv.gz", gzip.compress(b"a\tA\n" * 50, mtime=0)[:-9], "cannot be read after line"),
    ("tsv.gz", b"a\tA\n", "cannot be read after line 0"),
    ("txt", b"a\tb\n", "--format {tsv,csv,jsonl}"),
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
        (["--source", "corpus"], "line 2: its source is not a line of --source corpus: 'b '"),
        (["--source", "none"], "--source none: No such file"),
        (["--source", "latin1"], "--source latin1, line 1: not UTF-8"),
        (["--target-lang", "en"], "--target-lang en is also the source language"),
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


SENTENCES = ["A man is singing.", "Two dogs run.", "A child plays in the snow.", "Women are dancing."]


def table(*ends):
    """Rows of pairs, each with one of the ends; without any: two rows."""
    pairs = ["I go.\tIch gehe.", "She said hi.\tSie grüßte.", "He ran.\tEr rannte."]
    return "".join(f"{pair}{end}\n" for pair, end in zip(pairs, ends or ("", "")))


def objects(**more):
    rows = [{"source": f"{text} Again.", "hypothesis": text, **more} for text in SENTENCES]
    return "".join(json.dumps(row).replace("{i}", str(i)) + "\n" for i, row in enumerate(rows))


TATOEBA = "1276\tLet's try something.\t77\tLassen Sie uns etwas versuchen!\n1277\tI have to go.\t81\tIch muss gehen.\n"
PAIR = [record(0, "I go.", "Ich gehe."), record(1, "She said hi.", "Sie grüßte.")]


@pytest.mark.parametrize(
    "name, content, options",
    [
        ("t.tsv", "source\thypothesis\nI go.\tIch gehe.\nShe said hi.\tSie grüßte.\n", []),
        ("t.tsv", "en\tde\nI go.\tIch gehe.\nShe said hi.\tSie grüßte.\n", []),
        ("t.tsv", "Target\tSource\r\nIch gehe.\tI go.\r\nSie grüßte.\tShe said hi.\r\n", []),
        ("t.tsv", "\ufeff#id\tEN\tDE\n1\tI go.\tIch gehe.\n2\tShe said hi.\tSie grüßte.\n", []),
        ("t.tsv", "I go.\t7\tIch gehe.\nShe said hi.\t8\tSie grüßte.\n", ["--columns", "source,_,hypothesis"]),
        ("t.tsv", "Ich gehe.\tI go.\t\nSie grüßte.\tShe said hi.\t\n", ["--columns", "translation,src"]),
        ("t.tsv", "source\ttarget\nI go.\tIch gehe.\nShe said hi.\tSie grüßte.\n", ["--columns", "source,target"]),
        ("t.csv", 'I go.,Ich gehe.\n"She said hi.","Sie grüßte."\n', []),
        ("t.csv", '"I go.";"Ich gehe."\r\n"She said hi.";"Sie grüßte."\r\n', []),
        ("t.csv", "source,translation\nI go.,Ich gehe.\nShe said hi.,Sie grüßte.\n", []),
        ("t.tsv", '"I go."\t"Ich gehe."\n"She said hi."\t"Sie grüßte."\n', ["--format", "csv"]),
        ("t.jsonl", '{"src": "I go.", "tgt": "Ich gehe."}\n{"src": "She said hi.", "mt": "Sie grüßte."}\n', []),
        ("t.jsonl", '{"en": "I go.", "de": "Ich gehe."}\n{"source": "She said hi.", "target": "Sie grüßte."}\n', []),
        ("t.jsonl", "".join(
            json.dumps({"id": "3", "translation": {"en": r.source, "de": r.hypotheses[0].text}}) + "\n" for r in PAIR
        ), []),
    ],
)  # fmt: skip
def test_columns_and_keys_of_other_names_and_orders(name, content, options, tmp_path):
    assert imported(tmp_path, content, *options, name=name) == PAIR


@pytest.mark.parametrize(
    "names, options",
    [
        *((names, []) for names in (
            "English\tGerman", "en-US\tde-DE", "eng\tdeu", "en_text\tde_text", "text_en\ttext_de", "English\tDeutsch",
            "eng_Latn\tdeu_Latn", "sourceText\tTargetText", "EnglishText\tGermanText",
        )),
        ("source\treference", ["--columns", "source,hypothesis"]),
        ("English\tGerman", ["--columns", "source,hypothesis"]),
        ("text\tout", ["--columns", "source,hypothesis"]),
    ],
)  # fmt: skip
def test_a_first_line_of_other_names_is_no_translation(names, options, tmp_path):
    assert imported(tmp_path, f"{names}\n{table()}", *options, name="in.tsv") == PAIR


@pytest.mark.parametrize(
    "names, columns", [("id\tenglish\tgerman", "_,source,hypothesis"), ("text\tn\tout", "source,_,hypothesis")]
)
def test_a_first_line_of_names_beside_columns_that_are_said(names, columns, tmp_path):
    order = "7\t{}\t{}\n" if columns.startswith("_") else "{}\t7\t{}\n"
    content = f"{names}\n" + "".join(order.format(r.source, r.hypotheses[0].text) for r in PAIR)
    assert imported(tmp_path, content, "--columns", columns, name="in.tsv") == PAIR


def test_a_first_line_that_says_the_opposite_of_columns_is_refused(tmp_path, capsys):
    (tmp_path / "in.tsv").write_text(f"de\ten\n{table()}")
    command = ["import", tmp_path / "in.tsv", *LANGUAGES, "--output", tmp_path / "out"]
    assert "line 1: names columns: de, en" in refusal(capsys, *command, "--columns", "source,hypothesis")


@pytest.mark.parametrize(
    "pair",
    ["Hello\tHallo", "No\tno", "Text\tText", "German\tDeutsch", "The\tDer", "in\tde", "Yes\tJa", "Name\tName",
     "Go\tOut", "English\tEnglisch", "Input\tEingabe", "A\tEin", "System\tsystem\t-1\topus-mt", "1984\t1984",
     "COVID-19\tDie Seuche"],
)  # fmt: skip
def test_a_short_first_pair_is_a_translation(pair, tmp_path):
    source, text = pair.split("\t")[:2]
    found = imported(tmp_path, f"{pair}\n{table()}", name="in.tsv")
    assert len(found) == 3 and (found[0].source, found[0].hypotheses[0].text) == (source, text)


@pytest.mark.parametrize(
    "name, content",
    [
        ("t.tsv", table("\t1\topus-mt", "\t1\tnllb 600M", "\t1\tGPT 4o (May)")),
        ("t.tsv", "Hello\tHallo\nHello\tGrüß dich\nHello\tGuten Tag\nHello\tServus\n"),
        ("t.tsv", '"Go!"\t„Geh!“\n"Run!"\t„Lauf!“\n'),
        ("t.tsv", "U2\tU2\nB52\tB52\n"),
        ("t.jsonl", '{"src": "I go.", "tgt": "Ich gehe.", "source_lang": "en", "target_lang": "de", "en_text": "x"}\n'),
        ("t.jsonl", objects(source_lang="English", target_lang="deu_Latn", lang_pair="en-de", system="x")),
    ],
)
def test_what_is_in_order_is_not_refused(name, content, tmp_path):
    imported(tmp_path, content, name=name)
    assert counts_of(tmp_path / "out")["rows"] == len(content.splitlines())


def test_fields_of_csv_may_hold_what_ends_lines_and_fields(tmp_path):
    content = 'I go.,"Ich gehe,\r\nsofort.",0.5\r\n"Say ""hi"".",Sag hallo.,\r\n'
    assert imported(tmp_path, content, name="in.csv") == [
        record(0, "I go.", ("Ich gehe, sofort.", 0.5)), record(1, 'Say "hi".', "Sag hallo."),
    ]  # fmt: skip


def test_a_first_line_of_names_is_said(tmp_path, capsys):
    imported(tmp_path, "en\tde\na\tA\n", name="in.tsv")
    assert "line 1 names the columns (en, de) and is not a translation" in capsys.readouterr().err
    assert counts_of(tmp_path / "out") == {"rows": 1}


@pytest.mark.parametrize("columns", ["--columns=-,source,-,hypothesis", "--columns=_,source,_,target"])
def test_tatoebas_pairs_with_their_columns_named(columns, tmp_path):
    assert imported(tmp_path, TATOEBA, columns, name="in.tsv") == [
        record(0, "Let's try something.", "Lassen Sie uns etwas versuchen!"),
        record(1, "I have to go.", "Ich muss gehen."),
    ]


def test_numbers_scores_of_a_hundred_and_quotations_are_text_like_any_other(tmp_path):
    content = '1984\t1984\t100\tA\n"Go!" she said.\tGeh!\t77.5\tA\n"Hm."\t"Hm."\t0\tB\nThree\t3\n12\tzwölf\n'
    found = imported(tmp_path, content, name="in.tsv")
    assert [each.source for each in found] == ["1984", '"Go!" she said.', '"Hm."', "Three", "12"]
    assert found[0].hypotheses == [Hypothesis("1984", 100.0)] and found[3].hypotheses == [Hypothesis("3", None)]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.tsv", TATOEBA, "2 of 2 sources are numbers, as in Tatoeba's exports. Remedy: say which column"),
        ("t.tsv", TATOEBA.splitlines()[0], "1 of 1 sources are numbers"),
        ("t.tsv", "-0.3\tI go.\n", "sources are numbers"),
        ("t.tsv", "I go.\t0.7\nYou go.\t0.8\n", "2 of 2 translations are numbers"),
        ("t.tsv", "7\tI go.\tIch gehe.\n", "score 'Ich gehe.' is not a number"),
        ("t.tsv", "id\tscore\n7\t3\n", "line 1: names columns: id, score. Remedy: say which column"),
        ("t.tsv", "src\tmt\ttgt\na\tA\tB\n", "line 1: names columns: src, mt, tgt"),
        ("t.tsv", "".join(f"a{i}\tA\t1\tText {i}\n" for i in range(5)), "5 different systems in 5 rows"),
        ("t.tsv", table("\t1\tA man sings a song.", "\t2\tA dog runs."), "2 different systems in 2 rows"),
        ("t.tsv", f"source\treference\n{table()}", "line 1: names columns: source, reference"),
        ("t.tsv", f"sentence\ttranslation\n{table()}", "line 1: names columns: sentence, translation"),
        ("t.tsv", f"sentence1\tsentence2\n{table()}", "line 1: names columns: sentence1, sentence2"),
        ("t.tsv", f"English\tFrench\n{table()}", "line 1: names columns: English, French"),
        ("t.tsv", "".join(f"sent_{i:04}\t{text}\n" for i, text in enumerate(SENTENCES)), "numbers or identifiers"),
        ("t.tsv", "".join(f"#{i}\t{text}\n" for i, text in enumerate(SENTENCES)), "4 of 4 sources are numbers or id"),
        ("t.tsv", "".join(f"{i}.\t{text}\n" for i, text in enumerate(SENTENCES)), "4 of 4 sources are numbers or id"),
        ("t.tsv", "".join(f"{text}\tdoc{i}\n" for i, text in enumerate(SENTENCES)), "4 of 4 translations are numbers"),
        ("t.tsv", "".join(f"eng\t{text}\n" for text in SENTENCES), "all 4 sources are 'eng'"),
        ("t.tsv", "".join(f"{text}\tdeu\n" for text in SENTENCES), "all 4 translations are 'deu'"),
        ("t.tsv", '"I go."\tIch gehe.\n"You go."\tDu gehst.\n', "its fields are in quotes, as in CSV"),
        ("t.tsv", 'I go.\t"Ich gehe."\nYou go.\t"Du gehst."\n', "its fields are in quotes, as in CSV"),
        ("t.tsv", "'I go.'\t'Ich gehe.'\n'You go.'\t'Du gehst.'\n", "its fields are in single quotes"),
        ("t.csv", "'I go.','Ich gehe.'\n'You go.','Du gehst.'\n", "its fields are in single quotes"),
        ("t.tsv", "a\tA\nb\tB\0B\n", "line 2: a NUL character inside a text"),
        ("t.jsonl", '{"source": "a\\u0000", "hypothesis": "A"}', "line 1: a NUL character inside a text"),
        ("t.jsonl", objects(source="{i}"), "4 of 4 sources are numbers. Remedy: rename its keys"),
        ("t.jsonl", objects(source="s-{i}"), "4 of 4 sources are numbers or identifiers. Remedy: rename its keys"),
        ("t.jsonl", objects(system="x{i}"), "4 different systems in 4 rows"),
        ("t.jsonl", objects(source_lang="de", target_lang="en"), "line 1: source_lang is 'de', but -s is en"),
        ("t.jsonl", objects(src_lang="eng_Latn", tgt_lang="fra_Latn"), "line 1: tgt_lang is 'fra_Latn', but -t is de"),
        ("t.jsonl", objects(lang_pair="de-en"), "line 1: lang_pair is 'de-en', but -s is en"),
        ("t.tsv", '"I go."\t"Ich gehe."\n', "its fields are in quotes, as in CSV"),
        ("t.tsv", 'a\tA\nb\tB\n"Say ""hi""."\tSag hallo.\n', "its fields are in quotes, as in CSV"),
        ("t.csv", '"I go.",Ich\n"You', "not CSV"),
        ("t.csv", '"I\ngo.",Ich gehe.\n', "a line break inside the source"),
        ("t.csv", "I go.\n", "line 1: 1 columns"),
        ("t.jsonl", '[{"source": "a", "hypothesis": "b"}]', "a JSON array. Remedy: one object per line"),
        ("t.jsonl", '[\n{"source": "a", "hypothesis": "b"}\n]\n', "a JSON array"),
        ("t.jsonl", '{"frage": "a", "antwort": "b"}', "source is missing among its keys frage, antwort"),
        ("t.jsonl", '{"src": "a", "input": "a", "tgt": "b"}', "src and input are both source"),
        ("t.tsv", " \n", "line 1: 1 columns"),
        ("t.tsv", "a\t\nb\t \n", "no translation in its 2 rows"),
    ],
)
def test_what_looks_like_another_table_is_refused(name, content, message, tmp_path, capsys):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert message in refusal(capsys, "import", tmp_path / name, *LANGUAGES, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "columns", ["source", "source,target,translation", "source,hypothesis,foo", ",", "hypothesis,score", "-,-"]
)
def test_columns_have_to_name_source_and_hypothesis(columns, tmp_path, capsys):
    (tmp_path / "in.tsv").write_text("a\tA\n")
    command = ["import", tmp_path / "in.tsv", *LANGUAGES, "--output", tmp_path / "out"]
    assert f"--columns {columns}: " in refusal(capsys, *command, f"--columns={columns}")


def test_columns_are_of_tables(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"source": "a", "hypothesis": "b"}')
    command = ["import", tmp_path / "in.jsonl", *LANGUAGES, "--output", tmp_path / "out"]
    assert "--columns: JSON lines have keys" in refusal(capsys, *command, "--columns", "source,hypothesis")


def test_an_empty_file_beside_a_corpus_is_an_error(tmp_path, capsys):
    (tmp_path / "in.tsv").write_text("")
    (tmp_path / "corpus").write_text("a\n")
    command = ["import", tmp_path / "in.tsv", *LANGUAGES, "--source", tmp_path / "corpus", "--output", tmp_path / "out"]
    assert "in.tsv: is empty" in refusal(capsys, *command) and not (tmp_path / "out").exists()


def test_columns_the_wrong_way_round_are_noticed_where_letters_tell(tmp_path, capsys):
    rows = [("We are going home.", "我们回家。"), ("It rained all day yesterday.", "昨天下了一整天的雨。")]
    (tmp_path / "in.tsv").write_text("".join(f"{b}\t{a}\n" for a, b in rows), encoding="utf-8")
    command = ["import", tmp_path / "in.tsv", "-s", "en", "-t", "zho_Hans", "--output", tmp_path / "out"]
    error = refusal(capsys, *command)
    assert "its sources look like zho_Hans" in error and "--columns hypothesis,source" in error
    run_verb(*command, "--columns", "hypothesis,source")
    assert texts_by_line(tmp_path / "out") == {i: [text] for i, (_, text) in enumerate(rows)}


def test_a_few_numbers_under_their_keys_are_text(tmp_path):
    (tmp_path / "g.jsonl").write_text('{"source": "Three", "hypothesis": "3"}\n{"source": "Four", "hypothesis": "4"}\n')
    run_verb("import", tmp_path / "g.jsonl", "-s", "en", "-t", "de", "--output", tmp_path / "out")
    assert [h.text for r in records_of(tmp_path / "out") for h in r.hypotheses] == ["3", "4"]
