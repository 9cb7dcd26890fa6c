"""A file with a model is hashed and unpickled once by each verb, and its weights are in memory once."""

import collections
import hashlib
import os
import re
import weakref
from pathlib import Path

import pytest
import torch

import kd_plugin
from kd_plugin.checkpoints.open import open_checkpoint
from kd_plugin.cli import main
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import sha256_of
from kd_plugin.tasks.distillation_translation import DistillationTranslationConfig, DistillationTranslationTask
from tests.support import MODEL, make_checkpoint
from tests.unit.conftest import WORDS
from tests.unit.data_folders import binarise
from tests.unit.translation_folders import record, write_folder

LANGS = ["-s", "en", "-t", "de"]
PAIRS = [([4 + i, 5 + i], [6 + i]) for i in range(8)]
TEXT = "".join(f"{WORDS[i]} {WORDS[i + 1]}\n" for i in range(8))


@pytest.fixture
def folder(tmp_path):
    """Two teachers, dictionaries, binarised data, a text and translations of it."""
    for split in ("train", "valid"):
        binarise(tmp_path, WORDS, split, PAIRS)
    for name, seed in (("1.pt", 1), ("2.pt", 2)):
        make_checkpoint(tmp_path / name, tmp_path, *LANGS, *MODEL, seed=seed)
    (tmp_path / "text.en").write_text(TEXT)
    write_folder(tmp_path / "translations", [record(i, line, line) for i, line in enumerate(TEXT.splitlines())])
    return tmp_path


@pytest.fixture
def counted(folder, monkeypatch):
    """By name of a teacher's file: how often it was unpickled, and how often hashed as a whole."""
    names = {sha256_of(folder / name): name for name in ("1.pt", "2.pt")}
    paths = {os.path.realpath(folder / name): name for name in names.values()}
    unpickled, hashed = collections.Counter(), collections.Counter()
    load, sha256 = torch.load, hashlib.sha256

    def counting_load(file, *args, **kwargs):
        name = paths.get(os.path.realpath(getattr(file, "name", file)))
        if name:
            unpickled[name] += 1
        return load(file, *args, **kwargs)

    class CountingHash:
        def __init__(self, *content):
            self._hash = sha256(*content)
            self.update, self.digest = self._hash.update, self._hash.digest

        def hexdigest(self):
            found = self._hash.hexdigest()
            hashed.update([names[found]] if found in names else [])
            return found

    monkeypatch.setattr(torch, "load", counting_load)
    monkeypatch.setattr(hashlib, "sha256", CountingHash)
    return unpickled, hashed


def verbs(folder):
    one, two = folder / "1.pt", folder / "2.pt"
    ensemble, twice = f"{one}:{two}", f"{one}:{one}"
    decode = ["decode", "--input", folder / "text.en", "--remove-bpe", "none", "--output", folder / "out"]
    score = ["score", folder / "translations", "--output", folder / "out", "--path"]
    cache = ["cache", folder, "--subset", "train,valid", "--k", 4, "--cache-dir", folder / "out", "--teacher-path"]
    export = ["export", one, "--output", folder / "out", "--check", folder / "text.en", "--check-threshold", 0]
    evaluate = ["evaluate", "--remove-bpe", "none", "--output", folder / "out", "--max-len-b", 5]
    evaluate += ["--test", f"tiny={folder / 'text.en'},{folder / 'text.en'}", "--bootstrap", 0, "--model"]
    return {
        "decode": [*decode, "--path", one],
        "decode an ensemble": [*decode, "--path", ensemble],
        "decode with one twice": [*decode, "--path", twice],
        "decode with CTranslate2": [*decode, "--path", one, "--engine", "ctranslate2"],
        "score": [*score, one],
        "score with an ensemble": [*score, ensemble],
        "cache of two splits": [*cache, one],
        "cache of one twice": [*cache, twice],
        "export to CTranslate2": [*export, "--format", "ctranslate2"],
        "export to fairseq": [*export, "--format", "fairseq"],
        "evaluate": [*evaluate, f"one={one}", "--model", f"two={two}"],
        "doctor": ["doctor", "--teacher", one],
        "doctor of one twice": ["doctor", "--teacher", twice],
    }


NAMES = [
    "decode", "decode an ensemble", "decode with one twice", "decode with CTranslate2", "score",
    "score with an ensemble", "cache of two splits", "cache of one twice", "export to CTranslate2",
    "export to fairseq", "evaluate", "doctor", "doctor of one twice",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_reads_a_model_once(name, folder, counted, capsys):
    if "CTranslate2" in name:
        pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    arguments = verbs(folder)[name]
    languages = [] if name.startswith("cache") else LANGS
    status = main([str(argument) for argument in [*arguments, *languages]])
    if not name.startswith("doctor"):  # which also judges the machine
        assert status == 0, capsys.readouterr().err
    else:
        assert "its weights fit" in capsys.readouterr().out
    files = ["1.pt", "2.pt"] if "ensemble" in name or name == "evaluate" else ["1.pt"]
    unpickled, hashed = counted
    assert unpickled == dict.fromkeys(files, 1) and hashed == dict.fromkeys(files, 1)


@pytest.mark.parametrize("teachers", [["1.pt"], ["1.pt", "2.pt"], ["1.pt", "1.pt"], ["1.pt", "link.pt"]])
@pytest.mark.parametrize("pinned", [False, True])
def test_training_reads_a_teacher_once(teachers, pinned, folder, counted):
    (folder / "link.pt").symlink_to(folder / "1.pt")
    hashes = ":".join(hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in teachers) if pinned else None
    unpickled, hashed = counted
    hashed.clear()
    path = ":".join(str(folder / name) for name in teachers)
    cfg = DistillationTranslationConfig(
        data=str(folder), source_lang="en", target_lang="de", teacher_path=path, teacher_sha256=hashes
    )
    task = DistillationTranslationTask.setup_task(cfg)
    task._load_teacher()
    files = {"1.pt", *teachers} - {"link.pt"}
    assert unpickled == dict.fromkeys(files, 1) and hashed == dict.fromkeys(files, 1)
    assert len(task.teacher.members) == len(teachers)


def test_what_was_read_is_freed_when_the_model_is_built_and_read_again_when_it_was_let_go(folder, counted):
    checkpoint = open_checkpoint(str(folder / "1.pt"))
    weight = weakref.ref(checkpoint._file.weights["encoder.embed_tokens.weight"])
    assert weight() is not None
    before = checkpoint.model.encoder.embed_tokens.weight.clone()
    assert weight() is None and checkpoint.model is checkpoint.model
    checkpoint.let_go()
    assert torch.equal(checkpoint.model.encoder.embed_tokens.weight, before)
    assert counted[0] == {"1.pt": 2} and counted[1] == {"1.pt": 1}


def test_another_file_under_the_same_name_is_not_taken_for_the_model_that_was_let_go(folder):
    checkpoint = open_checkpoint(str(folder / "1.pt"))
    checkpoint.let_go()
    os.replace(folder / "2.pt", folder / "1.pt")
    with pytest.raises(KDPluginError, match=r"1\.pt: sha256 is .*, expected"):
        checkpoint.model  # noqa: B018  it is built


def test_nothing_here_replaces_parts_of_other_modules_by_mock():
    package = Path(kd_plugin.__file__).parent
    assert [path for path in package.rglob("*.py") if re.search(r"\bmock\b", path.read_text(encoding="utf-8"))] == []


def test_checkpoints_know_nothing_of_who_uses_them():
    above = "cli|tasks|criterions|distill|losses|teachers|cache|curate|decoding|evaluation|export|report|runners"
    folder = Path(kd_plugin.__file__).parent / "checkpoints"
    imports = [line for path in folder.glob("*.py") for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line for line in imports if re.match(rf"\s*from kd_plugin\.({above})\b", line)] == []
