"""kd-plugin prepare-tagging: CoNLL files become a folder whose words and labels fit each other, or are refused."""

import numpy as np
import pytest

from kd_plugin.cli import main
from kd_plugin.corpus import tagging_folder
from kd_plugin.corpus.binarised import open_indexed
from kd_plugin.corpus.dictionaries import load_dictionary
from kd_plugin.corpus.words import Words, rule_of
from tests.unit.sentencepiece_models import train as train_model

# a no-break space alone, inside a word, characters that a model's normalisation removes or widens, a hashtag
ODD = [
    [("New\u00a0York", "B-loc"), ("is", "O"), ("\u200d", "O"), ("\u200b", "O")],
    [("#", "O"), ("Bitcoin", "B-loc"), ("\u00bd", "O"), ("a b", "O")],
    [("<s>", "O")],
]
PLAIN = [[("Ada", "B-per"), ("Lovelace", "I-per"), ("wrote", "O")], [("London", "B-loc")]]


def conll(path, sentences, separator="\t", between="\n"):
    text = between.join("".join(f"{word}{separator}{tag}\n" for word, tag in one) for one in sentences)
    path.write_text(text, encoding="utf-8")
    return path


def prepare(tmp_path, capsys, *arguments, output="out"):
    status = main(["prepare-tagging", "--output", str(tmp_path / output), *map(str, arguments)])
    told = capsys.readouterr()
    return status, told.out + told.err


def read(folder, split):
    """(words, labels) of each sentence, by the folder's own dictionaries and marks."""
    symbols, labels = (load_dictionary(str(folder / part / "dict.txt")) for part in ("input0", "label"))
    words = Words(symbols, rule_of("auto", symbols.symbols))
    text, tags = (
        open_indexed(str(folder / part / split), one) for part, one in (("input0", symbols), ("label", labels))
    )
    return [
        (words.words(np.asarray(text[at]), "?"), labels.string(tags[at]).split(" ")) for at in range(len(text))
    ]  # fmt: skip


def test_words_and_labels_come_back(tmp_path, capsys):
    """Blank lines of any white space, DOCSTART, comments; words with spaces inside; names of special symbols."""
    file = conll(tmp_path / "a.conll", PLAIN + ODD, between="   \n\n\t\n")
    file.write_text("-DOCSTART-\tO\n\n# a comment\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    status, told = prepare(tmp_path, capsys, "--train", file)
    assert status == 0 and "train: 5 sentences, 13 words" in told
    assert "2 words with white space inside" in told and "2 comments skipped" in told
    found = read(tmp_path / "out", "train")
    assert [labels for _, labels in found] == [[tag for _, tag in one] for one in PLAIN + ODD]
    assert found[0][0] == ["Ada", "Lovelace", "wrote"] and found[2][0] == ["NewYork", "is", "\u200d", "\u200b"]
    assert found[4][0] == ["?"]


def test_pieces_of_a_word_never_cross_its_borders(tmp_path, capsys):
    """Whatever the model's normalisation makes of odd characters: as many words as labels."""
    model = train_model(tmp_path / "m.model", [" ".join(w for w, _ in one) for one in PLAIN + ODD] * 9, 60)
    status, told = prepare(
        tmp_path, capsys, "--train", conll(tmp_path / "a.conll", PLAIN + ODD), "--sentencepiece-model", model
    )
    assert status == 0, told
    found = read(tmp_path / "out", "train")
    assert [len(words) for words, _ in found] == [len(one) for one in PLAIN + ODD]
    assert [labels for _, labels in found] == [[tag for _, tag in one] for one in PLAIN + ODD]
    assert found[0][0] == ["Ada", "Lovelace", "wrote"]
    assert "leaves nothing" in told


def test_other_columns_and_separators(tmp_path, capsys):
    file = tmp_path / "a.conll"
    file.write_text("1 Ada NNP B-per x\n2 came VBD O x\n\n", encoding="utf-8")
    status, _ = prepare(tmp_path, capsys, "--train", file, "--word-column", 2, "--label-column", -2)
    assert status == 0 and read(tmp_path / "out", "train") == [(["Ada", "came"], ["B-per", "O"])]


STRAY = [[("Ada", "I-per"), ("Lovelace", "I-per"), ("came", "O")]]


def test_spans_that_have_not_begun_are_refused_or_repaired(tmp_path, capsys):
    file = conll(tmp_path / "a.conll", STRAY)
    status, told = prepare(tmp_path, capsys, "--train", file)
    assert status == 1 and "1 labels continue a span that has not begun, such as line 1: I-per after O" in told
    assert not (tmp_path / "out").exists()
    status, told = prepare(tmp_path, capsys, "--train", file, "--repair")
    assert status == 0 and "1 labels repaired" in told
    assert read(tmp_path / "out", "train")[0][1] == ["B-per", "I-per", "O"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("Ada\tB-per\nLovelace\n", "line 2: 'Lovelace' has no"),
        ("Ada\tX-per\n", "line 1: the label 'X-per' is not of the form O, B-X or I-X"),
        ("\n\n", "has no sentence"),
        ("Ada\tB-per\rLovelace\tI-per\r", "line 1: has a carriage return inside"),
        ("Ada\tB-per\nba\xffd\tO\n".encode("latin-1"), "line 2: not UTF-8"),
    ],
)
def test_wrong_files_are_refused_by_line_and_nothing_is_written(tmp_path, capsys, text, message):
    file = tmp_path / "a.conll"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    status, told = prepare(tmp_path, capsys, "--train", file)
    assert status == 1 and message in told and "Remedy" in told and str(file) in told
    assert not (tmp_path / "out").exists()


def test_labels_that_training_does_not_have_are_refused(tmp_path, capsys):
    one, other = conll(tmp_path / "a", PLAIN), conll(tmp_path / "b", [[("Oslo", "B-city")]])
    status, told = prepare(tmp_path, capsys, "--train", one, "--valid", other)
    assert status == 1 and "--valid" in told and "has no label 'B-city'" in told
    assert not (tmp_path / "out").exists()


def test_a_sharp_sign_is_a_word_where_the_columns_say_so_and_a_document_ends_a_sentence(tmp_path, capsys):
    file = tmp_path / "a.conll"
    file.write_text("# O\n1 O\n\n# a comment\n# comment\nAda B-per\n-DOCSTART- O\ncame O\n", encoding="utf-8")
    status, told = prepare(tmp_path, capsys, "--train", file)
    assert status == 0 and "3 comments skipped" in told
    assert read(tmp_path / "out", "train") == [(["#", "1"], ["O", "O"]), (["Ada"], ["B-per"]), (["came"], ["O"])]


@pytest.mark.parametrize("there", [False, True])
def test_an_interruption_leaves_nothing_and_the_same_command_works_afterwards(tmp_path, capsys, monkeypatch, there):
    """Interrupted while it writes labels; a folder with other content keeps it."""
    file, out = conll(tmp_path / "a.conll", PLAIN), tmp_path / "out"
    if there:
        out.mkdir()
        (out / "notes").write_text("mine")
    before = sorted(tmp_path.rglob("*"))

    def interrupted(folder, name, *others):
        assert len(list(tmp_path.rglob(".*lock"))) == 1  # another run is refused meanwhile
        if folder.name == "label":
            raise KeyboardInterrupt
        write(folder, name, *others)

    write = tagging_folder._write
    monkeypatch.setattr(tagging_folder, "_write", interrupted)
    assert prepare(tmp_path, capsys, "--train", file)[0] != 0
    assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.undo()
    status, told = prepare(tmp_path, capsys, "--train", file)
    assert status == 0, told
    assert [labels for _, labels in read(out, "train")] == [[tag for _, tag in one] for one in PLAIN]
    assert sorted(one.name for one in out.iterdir()) == ["input0", "label", *(["notes"] if there else [])]
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("name", ["madeupword0000", "<unk>"])
def test_names_that_dictionaries_reserve_are_no_labels(tmp_path, capsys, name):
    file = conll(tmp_path / "a", [[("Ada", "NOUN"), ("came", name)]])
    status, told = prepare(tmp_path, capsys, "--train", file, "--labels-are", "any")
    assert status == 1 and f"line 2: the label '{name}' has a name that fairseq's dictionaries reserve" in told
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_content_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "out" / "label").mkdir(parents=True)
    (tmp_path / "out" / "label" / "dict.txt").write_text("mine")
    status, told = prepare(tmp_path, capsys, "--train", conll(tmp_path / "a", PLAIN))
    assert status == 1 and "already has input0/ or label/" in told
    assert (tmp_path / "out" / "label" / "dict.txt").read_text() == "mine"
