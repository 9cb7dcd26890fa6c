"""Models of transformers as teachers, beside what transformers itself says about the same sentences."""

import json
import logging
import random
import shutil

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.language_pair_dataset import collate

from kd_plugin import cli
from kd_plugin.checkpoints.huggingface import Folder, folder_sha256
from kd_plugin.checkpoints.tokenizer import Languages
from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.base import Request
from kd_plugin.teachers.huggingface import fit_folder
from kd_plugin.teachers.online import OnlineTeacher
from kd_plugin.teachers.routing.batches import Sides
from kd_plugin.teachers.routing.marking import WAYS
from kd_plugin.teachers.routing.teacher import Data, Expert, RoutedTeacher
from kd_plugin.teachers.routing.ways import Tags, Way
from tests.unit.huggingface_folders import KINDS, T5_PREFIX, make_folder
from tests.unit.sentencepiece_models import sentences

pytest.importorskip("transformers", reason="transformers is not installed")

SOURCES, TARGETS = sentences("en", lines=5), sentences("de", seed=0, lines=5)[::-1]
SPECIALS = ("<s>", "</s>", "<pad>", "<unk>")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> an opened folder, made when it is asked for first."""
    place, made = tmp_path_factory.mktemp("hf"), {}

    def folder(kind):
        if kind not in made:
            made[kind] = Folder(str(make_folder(kind, place / kind.replace(", ", "-"))))
        return made[kind]

    return folder


def dictionary_of(vocabulary, leave_out=0, used=()):
    """A student's, in an order of its own; without some of the symbols, of which none is used."""
    symbols = sorted(symbol for symbol in vocabulary if symbol not in SPECIALS)
    random.Random(4).shuffle(symbols)
    left_out = [symbol for symbol in symbols if symbol not in used][:leave_out]
    dictionary = Dictionary()
    for symbol in symbols:
        if symbol not in left_out:
            dictionary.add_symbol(symbol)
    return dictionary


def batch_of(folder, dictionaries, left_pad_source=True, left_pad_target=False):
    """Sentences of different lengths, as fairseq collates them."""
    samples = []
    for number, texts in enumerate(zip(SOURCES, TARGETS)):
        pieces = [folder.tokenizer.tokenize(text) for text in texts]
        source, target = (
            torch.tensor([dictionary.index(piece) for piece in side] + [dictionary.eos()])
            for dictionary, side in zip(dictionaries, pieces)
        )
        samples.append({"id": number, "source": source, "target": target})
    return collate(samples, 1, 2, left_pad_source=left_pad_source, left_pad_target=left_pad_target)


def rows_of(batch):
    return batch["target"].reshape(-1).ne(1).nonzero().squeeze(1)


def own_logits(folder, kind, number):
    """(target tokens with end, its vocabulary): what transformers' own forward says, sentence by sentence."""
    tokenizer = folder.tokenizer
    if hasattr(tokenizer, "src_lang"):
        tokenizer.src_lang, tokenizer.tgt_lang = KINDS[kind]
    before = {"t5": T5_PREFIX, "madlad": "<2de> ", "marian, several targets": ">>deu<< "}.get(kind, "")
    source = tokenizer(before + SOURCES[number], return_tensors="pt")
    labels = tokenizer(text_target=TARGETS[number], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = folder.model(source["input_ids"], attention_mask=source["attention_mask"], labels=labels).logits[0]
    length = len(tokenizer.tokenize(TARGETS[number])) + 1
    first = (
        0 if kind in ("mbart", "nllb, tags at the end") else logits.size(0) - length
    )  # tags are no tokens of fairseq's
    return logits[first : first + length]


def expected_lprobs(folder, kind, member, batch):
    """(tokens, student's vocabulary) in float64, and the mass that the student's symbols leave out."""
    found, dropped = [], []
    for number in batch["id"].tolist():
        logits = own_logits(folder, kind, number).double()
        kept = logits[:, member.target_indices]
        if member.target.missing is not None:
            kept[:, member.target.missing] = -torch.inf
        found.append(torch.log_softmax(kept, dim=-1))
        dropped.append(1 - (torch.logsumexp(kept, -1) - torch.logsumexp(logits, -1)).exp())
    return torch.cat(found), torch.cat(dropped)


@pytest.mark.parametrize("leave_out", [0, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_transformers(kind, leave_out, folders):
    """At every position, whichever side is padded where; renormalised over the student's symbols."""
    folder = folders(kind)
    source, target = folder.vocabularies()
    used = {piece for text in TARGETS for piece in folder.tokenizer.tokenize(text)}
    dictionaries = dictionary_of(source), dictionary_of(target, leave_out, used)
    member = fit_folder(folder, Languages(*KINDS[kind]), dictionaries, "refuse")
    teacher = OnlineTeacher([member])
    for padding in [(True, False), (False, True), (False, False)]:
        batch = batch_of(folder, dictionaries, *padding)
        answer = teacher.answer(batch, Request(rows_of(batch), torch.float32))
        expected, dropped = expected_lprobs(folder, kind, member, batch)
        got = torch.log_softmax(answer.distribution.logits.double(), dim=-1)
        assert torch.equal(torch.isfinite(got), torch.isfinite(expected))
        finite = torch.isfinite(expected)
        torch.testing.assert_close(got[finite], expected[finite], rtol=0, atol=1e-4)
        assert torch.equal(got.argmax(dim=-1), expected.argmax(dim=-1))
        if member.target.restricted:
            assert answer.dropped.tokens == len(expected)
            torch.testing.assert_close(answer.dropped.mass.double(), dropped.sum(), rtol=1e-4, atol=1e-5)
        else:
            assert answer.dropped is None
    assert member.target.restricted or leave_out == 0


def test_some_rows_are_asked_for_and_no_logits_are_made_before_them(folders):
    folder = folders("marian")
    dictionaries = tuple(map(dictionary_of, folder.vocabularies()))
    teacher = OnlineTeacher([fit_folder(folder, Languages(), dictionaries, "refuse")])
    batch = batch_of(folder, dictionaries)
    rows = rows_of(batch)
    whole = teacher.answer(batch, Request(rows, torch.float32)).distribution
    head, features = teacher.answer(batch, Request(rows[3:9], torch.float32)).distribution.product
    assert features.shape == (6, 16) and head.weight.shape == (len(dictionaries[1]), 16)
    torch.testing.assert_close(head(features), whole.logits[3:9], rtol=1e-5, atol=1e-5)


def test_the_hash_is_of_all_files_that_matter(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders("marian").path, copy)
    before = folder_sha256(str(copy))
    (copy / "README.md").write_text("notes")
    assert folder_sha256(str(copy)) == before == folders("marian").sha256
    with open(copy / "vocab.json", "a") as file:
        file.write(" ")
    assert folder_sha256(str(copy)) != before
    with pytest.raises(KDPluginError, match="sha256 of its files is .*, expected"):
        Folder(str(copy), before)


@pytest.mark.parametrize(
    "kind,languages,named",
    [
        ("nllb", (None, "deu_Latn"), "several languages. Remedy: --teacher-source-lang"),
        ("nllb", ("eng_Latn", None), "several languages. Remedy: --teacher-target-lang"),
        ("nllb", ("en", "deu_Latn"), "--teacher-source-lang en: .* does not know this language.*eng_Latn"),
        ("nllb", ("eng_Latn", "▁the"), "--teacher-target-lang ▁the: .* does not know this language"),
        ("m2m100", ("en", "deu_Latn"), "--teacher-target-lang deu_Latn: .* does not know this language.*de"),
        ("mbart50", ("en_XX", "de"), "--teacher-target-lang de: .* does not know this language.*de_DE"),
        ("madlad", (None, "eo"), "--teacher-target-lang eo: .*de, fr"),
        ("t5", ("de", "en"), "--teacher-source-lang de: .*own codes: en"),
        ("marian, several targets", (None, None), "--teacher-target-lang with one of its codes: deu, fra"),
    ],
)
def test_wrong_and_missing_languages_are_refused(kind, languages, named, folders):
    with pytest.raises(KDPluginError, match=named):
        folders(kind).layout(Languages(*languages))


def test_symbols_that_the_teacher_lacks_are_refused_or_masked(folders):
    folder = folders("marian")
    dictionaries = [dictionary_of(vocabulary) for vocabulary in folder.vocabularies()]
    for dictionary in dictionaries:
        dictionary.add_symbol("of-its-own")
        dictionary.add_symbol("madeupword0000")  # of fairseq's own, which no text has
    with pytest.raises(KDPluginError, match=r"source vocabulary lacks 1 of the student's 20\d symbols: 'of-its-own'"):
        fit_folder(folder, Languages(), tuple(dictionaries), "refuse")
    member = fit_folder(folder, Languages(), tuple(dictionaries), "ignore")
    batch = batch_of(folder, dictionaries)
    batch["net_input"]["src_tokens"][0, -2] = dictionaries[0].index("of-its-own")
    logits = OnlineTeacher([member]).answer(batch, Request(rows_of(batch), torch.float32)).distribution.logits
    lacking = [dictionaries[1].index(symbol) for symbol in ("<s>", "of-its-own", "madeupword0000")]
    assert sorted(lacking) == member.target.missing.tolist()
    assert logits[:, lacking].isneginf().all() and logits.isfinite().sum() == logits.size(0) * (logits.size(1) - 3)
    assert member.source_indices[dictionaries[0].index("of-its-own")] == folder.tokenizer.unk_token_id


def test_much_dropped_mass_is_said_once(folders, caplog):
    folder = folders("nllb")
    source, target = folder.vocabularies()
    dictionaries = dictionary_of(source), dictionary_of(target, 150)
    teacher = OnlineTeacher([fit_folder(folder, Languages(*KINDS["nllb"]), dictionaries, "refuse")])
    batch = batch_of(folder, dictionaries)
    with caplog.at_level(logging.WARNING):
        for _ in range(12):
            teacher.answer(batch, Request(rows_of(batch), torch.float32))
    (said,) = [record.message for record in caplog.records if "teacher_dropped" in record.message]
    assert "leave out" in said and "Remedy: " in said


def broken(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder.path, copy)
    change(copy)
    return str(copy)


def edit_config(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def pickled(folder):
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def rewrite(edit):
    def change(folder):
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def poison(weights):
    weights["model.decoder.layers.1.fc2.bias"][3] = torch.nan


@pytest.mark.parametrize(
    "change,named",
    [
        (pickled, r"weights are pickled \(pytorch_model.bin\).*save_pretrained"),
        (lambda folder: (folder / "model.safetensors").unlink(), "it has no weights"),
        (edit_config(model_type="bert"), "of the type bert, which is not supported"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "transformers cannot open it"),
        (lambda folder: (folder / "vocab.json").unlink(), "transformers cannot open it"),
        (rewrite(lambda w: w.pop("model.decoder.layers.1.fc2.bias")), "lacks 1 tensors.*layers.1.fc2.bias"),
        (rewrite(lambda w: w.update(adapter=torch.zeros(2))), "has 1 tensors.*adapter"),
        (rewrite(poison), "NaN or infinite values; the first is model.decoder.layers.1.fc2.bias"),
        (edit_config(auto_map={"AutoConfig": "evil.Config"}), None),
    ],
)
def test_damaged_and_foreign_folders_are_refused_in_words(change, named, folders, tmp_path):
    path = broken(folders("marian"), tmp_path, change)
    (tmp_path / "copy" / "evil.py").write_text("raise SystemExit('code of the folder was run')")
    if named is None:
        assert Folder(path).parameters == folders("marian").parameters
        return
    with pytest.raises(KDPluginError, match=named):
        Folder(path)


@pytest.mark.parametrize(
    "kind,flags,line,command",
    [
        ("marian", [], "languages          one direction", "--teacher-sha256 {sha256} \\\n  --criterion"),
        ("nllb", [], "source-lang and --teacher-target-lang, from ace_Arab", "source-lang CODE --teacher-target"),
        ("nllb", ["-s", "eng_Latn", "-t", "deu_Latn"], "eng_Latn to deu_Latn", "eng_Latn --teacher-target-lang deu_L"),
        ("madlad", [], "--teacher-target-lang, from de, fr", "{sha256} \\\n  --teacher-target-lang CODE"),
        ("nllb", ["-s", "en", "-t", "deu_Latn"], "FAIL  languages", None),
    ],
)  # fmt: skip
def test_doctor_says_what_a_folder_is(kind, flags, line, command, folders, capsys):
    status = cli.main(["doctor", "--teacher", folders(kind).path, *flags])
    said = capsys.readouterr().out
    assert folders(kind).sha256 in said and line in said and status == (command is None)
    assert command is None or command.format(sha256=folders(kind).sha256) in said


@pytest.mark.parametrize("kind", ["nllb", "marian", "madlad"])
def test_a_routed_sentence_reaches_the_folder_without_the_students_tag(kind, folders):
    """The folder adds its own language codes; sentences of other languages are not sent to it."""
    folder = folders(kind)
    dictionaries = tuple(map(dictionary_of, folder.vocabularies()))
    plain = batch_of(folder, dictionaries)
    for dictionary in dictionaries:
        dictionary.add_symbol("__to_german__")
    member = fit_folder(folder, Languages(*KINDS[kind]), dictionaries, "refuse", unsaid=["__to_german__"])
    tag = dictionaries[0].index("__to_german__")
    samples = []
    for number, index in enumerate(plain["id"].tolist()):
        both = plain["net_input"]["src_tokens"], plain["target"]
        source, target = (tokens[number][tokens[number].ne(1)] for tokens in both)
        source = torch.cat([torch.tensor([tag]), source]) if index % 2 == 0 else source
        samples.append({"id": index, "source": source, "target": target})
    batch = collate(samples, 1, 2)
    batch[WAYS] = [0 if index % 2 == 0 else -1 for index in batch["id"].tolist()]
    way = Way("__to_german__", 0, Tags(("__to_german__",)))
    data = Data(Sides([1, 1], [2, 2], [True, False]), len(dictionaries[1]))
    teacher = RoutedTeacher([Expert("__to_german__", OnlineTeacher([member]), False)], [way], {}, data)
    rows = rows_of(batch)
    covered = teacher.covered(batch, rows, training=True)
    answer = teacher.answer(batch, Request(rows[covered], torch.float32))
    got = torch.log_softmax(answer.distribution.logits.double(), dim=-1)
    taught = {"id": torch.tensor([index for index in batch["id"].tolist() if index % 2 == 0])}
    expected, _ = expected_lprobs(folder, kind, member, taught)
    finite = torch.isfinite(expected)
    assert torch.equal(torch.isfinite(got), finite) and not finite[:, dictionaries[1].index("__to_german__")].any()
    torch.testing.assert_close(got[finite], expected[finite], rtol=0, atol=1e-4)
