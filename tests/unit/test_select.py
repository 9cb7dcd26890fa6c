"""Which translations `kd-plugin select` keeps: compared with sacrebleu's sentence_score, pair by pair."""

import concurrent.futures
import functools
import gzip
import sys
import tempfile
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings
from sacrebleu.metrics import BLEU, CHRF

from kd_plugin.corpus.hypotheses import Hypothesis, Record
from kd_plugin.corpus.raw_text import TextLines
from kd_plugin.corpus.translations import Translations
from kd_plugin.curate.criteria import Candidates, Chooser, Settings, agreement
from kd_plugin.errors import KDPluginError
from kd_plugin.runners import local
from tests.unit.translation_folders import counts_of, record, records_of, refusal, run_verb, texts_by_line, write_folder

sentences = st.lists(st.sampled_from(["ein", "Hund", "läuft", "schnell", "heim", "."]), max_size=7).map(" ".join)
METRICS = {"bleu": BLEU(effective_order=True), "chrf": CHRF()}


@st.composite
def corpora(draw):
    """Records, and a reference for each line."""
    sources = draw(st.lists(st.integers(0, 5), min_size=1, max_size=12))
    by_source = {}
    for line, source in enumerate(sources):
        by_source.setdefault(source, []).append(line)
    texts = {source: draw(st.lists(sentences, max_size=5)) for source in by_source}
    records = [Record(ids, str(s), [Hypothesis(text) for text in texts[s]]) for s, ids in by_source.items()]
    return records, draw(st.lists(sentences, min_size=len(sources), max_size=len(sources)))


def first_best(texts, value, top):
    """The definition: again and again the first of those that nothing surpasses."""
    left, kept = list(enumerate(texts)), []
    while left and len(kept) < top:
        best = next(one for one in left if all(value(*one) >= value(*other) for other in left))
        left.remove(best)
        kept.append(best[1])
    return kept


@given(corpora(), st.sampled_from(["bleu", "chrf"]), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_reference_keeps_the_nearest_for_each_line(corpus, metric, top):
    records, references = corpus
    assume(any(each.hypotheses for each in records))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder / "in", records)
        (folder / "ref").write_text("".join(line + "\n" for line in references), encoding="utf-8")
        run_verb("select", folder / "in", "--by", "reference", "--reference", folder / "ref", "--metric", metric,
                 "--top", top, "--output", folder / "out")  # fmt: skip
        found = texts_by_line(folder / "out")  # reading checks that ids are in order, none twice
        sources = {line: each.source for line, each in Translations(folder / "out").lines()}

    def score(position, text):
        return METRICS[metric].sentence_score(text, [reference]).score

    assert len(found) == len(references)
    for each in records:
        for line in each.ids:
            reference = references[line]
            assert found[line] == first_best([h.text for h in each.hypotheses], score, top)
            assert sources[line] == each.source


@given(st.lists(sentences, max_size=6), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_mbr_is_the_mean_of_sentence_scores(texts, top):
    chooser = Chooser(Settings("chrf", "de", top))
    [choice] = chooser(Candidates(texts, []))

    def utility(position, text):  # exact, so that equal texts tie
        others = [other for i, other in enumerate(texts) if i != position]
        return sum(Fraction(CHRF().sentence_score(text, [other]).score) for other in others)

    assert [texts[i] for i in choice] == first_best(texts, utility, top)
    assert len(choice) == min(top, len(texts)) == len(set(choice))


def test_mbr_utilities_have_the_scale_of_chrf():
    texts = ["ein Hund läuft", "ein Hund lief", "", "ein Hund läuft"]
    expected = [sum(CHRF().sentence_score(t, [o]).score for j, o in enumerate(texts) if j != i) / 3
                for i, t in enumerate(texts)]  # fmt: skip
    assert agreement(CHRF(), texts) == pytest.approx(expected, abs=1e-9)


def test_a_record_is_split_where_its_references_choose_differently(tmp_path):
    write_folder(
        tmp_path / "in",
        [
            record([0, 2, 3, 5], "s", ("a b c d", -1.0), ("x y z w", -2.0), system="S"),
            record(1, "t", "q"),
            record(4, "u"),
        ],
    )
    (tmp_path / "ref").write_bytes("a b c d\r\nq\nx y z w\nu\u2028 x y z w\n-\na b c d".encode())
    run_verb(
        "select", tmp_path / "in", "--by", "reference", "--reference", tmp_path / "ref", "--output", tmp_path / "o"
    )
    assert records_of(tmp_path / "o") == [
        record([0, 5], "s", ("a b c d", -1.0), system="S"),
        record(1, "t", "q"),
        record([2, 3], "s", ("x y z w", -2.0), system="S"),
        record(4, "u"),
    ]
    assert counts_of(tmp_path / "o") == {
        "lines_without_translation": 1,
        "lines_with_another_than_the_first": 2,
        "records_split": 1,
    }


def test_score_keeps_the_highest_and_of_equals_the_first(tmp_path, capsys):
    write_folder(
        tmp_path / "in",
        [
            record([0, 2], "s", ("a", -2.0), ("b", -1.0), ("c", -1.0), ("d", -3.0)),
            record(1, "t", ("e", 0.5), ("f", 0.25)),
        ],
    )
    run_verb(
        "select", tmp_path / "in", "--by", "score", "--top", 3, "--output", tmp_path / "o", "--text", tmp_path / "x"
    )
    assert texts_by_line(tmp_path / "o") == {0: ["b", "c", "a"], 1: ["e", "f"], 2: ["b", "c", "a"]}
    assert counts_of(tmp_path / "o") == {"lines_with_another_than_the_first": 2}
    assert (tmp_path / "x.de").read_text().split() == ["b", "c", "a", "e", "f", "b", "c", "a"]
    assert "3 of 3 lines; 5 translations of" in capsys.readouterr().out


class Threads:
    """In the place of the process pool: finishes what it is given in an order of its own, the newest first."""

    largest = 0

    def __init__(self, workers, context, initializer, arguments):
        assert context.get_start_method() == "spawn"
        initializer(*arguments)
        self.todo = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def submit(self, function, chunk):
        pool, future = self, concurrent.futures.Future()

        def result():
            for waiting, work in reversed(pool.todo):
                if not waiting.done():
                    waiting.set_result(work())
            return concurrent.futures.Future.result(future)

        future.result, future.chunk = result, len(chunk)
        self.todo.append((future, lambda: function(chunk)))
        Threads.largest = max(Threads.largest, sum(not waiting.done() for waiting, _ in self.todo))
        return future


def test_answers_come_in_order_and_only_so_many_are_asked_ahead(monkeypatch):
    monkeypatch.setattr(local, "CHUNK", 2)
    monkeypatch.setattr(local, "ProcessPoolExecutor", Threads)
    corpus = [
        (number, Candidates(["a b", "b c", "c d"], [f"{'abc'[number % 3]} {'bcd'[number % 3]}"]))
        for number in range(101)
    ]
    taken = []

    def sentences():
        for sentence in corpus:
            taken.append(sentence)
            yield sentence

    settings = Settings("chrf", "de", 1)
    for workers in (2, 3):
        Threads.largest = 0
        taken.clear()
        answers = local.mapped(sentences(), functools.partial(Chooser, settings), workers)
        next(answers)
        assert len(taken) <= 2 * workers * local.AHEAD
        assert [(0, [(0,)]), *answers] == [(number, [(number % 3,)]) for number in range(101)]
        assert Threads.largest == workers * local.AHEAD


def test_a_worker_that_dies_is_an_error_with_a_remedy(monkeypatch):
    class Dying(Threads):
        def submit(self, function, chunk):
            future = concurrent.futures.Future()
            future.set_exception(BrokenProcessPool("terminated abruptly"))
            return future

    monkeypatch.setattr(local, "ProcessPoolExecutor", Dying)
    with pytest.raises(KDPluginError, match="a worker died.*Remedy: fewer --workers"):
        list(local.mapped([(0, Candidates(["a"], []))], functools.partial(Chooser, Settings("chrf", "de", 1)), 2))


@pytest.mark.slow
def test_two_processes_choose_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "CHUNK", 3)
    monkeypatch.setattr(sys, "argv", ["kd-plugin", "select"])  # by which a worker knows that it needs no fairseq
    words = ["a", "bb", "ccc", "dd a", "a bb ccc", "bb"]
    records = [record(i, f"s{i}", *(words[(i * k) % 6] + " x" * (i % k) for k in range(1, 5))) for i in range(20)]
    write_folder(tmp_path / "in", records)
    for workers in (1, 2):
        run_verb("select", tmp_path / "in", "--by", "mbr", "--workers", workers, "--output", tmp_path / f"{workers}")
    one, two = ((tmp_path / f"{workers}" / "manifest.json").read_bytes() for workers in (1, 2))
    assert one == two
    assert texts_by_line(tmp_path / "1") != {i: [r.hypotheses[0].text] for i, r in enumerate(records)}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--by", "mbr", "--top", 0], "--top 0"),
        (["--by", "mbr", "--workers", -1], "--workers -1"),
        (["--by", "reference"], "--reference FILE"),
        (["--by", "mbr", "--reference", "ref"], "--reference goes with --by reference"),
        (["--by", "score", "--metric", "chrf"], "--metric goes with --by reference"),
        (["--by", "score"], "line 1 (from 0) has a translation without a score: 'c'"),
        (["--by", "reference", "--reference", "none"], "none: No such file"),
        (["--by", "reference", "--reference", "short"], "short: 1 lines, but the translated corpus has 2"),
        (["--by", "reference", "--reference", "long"], "long: 3 lines, but"),
        (["--by", "reference", "--reference", "latin1"], "latin1, line 2: not UTF-8"),
        (["--by", "reference", "--reference", "ref.gz"], "gunzip"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folder("in", [record(0, "s", ("a", -1.0)), record(1, "t", ("b", -1.0), "c")])
    for name, content in [("short", "a\n"), ("long", "a\nb\n\n"), ("ref", "a\nb\n")]:
        Path(name).write_text(content)
    Path("latin1").write_bytes("a\nü\n".encode("latin-1"))
    Path("ref.gz").write_bytes(gzip.compress(b"a\nb\n"))
    assert message in refusal(capsys, "select", "in", *arguments, "--output", "out")
    assert not Path("out", "manifest.json").exists()


def test_the_input_is_not_written_over(tmp_path, capsys):
    write_folder(tmp_path / "in", [record(0, "s", "a")])
    error = refusal(capsys, "select", tmp_path / "in", "--by", "mbr", "--output", tmp_path / "in")
    assert f"--output {tmp_path / 'in'}: would overwrite INPUT_DIR" in error
    assert records_of(tmp_path / "in") == [record(0, "s", "a")]


def test_what_matters_is_in_the_identity_and_the_number_of_workers_does_not(tmp_path, capsys):
    write_folder(tmp_path / "in", [record(0, "s", ("a", -1.0), ("b", -2.0))])
    (tmp_path / "ref").write_text("a\n")
    command = [
        "select",
        tmp_path / "in",
        "--by",
        "reference",
        "--reference",
        tmp_path / "ref",
        "--output",
        tmp_path / "o",
    ]
    run_verb(*command)
    run_verb(*command, "--workers", 1)
    for change in (["--top", 2], ["--metric", "chrf"]):
        assert "holds other translations" in refusal(capsys, *command, *change)
    (tmp_path / "ref").write_text("b\n")
    assert "holds other translations" in refusal(capsys, *command)


def test_references_are_found_by_number_in_long_files(tmp_path):
    lines = [f"line {number} " + "ü\u2028" * (number % 5) for number in range(5000)]
    (tmp_path / "ref").write_bytes("\r\n".join(lines).encode())
    found = TextLines(tmp_path / "ref", "--reference")
    assert len(found) == 5000
    order = [(number * 1237) % 5000 for number in range(5000)]
    assert [found[number] for number in order] == [lines[number] for number in order]
    found.close()
