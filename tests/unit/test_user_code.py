"""Teachers of other plugins and forks: with their code named they answer as the fork's own models, in every verb."""

import argparse
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch

from kd_plugin.cache.store import open_stores
from kd_plugin.checkpoints.open import open_checkpoint
from kd_plugin.checkpoints.user_code import code_sha256, import_user_code
from kd_plugin.cli import main
from kd_plugin.errors import KDPluginError
from kd_plugin.tasks.distillation_translation import DistillationTranslationConfig, DistillationTranslationTask
from kd_plugin.teachers.opening import open_teacher
from tests.support import asked, load
from tests.unit.conftest import WORDS
from tests.unit.forks import FILES, KINDS, MARK, PACKAGE, forget, make_teacher, write_fork
from tests.unit.test_architectures import (
    LANGS,
    PAD,
    SOURCES,
    TARGETS,
    batch,
    data,  # noqa: F401  a fixture
    indices,
    log_probabilities,
    stock_task,
)
from tests.unit.translation_folders import record, records_of, write_folder

VOCABULARY = len(WORDS) + 4


class Fork(argparse.Namespace):
    """folder: of its code. teachers: by kind, (path, model in float64)"""


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("fork")
    code = write_fork(folder / PACKAGE)
    teachers = {}
    for number, kind in enumerate(KINDS):
        path = data / f"fork{number}.pt"
        teachers[kind] = path, make_teacher(kind, path, data, code)
    return Fork(folder=code, teachers=teachers)


@pytest.fixture
def fork(made):
    """Nobody has imported it yet."""
    forget()
    yield made
    forget()


def run(*arguments):
    return main(list(map(str, arguments)))


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("kd-plugin: error:"))
    assert "Remedy: " in line
    return line


def reference(model, source, target):
    """Log-probabilities of the student's symbols, in the fork's own model: (tokens, VOCABULARY).

    It computes in float64 up to its logits: fairseq's softmax is always in float32.
    """
    return torch.log_softmax(log_probabilities(model, source, target)[:, :VOCABULARY], dim=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_the_student_it_answers_as_its_own_model(fork, data, kind):  # noqa: F811
    path, model = fork.teachers[kind]
    sample = batch()
    rows = sample["target"].flatten().ne(PAD).nonzero().squeeze(1)
    teacher = open_teacher(stock_task(data), str(path), None, "{}", None, "auto", user_dir=str(fork.folder))
    found = asked(teacher, sample, rows, torch.float32).logits.log_softmax(-1)
    expected = [reference(model, source, target) for source, target in zip(SOURCES, TARGETS)]
    assert found.shape[1] == VOCABULARY
    torch.testing.assert_close(found, torch.cat([expected[i] for i in sample["id"]]), rtol=1e-4, atol=1e-4)


def test_its_languages_may_have_other_names(fork, data, tmp_path):  # noqa: F811
    """As IndicTrans2's, SRC and TGT: the student's are those of its own data."""
    for side, lang in (("SRC", "en"), ("TGT", "de")):
        shutil.copy(data / f"dict.{lang}.txt", tmp_path / f"dict.{side}.txt")
    model = make_teacher("architecture", tmp_path / "t.pt", tmp_path, fork.folder, languages=("SRC", "TGT"))
    assert load(tmp_path / "t.pt")["cfg"]["task"]["source_lang"] == "SRC"
    sample = batch()
    rows = sample["target"].flatten().ne(PAD).nonzero().squeeze(1)
    given = {"user_dir": str(fork.folder)}
    teacher = open_teacher(stock_task(data), str(tmp_path / "t.pt"), None, "{}", None, "auto", **given)
    expected = torch.cat([reference(model, SOURCES[i], TARGETS[i]) for i in sample["id"]])
    found = asked(teacher, sample, rows, torch.float32).logits.log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "workers"), [("architecture", 1), ("model class", 1), ("task", 2)])
def test_cache(fork, data, tmp_path, kind, workers):  # noqa: F811
    """In this process and in others, which import the code themselves."""
    path, model = fork.teachers[kind]
    flags = ["--k", VOCABULARY, "--subset", "valid", "--shard-tokens", 30, "--workers", workers]
    teacher = ["--teacher-path", path, "--teacher-user-dir", fork.folder]
    assert run("cache", data, *teacher, "--cache-dir", tmp_path / "cache", *flags) == 0
    (store,) = open_stores(tmp_path / "cache")
    assert len(store.manifest.shards) > 1
    records = store.read(np.arange(store.manifest.tokens))
    stored = torch.empty(len(records.ids), VOCABULARY)
    stored.scatter_(1, torch.from_numpy(records.ids), torch.from_numpy(records.lprobs))
    expected = torch.cat([reference(model, *pair) for pair in zip(SOURCES, TARGETS)])
    torch.testing.assert_close(stored, expected, rtol=2e-3, atol=2e-3)
    assert store.identity.teachers[0]["code"] == code_sha256(str(fork.folder))


def greedy(model, source, limit):
    """The fork's own model, a symbol at a time, in float64: text, and the mean log-probability of its symbols."""
    tokens, scores = [], []
    while len(tokens) <= limit:
        lprobs = log_probabilities(model, source, [WORDS[index - 4] for index in tokens])[-1]
        lprobs[[1, 3]] = -np.inf  # never written
        if len(tokens) == limit:
            lprobs[:2], lprobs[3:] = -np.inf, -np.inf
        index = int(lprobs.argmax())
        scores.append(float(lprobs[index]))
        if index == 2:
            break
        tokens.append(index)
    return " ".join(WORDS[index - 4] for index in tokens), sum(scores) / len(scores)


@pytest.mark.parametrize(("kind", "workers"), [("architecture, stored as flags", 1), ("model class", 2)])
def test_decode_and_score(fork, tmp_path, kind, workers):
    path, model = fork.teachers[kind]
    (tmp_path / "text").write_text("".join(" ".join(source) + "\n" for source in SOURCES))
    flags = ["--path", path, "--user-dir", fork.folder, "--workers", workers, *LANGS]
    decode = ["--beam", 1, "--unkpen", "inf", "--max-len-b", 4, "--shard-sentences", 3, "--remove-bpe", "none"]
    assert run("decode", "--input", tmp_path / "text", *flags, *decode, "--output", tmp_path / "decoded") == 0
    assert run("score", tmp_path / "decoded", *flags, "--workers", 1, "--output", tmp_path / "scored") == 0
    decoded, scored = records_of(tmp_path / "decoded"), records_of(tmp_path / "scored")
    assert {r.source for r in decoded} == {" ".join(source) for source in SOURCES}
    for one, other in zip(decoded, scored):
        (hypothesis,), (again,) = one.hypotheses, other.hypotheses
        text, score = greedy(model, one.source.split(), 4)
        assert (hypothesis.text, again.text) == (text, text)
        assert hypothesis.score == pytest.approx(score, abs=1e-4)
        target = text.split()
        lprobs = log_probabilities(model, one.source.split(), target)
        expected = float(lprobs[torch.arange(len(target) + 1), indices(target)].mean())
        assert again.score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["architecture", "task that needs its model's"])
def test_doctor_examines_it_and_says_how_to_train(fork, capsys, kind):
    path, _ = fork.teachers[kind]
    run("doctor", "--teacher", path, "--user-dir", fork.folder, "--json")  # which also judges the machine
    report = json.loads(capsys.readouterr().out)
    found = {check["name"]: check for check in report["checks"] if check["section"].startswith("teacher")}
    assert found["builds"]["value"] == "yes, and its weights fit" and found["builds"]["status"] == "ok"
    assert all(check["status"] != "FAIL" for check in found.values())
    if report["command"] is not None:
        assert f"--teacher-user-dir {fork.folder}" in report["command"]


def test_export_and_evaluate(fork, data, tmp_path):  # noqa: F811
    """What is a stock model by another name is exported as one, which nobody needs the fork for."""
    path, model = fork.teachers["architecture"]
    given = ["--user-dir", fork.folder, *LANGS]
    assert run("export", path, "--format", "fairseq", *given, "--output", tmp_path / "exported") == 0
    (tmp_path / "text").write_text("".join(" ".join(source) + "\n" for source in SOURCES))
    evaluate = ["evaluate", "--model", f"fork={path}", "--test", f"t={tmp_path / 'text'},{tmp_path / 'text'}"]
    evaluate += ["--remove-bpe", "none", "--bootstrap", 0, "--max-len-b", 4, "--beam", 1, *LANGS]
    assert run(*evaluate, "--user-dir", fork.folder, "--output", tmp_path / "fork") == 0
    forget()
    evaluate[2] = f"fork={tmp_path / 'exported' / 'model.pt'}"
    assert run(*evaluate, "--output", tmp_path / "stock") == 0
    texts = [(tmp_path / name / "translations" / "fork" / "t.txt").read_text() for name in ("fork", "stock")]
    assert texts[0] == texts[1] and len(set(texts[0].splitlines())) > 1


def test_exported_dictionaries_are_the_task_s(fork, tmp_path):
    path, _ = fork.teachers["task"]
    given = ["--user-dir", fork.folder, *LANGS]
    assert run("export", path, "--format", "fairseq", *given, "--output", tmp_path / "exported") == 0
    for lang in ("en", "de"):
        lines = (tmp_path / "exported" / f"dict.{lang}.txt").read_text().splitlines()
        assert [line.split()[0] for line in lines] == [*WORDS, "<mark0>", "<mark1>"]
    forget()
    state = load(tmp_path / "exported" / "model.pt")
    assert state["cfg"]["model"]["_name"] == "transformer" and state["cfg"]["task"]["_name"] == "translation"
    (tmp_path / "text").write_text("word1 word2\n")
    decode = ["decode", "--input", tmp_path / "text", "--path", tmp_path / "exported" / "model.pt", *LANGS]
    assert run(*decode, "--remove-bpe", "none", "--max-len-b", 3, "--output", tmp_path / "out") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_may_start_from_it_if_it_computes_what_fairseqs_transformer_does(fork, data, tmp_path, capsys, kind):  # noqa: F811
    path, model = fork.teachers[kind]
    command = ["init", path, "--user-dir", fork.folder, "--output", tmp_path / "student.pt", *LANGS]
    if kind == "model class":
        assert "1 other weights; the first is decoder.sharpness" in refusal(capsys, *command)
        return
    if kind.startswith("task"):  # its dictionaries are not those of the files
        assert "changes the dictionaries of its files" in refusal(capsys, *command)
        command += ["--dict-dir", data]
    assert run(*command) == 0
    forget()
    state = load(tmp_path / "student.pt")
    assert (
        state["cfg"]["model"]["_name"] == "transformer"
        and len(state["model"]["encoder.embed_tokens.weight"]) == len(WORDS) + 4
    )
    opened = open_checkpoint(str(tmp_path / "student.pt"), {"data": str(data)}, *LANGS[1::2])
    source, target = SOURCES[0], TARGETS[0]
    found = log_probabilities(opened.model.double(), source, target)
    wanted = reference(model, source, target)
    torch.testing.assert_close(torch.log_softmax(found, -1), wanted, atol=1e-5, rtol=1e-5)


VERBS = {
    "decode": ["decode", "--input", "{text}", "--path", "{path}", "--output", "{out}", *LANGS, "--remove-bpe", "none"],
    "score": ["score", "{translations}", "--path", "{path}", "--output", "{out}", *LANGS],
    "cache": ["cache", "{data}", "--teacher-path", "{path}", "--cache-dir", "{out}"],
    "evaluate": ["evaluate", "--model", "m={path}", "--test", "t={text},{text}", "--output", "{out}", *LANGS],
    "init": ["init", "{path}", "--output", "{out}/student.pt", *LANGS],
    "export": ["export", "{path}", "--format", "safetensors", "--output", "{out}", *LANGS],
}


def arguments(verb, path, data, tmp_path):  # noqa: F811
    (tmp_path / "text").write_text("word1 word2\n")
    if not (tmp_path / "translations").exists():
        write_folder(tmp_path / "translations", [record(0, "word1", "word2")])
    places = {name: tmp_path / name for name in ("text", "translations", "out")}
    return [argument.format(path=path, data=data, **places) for argument in VERBS[verb]]


@pytest.mark.parametrize("verb", VERBS)
def test_without_its_code_every_verb_says_what_is_missing(fork, data, tmp_path, capsys, verb):  # noqa: F811
    for kind in KINDS:
        if kind == "task":  # an architecture of fairseq's, with other dictionaries than the files: see below
            continue
        path = fork.teachers[kind][0]
        name = KINDS[kind][1]
        line = refusal(capsys, *arguments(verb, path, data, tmp_path))
        assert f"{path}: its architecture {name!r} is not registered here" in line
        assert "--teacher-user-dir in fairseq-train and kd-plugin cache, --user-dir in all other verbs" in line
        assert not list((tmp_path / "out").glob("*"))


def test_without_its_code_the_doctor_says_so_too(fork, capsys):
    path = fork.teachers["architecture"][0]
    assert run("doctor", "--teacher", path) == 1
    assert f"its architecture '{KINDS['architecture'][1]}' is not registered here" in capsys.readouterr().out
    assert "--user-dir: of no effect without --teacher" in refusal(capsys, "doctor", "--user-dir", fork.folder)


def test_a_task_that_changes_dictionaries_is_refused_without_its_code(fork, data, tmp_path, capsys):  # noqa: F811
    path = fork.teachers["task"][0]
    line = refusal(capsys, *arguments("decode", path, data, tmp_path))
    assert "its weights do not fit" in line and "torch.Size([34, 16])" in line
    assert f"its task 'marked_{MARK}', which may add to them, is not registered here" in line


def test_a_task_that_does_not_start_is_said_and_the_files_count(fork, data, tmp_path, capsys, caplog):  # noqa: F811
    """Here they lack its symbols, which is then an error."""
    broken = {**FILES, "marked_task.py": FILES["marked_task.py"].replace("dictionary.add_symbol", "dictionary.nothing")}
    other = write_fork(tmp_path / PACKAGE, broken)
    path = fork.teachers["task"][0]
    line = refusal(capsys, *arguments("decode", path, data, tmp_path), "--user-dir", other)
    assert "its weights do not fit" in line
    assert f"its task marked_{MARK} cannot be set up here" in caplog.text
    assert "has no attribute 'nothing'" in caplog.text


def other(tmp_path, name, **files):
    return write_fork(tmp_path / name, {f"{file}.py": content for file, content in files.items()})


BAD = {
    "missing": (lambda t: t / "nowhere", "there is no such folder"),
    "a file": (lambda t: other(t, f"a_{MARK}", __init__="") / "__init__.py", "is a file"),
    "no package": (lambda t: other(t, f"b_{MARK}", models_of="x = 1"), "is not a Python package"),
    "a name that Python has": (lambda t: other(t, "json", __init__=""), "the name json is taken by "),
    "a name that is installed": (lambda t: other(t, "sacrebleu", __init__=""), "the name sacrebleu is taken by "),
    "no name": (lambda t: other(t, f"my-{MARK}", __init__=""), "cannot import a package named"),
    "a missing module": (
        lambda t: other(t, f"c_{MARK}", __init__="from . import inner", inner="\nimport nowhere_to_be_found"),
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'; {folder}/inner.py, line 2",
    ),
    "an exception": (
        lambda t: other(t, f"d_{MARK}", __init__="1 / 0"),
        "ZeroDivisionError: division by zero; {folder}",
    ),
    "an exit": (lambda t: other(t, f"e_{MARK}", __init__="import sys\nsys.exit(0)"), "SystemExit: 0; {folder}"),
    "no Python": (
        lambda t: other(t, f"f_{MARK}", __init__="def:"),
        "SyntaxError: invalid syntax; {folder}/__init__.py",
    ),
    "an architecture that fairseq has": (
        lambda t: other(
            t,
            f"g_{MARK}",
            __init__="from fairseq.models import register_model_architecture as r\nr('transformer', 'transformer')(id)",
        ),
        "Cannot register duplicate model architecture (transformer)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused_in_words_before_any_work(fork, data, tmp_path, capsys, name):  # noqa: F811
    make, message = BAD[name]
    folder = make(tmp_path)
    for verb in VERBS if name in ("missing", "a missing module") else ["decode"]:
        flag = "--teacher-user-dir" if verb == "cache" else "--user-dir"
        given = arguments(verb, fork.teachers["architecture"][0], data, tmp_path)
        for _ in range(2):  # the second time it is no more imported than the first
            line = refusal(capsys, *given, flag, folder)
            assert f"{flag} {folder}: " in line and message.format(folder=folder) in line
            assert not list((tmp_path / "out").glob("*"))
    assert folder.name in ("json", "sacrebleu") or folder.name not in sys.modules


def test_two_folders_of_one_name(fork, tmp_path):
    import_user_code(str(fork.folder), "--user-dir")
    import_user_code(f"{fork.folder}/", "--user-dir")  # the same, and it is there already
    second = write_fork(tmp_path / "second" / PACKAGE)
    with pytest.raises(KDPluginError, match=f"the name {PACKAGE} is taken by {fork.folder}"):
        import_user_code(str(second), "--user-dir")


def test_several_folders_and_one_that_was_mended(fork, tmp_path, data):  # noqa: F811
    first = write_fork(tmp_path / f"first_{MARK}", {"__init__.py": "import missing_" + MARK})
    with pytest.raises(KDPluginError, match="No module named"):
        import_user_code(f"{first}:{fork.folder}", "--user-dir")
    (first / "__init__.py").write_text("value = 'of the mended one'\n")
    shutil.rmtree(first / "__pycache__", ignore_errors=True)
    import_user_code(f"{first}:{fork.folder}", "--user-dir")
    assert sys.modules[f"first_{MARK}"].value == "of the mended one" and PACKAGE in sys.modules


def test_folders_without_init_have_tasks_and_models(fork, data, tmp_path):  # noqa: F811
    """As fairseq reads such folders."""
    folder = write_fork(
        tmp_path / PACKAGE,
        {"models/architectures.py": FILES["architectures.py"], "tasks/marked_task.py": FILES["marked_task.py"]},
    )
    for kind in ("model class", "task"):
        path, model = fork.teachers[kind]
        teacher = open_teacher(stock_task(data), str(path), None, "{}", None, "auto", user_dir=str(folder))
        assert type(teacher.members[0].model).__name__ == type(model).__name__


def test_changed_code_is_another_teacher(fork, data, tmp_path, capsys):  # noqa: F811
    folder = shutil.copytree(fork.folder, tmp_path / PACKAGE)
    path = fork.teachers["model class"][0]
    flags = ["--path", path, "--user-dir", folder, "--num-shards", 2]
    score = ["score", tmp_path / "in", *flags, *LANGS, "--output", tmp_path / "out"]
    write_folder(tmp_path / "in", [record(0, "word1", "word2"), record(1, "word3", "word4")], shard_records=1)
    assert run(*score) == 0
    (folder / "architectures.py").write_text(FILES["architectures.py"].replace("* self.sharpness", "* 2"))
    forget()
    assert "with other options" in refusal(capsys, *score, "--shard-id", 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"teacher_cache": "cache"}, "--teacher-user-dir: has no effect on the answers in --teacher-cache"),
        ({}, "--teacher-user-dir has no effect without --teacher-path"),
    ],
)
def test_the_task_s_flag_is_refused_where_nothing_would_read_it(fork, data, flags, message):  # noqa: F811
    cfg = DistillationTranslationConfig(
        data=str(data), source_lang="en", target_lang="de", teacher_user_dir=str(fork.folder), **flags
    )
    with pytest.raises(KDPluginError, match=message):
        DistillationTranslationTask.setup_task(cfg)._load_teacher()
    assert PACKAGE not in sys.modules


def test_hugging_face_teachers_have_no_such_code(fork, data, tmp_path, capsys):  # noqa: F811
    pytest.importorskip("transformers")
    from tests.unit.huggingface_folders import make_folder

    folder = make_folder("marian", tmp_path / "hf")
    with pytest.raises(KDPluginError, match="--teacher-user-dir .*: is for fairseq checkpoints"):
        open_teacher(stock_task(data), str(folder), None, "{}", None, "auto", user_dir=str(fork.folder))
    given = ["--user-dir", fork.folder, "--output", tmp_path / "out"]
    for command in (
        ["vocabulary", folder, "-s", "en", "-t", "de", *given],
        ["evaluate", "--model", f"m={folder}", "--test", f"t={data / 'dict.en.txt'},{data / 'dict.de.txt'}", *given],
        ["decode", "--input", data / "dict.en.txt", "--path", folder, *LANGS, *given],
    ):
        assert "--user-dir: " in refusal(capsys, *command) and not list((tmp_path / "out").glob("*"))
    assert PACKAGE not in sys.modules


def test_the_task_opens_the_teacher_that_its_flags_name(fork, data):  # noqa: F811
    path, model = fork.teachers["model class"]
    cfg = DistillationTranslationConfig(
        data=str(data), source_lang="en", target_lang="de", teacher_path=str(path), teacher_user_dir=str(fork.folder)
    )
    task = DistillationTranslationTask.setup_task(cfg)
    task._load_teacher()
    assert type(task.teacher.members[0].model).__name__ == "SharpTransformer"
    assert os.path.basename(str(fork.folder)) in sys.modules
