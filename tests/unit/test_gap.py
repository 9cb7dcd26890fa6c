"""kd-plugin gap: slices by hand, scores by sacreBLEU itself, intervals by sacreBLEU's bootstrap."""

import json
import random
import re

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from kd_plugin.cli import main
from kd_plugin.evaluation.gap.scores import measures, of_sentences
from kd_plugin.evaluation.gap.slices import Sentence, slices

TEXT = [
    ("a dog runs", "ein Hund rennt"),
    ("A DOG RUNS NOW", "EIN HUND RENNT JETZT"),
    ("The Dog Of Berlin", "Der Hund von Berlin"),
    ("The dog has 3 tails.", "Der Hund hat 3 Schwänze."),
    ("see http://x.org/a and Melbourne.", "siehe http://x.org/a und Melbourne."),
    ("42 17", "42 17"),
    ("The zebra eats.", "Das Zebra frisst."),
    ("", "leer"),
]


def rows(found, kind):
    return {part.name: part.rows for part in found if part.kind == kind}


def test_slices_are_what_their_names_say():
    sentences = [Sentence(s, r, r, r if n % 2 else "etwas ganz anderes") for n, (s, r) in enumerate(TEXT)]
    found = slices(sentences, training=["The dog runs"] * 6 + ["eats has of a now see and"], domains=list("xxyyxxyy"))
    assert rows(found, "case") == {
        "lower case": [0], "capitals": [1], "title case": [2], "sentence case": [3, 4, 6], "no case": [5, 7],
    }  # fmt: skip
    assert rows(found, "numbers") == {"with digits": [3, 5], "without digits": [0, 1, 2, 4, 6, 7]}
    assert rows(found, "end") == {"with punctuation": [3, 4, 6], "without punctuation": [0, 1, 2, 5, 7]}
    assert rows(found, "copied words") == {"none": [0, 1, 3, 5, 6, 7], "one": [2], "two or more": [4]}
    assert rows(found, "agreement")["identical"] == [1, 3, 5, 7] and rows(found, "agreement")["chrF below 50"]
    rare = rows(found, "rarest word")
    assert rare["unseen"] == [2, 3, 4, 6] and rare["seen 1 to 5 times"] == [0, 1] and rare["seen more often"] == [5, 7]
    assert rows(found, "domain") == {"x": [0, 1, 4, 5], "y": [2, 3, 6, 7]}
    lengths = rows(found, "length")
    assert list(lengths)[0] == "0–2 words" and lengths["0–2 words"] == [5, 7]
    for kind in {part.kind for part in found}:  # each kind divides the test set
        assert sorted(row for part in found if part.kind == kind for row in part.rows) == list(range(len(TEXT)))


def test_lengths_without_spaces_are_counted_in_characters():
    sentences = [Sentence("你" * number, "x", "x", "x") for number in range(1, 9)]
    assert rows(slices(sentences, words_have_spaces=False), "length") == {
        "1–2 characters": [0, 1], "3–4 characters": [2, 3], "5–6 characters": [4, 5], "7–8 characters": [6, 7],
    }  # fmt: skip
    assert slices([Sentence("a b", "x", "x", "x")] * 5) == []  # each would be the whole test set


@pytest.fixture(scope="module")
def systems():
    draw = random.Random(3)
    words = "der Hund rennt durch den grünen Wald und bellt laut . , 3 Haus".split()
    references = [" ".join(draw.choices(words, k=draw.randint(4, 14))) for _ in range(60)]

    def worse(share):
        return [
            " ".join(w if draw.random() > share else draw.choice(words) for w in line.split()) for line in references
        ]

    return worse(0.15), worse(0.4), references


@pytest.mark.parametrize("tokenize, lowercase", [("13a", False), ("char", True), ("none", False)])
def test_scores_of_a_slice_are_sacrebleus_on_its_sentences(systems, tokenize, lowercase):
    teacher, student, references = systems
    found, signatures = measures(teacher, student, references, tokenize, lowercase)
    part = list(range(5, 40, 2))
    gap = {name: measure.difference(part, 0) for name, measure in found.items()}
    of = [[side[row] for row in part] for side in systems]
    for side, name in enumerate(("teacher", "student")):
        bleu = sacrebleu.corpus_bleu(of[side], [of[2]], tokenize=tokenize, lowercase=lowercase).score
        assert getattr(gap["BLEU"], name) == pytest.approx(bleu, abs=1e-9)
        chrf = CHRF(lowercase=lowercase).corpus_score(of[side], [of[2]]).score
        assert getattr(gap["chrF2"], name) == pytest.approx(chrf, abs=1e-9)
    assert f"tok:{tokenize}" in signatures["BLEU"] and "nrefs:1" in signatures["chrF2"]
    assert gap["BLEU"].gap == gap["BLEU"].student - gap["BLEU"].teacher
    assert np.isnan(gap["BLEU"].low)


def test_intervals_agree_with_sacrebleus_bootstrap_of_each_system(systems):
    """A teacher without any spread against itself shifted: the interval of the gap is the student's own."""
    _, student, references = systems
    found, _ = measures(references, student, references, "13a", False)  # the teacher always has 100
    ours = found["BLEU"].difference(range(60), 2000)
    _, theirs = PairedTest([("a", student)], {"BLEU": BLEU(references=[references])}, None, "bs", 2000)()
    assert ours.student == pytest.approx(theirs["BLEU"][0].score)
    assert (ours.high - ours.low) / 2 == pytest.approx(theirs["BLEU"][0].ci, rel=0.1)
    assert (ours.high + ours.low) / 2 + 100 == pytest.approx(theirs["BLEU"][0].mean, abs=0.5)


def test_a_mean_of_sentence_scores_has_the_interval_of_the_mean():
    draw = np.random.default_rng(1)
    teacher, student = draw.normal(0.8, 0.1, 400), draw.normal(0.7, 0.1, 400)
    found = of_sentences(teacher, student).difference(range(400), 2000)
    assert found.gap == pytest.approx(student.mean() - teacher.mean())
    error = np.std(student - teacher) / 20
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


@pytest.fixture
def files(tmp_path, systems):
    teacher, student, references = systems
    texts = {"src": [f"Source {n}." for n in range(60)], "ref": references, "t.txt": teacher, "s.txt": student}
    for name, lines in texts.items():
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return tmp_path


def arguments(files, *more):
    flags = ["--test", f"{files / 'src'},{files / 'ref'}", "--teacher", f"big={files / 't.txt'}"]
    return ["gap", *flags, "--student", str(files / "s.txt"), "--output", str(files / "gap"), *map(str, more)]


def test_the_verb_writes_tables_and_the_worst_sentences(files, systems, capsys):
    teacher, student, references = systems
    (files / "domains").write_text("a\n" * 30 + "b\n" * 30)
    assert main(arguments(files, "--domains", files / "domains", "--train", files / "src", "--worst", 3)) == 0
    content = json.loads((files / "gap/gap.json").read_text(encoding="utf-8"))
    said = capsys.readouterr().out
    assert (
        said.strip() == (files / "gap/gap.md").read_text(encoding="utf-8").strip() and "# student against big" in said
    )
    by_name = {(part["kind"], part["name"]): part for part in content["slices"]}
    everything, second = by_name["all", "all"], by_name["domain", "b"]
    assert everything["sentences"] == 60 and second["sentences"] == 30
    score = second["scores"]["BLEU"]
    assert score["student"] == pytest.approx(sacrebleu.corpus_bleu(student[30:], [references[30:]]).score)
    assert score["low"] < score["gap"] < score["high"] < 0
    chrf = CHRF()
    gaps = [chrf.sentence_score(s, [r]).score - chrf.sentence_score(t, [r]).score for t, s, r in zip(*systems)]
    assert [row["line"] - 1 for row in content["worst"]] == sorted(range(60), key=gaps.__getitem__)[:3]
    assert content["worst"][0]["student"] in student
    assert main(arguments(files)) == 1 and "already holds a comparison" in capsys.readouterr().err


def test_case_is_ignored_everywhere_or_nowhere(files, systems):
    (files / "s.txt").write_text("".join(line.upper() + "\n" for line in systems[0]), encoding="utf-8")
    assert main(arguments(files, "--lowercase")) == 0
    content = json.loads((files / "gap/gap.json").read_text(encoding="utf-8"))
    assert content["slices"][0]["scores"]["chrF2"]["gap"] == 0 and content["worst"] == []
    assert "agreement" not in {part["kind"] for part in content["slices"]}  # all are identical: a single slice


def test_an_occupied_folder_is_refused_before_any_score(files, capsys, monkeypatch):
    from kd_plugin.evaluation.gap import gap

    (files / "gap").mkdir()
    (files / "gap/gap.json").write_text("{}")
    monkeypatch.setattr(gap, "measures", lambda *_: pytest.fail("scored first"))
    assert main(arguments(files)) == 1 and "already holds a comparison" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("s.txt", "one\n", "--student .*s.txt: 1 lines, but 60"),
        ("ref", "", "--test .*ref"),
        ("src", b"\xff\n" * 60, "not UTF-8"),
        ("domains", "a\n", "--domains .*domains: 1 lines"),
    ],
)
def test_wrong_files_are_named_and_nothing_is_written(files, capsys, name, text, message):
    (files / "domains").write_text("a\n" * 60)
    (files / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(arguments(files, "--domains", files / "domains")) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and not (files / "gap").exists()
    output = ["--output", str(files / "ref")]
    assert main([*arguments(files)[:-2], *output]) == 1


def test_the_report_shows_it(files, capsys):
    pytest.importorskip("vl_convert")
    assert main(arguments(files, "--bootstrap", 50)) == 0
    page = files / "report.html"
    assert main(["report", "--gap", str(files / "gap"), "--output", str(page)]) == 0
    html = page.read_text(encoding="utf-8")
    (spec,) = [
        json.loads(part[: part.index("</script>")]) for part in html.split('<script type="application/json">')[1:]
    ]
    content = json.loads((files / "gap/gap.json").read_text(encoding="utf-8"))
    drawn = [row["gap"] for row in spec["concat"][0]["data"]["values"]]
    assert drawn == [part["scores"]["BLEU"]["gap"] for part in content["slices"]]
    assert content["worst"][0]["source"] in html
    assert main(["report", "--gap", str(files / "gap"), "--output", str(files / "gap/gap.json")]) == 1
    assert "would overwrite --gap" in capsys.readouterr().err
    for damaged in ([{}], []):
        (files / "gap/gap.json").write_text(json.dumps({**content, "slices": damaged}))
        assert main(["report", "--gap", str(files / "gap"), "--output", str(files / "other.html")]) == 1
