"""The vocabulary verb on 10,000 real sentences: text -> pieces -> the student's ids -> the teacher's own ids."""

import gzip
from pathlib import Path

import pytest
import sentencepiece
from fairseq.data import Dictionary

from kd_plugin import cli
from kd_plugin.checkpoints.huggingface import Folder
from kd_plugin.checkpoints.tokenizer import Languages
from kd_plugin.teachers.huggingface import fit_folder
from tests.support import ROOT
from tests.unit.huggingface_folders import KINDS, make_folder

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("google.protobuf", reason="protobuf is not installed")

DATA = Path(ROOT).parent / "shared" / "data" / "multi30k"
SENTENCES, PIECES = 10_000, 2_000
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared corpora are not there")


@pytest.fixture(scope="module")
def texts():
    found = []
    for language in ("en", "de"):
        with gzip.open(DATA / f"train.{language}.gz", "rt", encoding="utf-8") as file:
            found.append([line.rstrip("\n") for line, _ in zip(file, range(SENTENCES))])
    return found


def ids_through_the_student(out, language, side, member, lines):
    """By the files that the verb wrote, and by which symbol is which, as a training has it."""
    (model,) = [path for path in out.glob("*.model") if path.name.split(".")[1] in (language, "model")]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    dictionary = Dictionary.load(str(out / f"dict.{language}.txt"))
    indices = member.source_indices if side == 0 else member.target_indices
    return [
        [int(indices[dictionary.index(piece)]) for piece in pieces] for pieces in processor.encode(lines, out_type=str)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind, coverage", [("marian", None), ("nllb", None), ("t5", None), ("marian", 0.999)])
def test_ten_thousand_sentences_give_the_teachers_ids(kind, coverage, texts, tmp_path, capsys):
    path = make_folder(kind, tmp_path / "teacher", [line for some in texts for line in some[::7]], PIECES)
    out = tmp_path / "vocabulary"
    arguments = ["vocabulary", path, "--output", out, "-s", "en", "-t", "de"]
    if coverage is not None:
        for language, some in zip(("en", "de"), texts):
            (tmp_path / f"text.{language}").write_text("".join(line + "\n" for line in some), encoding="utf-8")
        arguments += ["--subset", tmp_path / "text.en", tmp_path / "text.de", "--coverage", coverage]
    assert cli.main(list(map(str, arguments))) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    folder = Folder(str(path))
    dictionaries = tuple(Dictionary.load(str(out / f"dict.{language}.txt")) for language in ("en", "de"))
    member = fit_folder(folder, Languages(*KINDS[kind]), dictionaries, "refuse")
    for side, (language, some, argument) in enumerate(zip(("en", "de"), texts, ("text", "text_target"))):
        own = folder.tokenizer(**{argument: some}, add_special_tokens=False)["input_ids"]
        ours = ids_through_the_student(out, language, side, member, some)
        otherwise = sum(one != other for one, other in zip(own, ours))
        if coverage is None:
            assert otherwise == 0
        else:  # pieces that were left out are written with others: in as many sentences as the table says
            (row,) = [row for row in said if row[:1] == [language]]
            assert 0 < otherwise and row[6] == f"{otherwise / SENTENCES:.2%}"
