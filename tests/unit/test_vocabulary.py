"""A student's dictionaries and sentencepiece models in its teacher's pieces."""

import random
import shutil

import pytest
import sentencepiece
from fairseq.data import Dictionary

from kd_plugin import cli
from kd_plugin.checkpoints.tokenizer import Tokenizer
from tests.support import MODEL, make_checkpoint
from tests.unit.huggingface_folders import make_folder
from tests.unit.sentencepiece_models import Pair, sentences, train

pytest.importorskip("google.protobuf", reason="protobuf is not installed")
LANGUAGES = ["-s", "en", "-t", "de"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    pytest.importorskip("transformers", reason="transformers is not installed")
    place, made = tmp_path_factory.mktemp("hf"), {}

    def folder(kind):
        if kind not in made:
            made[kind] = make_folder(kind, place / kind.replace(", ", "-"))
        return made[kind]

    return folder


@pytest.fixture
def corpus(tmp_path):
    """Raw text of which the models were trained on a part."""
    paths = []
    for language in ("en", "de"):
        paths.append(tmp_path / f"corpus.{language}")
        paths[-1].write_text("\n".join(sentences(language)[:200]) + "\nwörter 漢字\n", encoding="utf-8")
    return list(map(str, paths))


def vocabulary(*arguments):
    return cli.main(["vocabulary", *map(str, arguments)])


def refused(capsys, *arguments):
    assert vocabulary(*arguments) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("kind", ["marian", "nllb", "m2m100", "mbart50", "t5", "madlad"])
def test_all_pieces_give_the_teachers_own_ids(kind, folders, tmp_path):
    """text -> pieces -> the student's symbols -> the teacher's ids, as the teacher's tokenizer has them."""
    out = tmp_path / "out"
    assert vocabulary(folders(kind), "--output", out, *LANGUAGES) == 0
    tokenizer = Tokenizer(str(folders(kind)))
    indices = tokenizer.vocabularies()[0]
    dictionary = Dictionary.load(str(out / "dict.en.txt"))
    (model,) = [path for path in out.iterdir() if path.name in ("sentencepiece.model", "sentencepiece.en.model")]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for text in [*sentences("en"), *sentences("de")]:
        line = " ".join(processor.encode(text, out_type=str))
        ids = dictionary.encode_line(line, add_if_not_exist=False, append_eos=False).tolist()
        assert dictionary.unk() not in ids
        theirs = [indices[dictionary[index]] for index in ids]
        assert theirs == tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_subset_segments_as_before_and_everything(kind, tmp_path, corpus, capsys):
    pair = Pair(tmp_path / "pair", joint=False)
    models = [train(tmp_path / f"{lang}.spm", sentences(lang) + sentences(lang, 1), 400, kind) for lang in ("en", "de")]
    for lang, model in zip(("en", "de"), models):
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        pieces = [processor.id_to_piece(index) for index in range(3, processor.get_piece_size())]
        (pair.folder / f"dict.{lang}.txt").write_text("".join(f"{p} 1\n" for p in pieces), encoding="utf-8")
    make_checkpoint(pair.path, pair.folder, *LANGUAGES, *MODEL)
    flags = ["--source-sentencepiece-model", models[0], "--target-sentencepiece-model", models[1]]
    out = tmp_path / "out"
    arguments = [pair.path, "--output", out, *LANGUAGES, *flags, "--subset", *corpus, "--coverage", "1"]
    assert vocabulary(*arguments) == 0
    table = capsys.readouterr().out
    for row in table.splitlines()[1:3]:
        assert row.split()[6] == "0.00%" and row.split()[4] == row.split()[5]  # no sentence is segmented otherwise
    before, after = (
        sentencepiece.SentencePieceProcessor(model_file=str(model))
        for model in (models[0], out / "sentencepiece.en.model")
    )
    assert after.get_piece_size() < before.get_piece_size()
    draw = random.Random(1)
    known = {before.id_to_piece(index) for index in range(before.get_piece_size())}
    letters = [c for c in {c for line in sentences("en")[:200] for c in line} if c in known]
    for _ in range(200):  # every text of known characters is still segmented, and put together again
        text = " ".join("".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(4)).strip()
        ids = after.encode(text)
        assert after.unk_id() not in ids and after.decode(ids) == before.decode(before.encode(text))
    dictionary = Dictionary.load(str(out / "dict.en.txt"))
    assert dictionary.symbols[4:] == [s for s in Dictionary.load(str(pair.folder / "dict.en.txt")).symbols[4:]
                                      if s in dictionary.indices]  # fmt: skip
    assert sum(dictionary.count[4:]) > 200


def test_less_coverage_keeps_fewer_and_says_what_it_costs(folders, tmp_path, corpus, capsys):
    kept = []
    for coverage in (1.0, 0.9, 0.5):
        out = tmp_path / f"out{coverage}"
        arguments = ["--subset", *corpus, "--coverage", coverage, "--joined-dictionary"]
        assert vocabulary(folders("nllb"), "--output", out, *LANGUAGES, *arguments) == 0
        assert sorted(path.name for path in out.iterdir()) == ["dict.txt", "sentencepiece.model"]
        row = capsys.readouterr().out.splitlines()[1].split()
        kept.append(len(Dictionary.load(str(out / "dict.txt"))) - 4)
        assert int(row[2]) == kept[-1] and row[7] == row[8] != "0"  # 漢 is unknown to both
        assert (row[6] == "0.00%") == (coverage == 1.0) and int(row[5].replace(",", "")) >= int(row[4].replace(",", ""))
    assert kept[0] > kept[1] > kept[2] > 20


def test_the_students_dictionary_fits_its_teacher(folders, tmp_path, corpus):
    """What the verb writes is what --teacher-path takes."""
    from kd_plugin.checkpoints.huggingface import Folder
    from kd_plugin.checkpoints.tokenizer import Languages
    from kd_plugin.teachers.huggingface import fit_folder

    out = tmp_path / "out"
    assert vocabulary(folders("marian"), "--output", out, *LANGUAGES, "--subset", *corpus) == 0
    dictionaries = tuple(Dictionary.load(str(out / f"dict.{language}.txt")) for language in ("en", "de"))
    member = fit_folder(Folder(str(folders("marian"))), Languages(), dictionaries, "refuse")
    assert member.target.restricted and member.target.missing.tolist() == [dictionaries[1].bos()]


def test_refusals(folders, tmp_path, corpus, capsys):
    teacher, out = folders("marian"), tmp_path / "out"
    common = [teacher, "--output", out, *LANGUAGES]
    assert "--coverage 1.5: must lie in" in refused(capsys, *common, "--coverage", 1.5)
    assert "no file ends in .de" in refused(capsys, *common, "--subset", corpus[0])
    assert "its name does not show the language" in refused(capsys, *common, "--subset", *corpus, tmp_path / "x.txt")
    assert "no such file" in refused(capsys, *common, "--subset", *corpus, tmp_path / "x.en")
    assert "is a file" in refused(capsys, teacher, "--output", corpus[0], *LANGUAGES, "--subset", *corpus)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("the user's own")
    assert "already contains files" in refused(capsys, teacher, "--output", tmp_path / "full", *LANGUAGES)
    bare = tmp_path / "bare"
    shutil.copytree(folders("nllb"), bare)
    for path in bare.glob("*.model"):
        path.unlink()
    assert "Remedy: " in refused(capsys, bare, "--output", out, *LANGUAGES)
    assert not out.exists()
