"""Teachers of fairseq's multilingual tasks, which add symbols that no dictionary file holds."""

import argparse
import subprocess

import pytest
import torch
from fairseq import tasks
from fairseq.data import Dictionary

from kd_plugin import cli
from kd_plugin.checkpoints.language_tokens import appended_symbols, languages_of
from kd_plugin.checkpoints.read import read_checkpoint
from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.fairseq import load_teacher
from tests.support import MODEL, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.test_teachers import student_task

MULTI = ["--task", "translation_multi_simple_epoch", *MODEL]
TWO_WAYS = ["--lang-pairs", "en-de,de-en", "--langs", "fr,en,de"]
BART = ["--task", "translation_from_pretrained_bart", *MODEL, "--langs", "en,de", "-s", "en", "-t", "de"]
TASKS = {
    "langs": [*MULTI, *TWO_WAYS, "--encoder-langtok", "tgt", "--decoder-langtok"],
    "pairs": [*MULTI, "--lang-pairs", "en-de"],
    "mbart style": [*MULTI, *TWO_WAYS, "--lang-tok-style", "mbart"],
    "specs": [*MULTI, *TWO_WAYS, "--langtoks-specs", "main,mono_dae", "--extra-data", "{'mono_dae': 'x'}"],
    "file": [*MULTI, "--lang-pairs", "en-de", "--lang-dict", "languages.txt"],
    "bart": BART,
}
EXPECTED = {
    "langs": ["__fr__", "__en__", "__de__"],
    "pairs": ["__de__", "__en__"],
    "mbart style": ["[fr]", "[en]", "[de]", "<mask>"],
    "specs": [*(f"__{lang}{end}__" for end in ("", "_dae") for lang in ("fr", "en", "de")), "<mask>"],
    "file": ["__de__", "__uk__", "__en__"],
    "bart": ["[en]", "[de]", "<mask>"],
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes an untrained checkpoint of a multilingual task, and gives its path and model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "languages.txt").write_text("de\nuk\n\nen\n")
    folder = write_dictionaries(tmp_path / "data", WORDS)

    def of(*arguments):
        path = folder / "multi.pt"
        return path, make_checkpoint(path, folder, *arguments)

    return of


@pytest.mark.parametrize("name", TASKS)
def test_appended_symbols_are_those_of_the_task_in_its_order(name, make):
    path, _ = make(*TASKS[name])
    cfg = read_checkpoint(str(path))["cfg"]
    cfg.task.source_lang, cfg.task.target_lang = "en", "de"
    dictionary = Dictionary.load(str(path.parent / "dict.en.txt"))
    before = list(dictionary.symbols)
    assert appended_symbols(cfg.task, dictionary) == EXPECTED[name] and dictionary.symbols == before
    assert tasks.setup_task(cfg.task).source_dictionary.symbols == before + EXPECTED[name]


def test_the_remedy_is_right_to_the_letter(make, tmp_path, capsys, caplog):
    """The lines that it says to append, appended as it says, make the teacher's indices those of its training."""
    path, model = make(*TASKS["langs"])
    with pytest.raises(KDPluginError) as refused:
        load_teacher(str(path), student_task(path.parent))
    message = str(refused.value)
    assert "translation_multi_simple_epoch adds 3 symbols" in message and "dict.en.txt (32 symbols)" in message
    assert "__fr__ __en__ __de__" in message and "source sentences with that of the target language" in message
    command = message[message.index("printf") : message.index(" >> DICT")]
    for language in ("en", "de"):
        subprocess.run(f"{command} >> dict.{language}.txt", shell=True, check=True, cwd=str(path.parent))
    task = student_task(path.parent)
    loaded = load_teacher(str(path), task)
    assert "must begin with a language token (__LANG__)" in caplog.text
    assert [task.source_dictionary.index(token) for token in EXPECTED["langs"]] == [32, 33, 34]
    sentence = torch.tensor([[34, 5, 6, 2]])
    inputs = {"src_tokens": sentence, "src_lengths": torch.tensor([4]), "prev_output_tokens": sentence}
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(**inputs)[0], model(**inputs)[0])


@pytest.mark.parametrize("verb", ["doctor", "decode"])
def test_verbs_say_what_is_missing_and_not_that_it_is_of_another_training(verb, make, tmp_path, capsys):
    path, _ = make(*TASKS["mbart style"])
    (tmp_path / "input.en").write_text("word1\n")
    decode = ["--input", "input.en", "--path", str(path), "--remove-bpe", "none", "--output", "out"]
    arguments = {"doctor": ["--teacher", str(path)], "decode": decode}[verb]
    assert cli.main([verb, *arguments, "-s", "en", "-t", "de"]) == 1
    output = capsys.readouterr()
    message = output.out + output.err
    assert "printf '%s 1\\n' '[fr]' '[en]' '[de]' '<mask>' >> DICT" in message
    assert "another training" not in message and "Traceback" not in message


def test_a_wrong_dictionary_is_not_taken_for_one_without_the_tokens(make):
    path, _ = make(*TASKS["langs"])
    write_dictionaries(path.parent, WORDS[:-2])
    with pytest.raises(
        KDPluginError, match="With them there are 33, but the model has 35. Remedy: the dictionary files"
    ):
        load_teacher(str(path), student_task(path.parent))


@pytest.mark.parametrize("arguments", [BART, [*TASKS["langs"], "--lang-tok-replacing-bos-eos"]])
def test_tokens_in_the_place_of_the_end_of_sentence_are_refused_whatever_the_dictionary(arguments, make):
    path, _ = make(*arguments)
    for more in ("", "[en] 1\n[de] 1\n<mask> 1\n"):
        for language in ("en", "de"):
            with open(str(path.parent / f"dict.{language}.txt"), "a") as file:
                file.write(more)
        with pytest.raises(KDPluginError, match=r"fairseq-generate --task translation_\w+, then kd-plugin import"):
            load_teacher(str(path), student_task(path.parent))


def test_doctor_names_no_dictionary_of_a_language_none(make, capsys):
    path, _ = make(*TASKS["langs"])
    assert cli.main(["doctor", "--teacher", str(path)]) == 1
    output = capsys.readouterr().out
    assert "dict.None" not in output and "its languages are not in the checkpoint" in output
    assert "--source-lang LANG --target-lang LANG" in output


@pytest.mark.parametrize(
    "fields,languages",
    [
        ({"source_lang": "en", "target_lang": "de", "lang_pairs": ["a-b"]}, ["en", "de"]),
        ({"source_lang": None, "target_lang": None, "lang_pairs": ["en-de"]}, ["en", "de"]),
        ({"source_lang": None, "target_lang": None, "lang_pairs": "en-de"}, ["en", "de"]),
        ({"source_lang": None, "target_lang": None, "lang_pairs": ["en-de", "de-en"]}, [None, None]),
        ({"source_lang": "en"}, ["en", None]),
        ({}, [None, None]),
    ],
)
def test_languages_are_the_tasks_or_those_of_its_only_pair(fields, languages):
    assert languages_of(argparse.Namespace(**fields)) == languages


def test_decode_refuses_sentences_without_the_token_that_the_teacher_knows_them_with(make, tmp_path, capsys):
    """Without it a teacher of several languages answers in any of them, and nobody notices."""
    path, _ = make(*TASKS["langs"])
    for language in ("en", "de"):
        with open(str(path.parent / f"dict.{language}.txt"), "a") as file:
            file.write("__fr__ 1\n__en__ 1\n__de__ 1\n")
    flags = ["--path", str(path), "--remove-bpe", "none", "-s", "en", "-t", "de", "--max-len-b", "4"]
    text = tmp_path / "input.en"
    text.write_text("__de__ word1 word2\nword3\n")
    assert cli.main(["decode", "--input", str(text), *flags, "--output", "refused"]) == 1
    message = capsys.readouterr().err
    assert "its source sentences must begin with __de__, but one begins with word3" in message
    assert not list((tmp_path / "refused").glob("*.jsonl"))
    text.write_text("__de__ word1 word2\n\n__de__ word3\n")
    assert cli.main(["decode", "--input", str(text), *flags, "--output", "decoded"]) == 0
