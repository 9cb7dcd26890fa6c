import errno
import importlib
import os
import subprocess
import sys
import types

import pytest

import kd_plugin
from kd_plugin import cli
from kd_plugin.cli import verbs
from kd_plugin.errors import KDPluginError
from tests.support import ROOT


@pytest.fixture
def verb_that(monkeypatch):
    """Adds the verb `work`, whose run() is the given function."""

    def add(run):
        module = types.ModuleType("kd_plugin_test_verb")
        module.add_arguments = lambda parser: parser.add_argument("--size", type=int, default=1)
        module.run = run
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.VERBS, "work", verbs.Verb("work for a test", module.__name__))

    return add


def test_path_prints_the_package_directory_alone(capsys):
    assert cli.main(["path"]) == 0
    assert capsys.readouterr().out == os.path.dirname(os.path.abspath(kd_plugin.__file__)) + "\n"


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"kd-plugin {kd_plugin.__version__}\n"


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for name, verb in cli.VERBS.items():
        assert name in text and verb.help.split()[0] in text and verb.help.split()[0].islower()


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_keeps_the_contract_of_the_table(name, capsys):
    assert callable(importlib.import_module(cli.VERBS[name].module).run)
    with pytest.raises(SystemExit) as exit_info:
        cli.main([name, "--help"])
    assert exit_info.value.code == 0
    assert f"kd-plugin {name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["paht"], ["path", "--unknown"], ["--unknown"]])
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "usage: kd-plugin" in capsys.readouterr().err


def test_only_the_module_of_the_chosen_verb_is_imported(verb_that, monkeypatch):
    verb_that(lambda args: args.size)
    monkeypatch.setitem(cli.VERBS, "other", verbs.Verb("cannot be imported", "kd_plugin_no_such_module"))
    assert cli.main(["work", "--size", "3"]) == 3


def test_a_refusal_is_one_line_without_traceback(verb_that, capsys):
    def refuse(args):
        raise KDPluginError("teacher.pt: is damaged. Remedy: copy it again")

    verb_that(refuse)
    assert cli.main(["work"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "kd-plugin: error: teacher.pt: is damaged. Remedy: copy it again\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),  # torch
        RuntimeError("CUDA failed with error out of memory"),  # CTranslate2
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
    ],
)
def test_too_little_memory_is_said_with_what_helps(verb_that, capsys, error):
    def fail(args):
        raise error

    verb_that(fail)
    assert cli.main(["work"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(error) in message and "--max-tokens" in message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_said_with_what_helps(verb_that, capsys, number):
    def fail(args):
        raise OSError(number, os.strerror(number), "out/.lock")

    verb_that(fail)
    assert cli.main(["work"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "work: out/.lock: " in message and "Remedy: free some space" in message


def test_other_errors_keep_their_traceback(verb_that):
    def fail(args):
        raise RuntimeError("a defect")

    verb_that(fail)
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["work"])


# None of these modules can be imported, which Python itself marks so
BLOCKED = "import sys; sys.modules.update(dict.fromkeys({modules})); sys.argv[0] = 'kd-plugin'; "


def _without(modules, *arguments):
    """`kd-plugin ARGUMENTS` where the modules cannot be imported."""
    code = BLOCKED.format(modules=modules) + "from kd_plugin.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=str(ROOT), capture_output=True, text=True)


@pytest.mark.parametrize("arguments, status", [(["path"], 0), (["--version"], 0), (["--help"], 0), ([], 2)])
def test_what_the_command_says_of_itself_needs_no_package(arguments, status):
    done = _without(["torch", "fairseq", "numpy", "sacrebleu", "sentencepiece"], *arguments)
    assert done.returncode == status and (done.stdout or done.stderr), done.stderr


@pytest.mark.parametrize("verb", [name for name, verb in cli.VERBS.items() if not verb.fairseq])
def test_verbs_without_models_import_neither_torch_nor_fairseq(verb):
    assert _without(["torch", "fairseq"], verb, "--help").returncode == 0


def test_they_work_without_torch_too(tmp_path):
    table = tmp_path / "table.tsv"
    table.write_text("Ein Hund.\tA dog.\nEin Hund.\tDog a.\nEine Katze.\tA cat.\n")
    packages = ["torch", "fairseq"]
    imported, chosen, kept = (str(tmp_path / name) for name in ("imported", "chosen", "kept"))
    for arguments in (
        ["import", str(table), "-s", "de", "-t", "en", "--output", imported],
        ["select", imported, "--by", "mbr", "--output", chosen],
        ["filter", chosen, "--output", kept, "--text", str(tmp_path / "text")],
    ):
        done = _without(packages, *arguments)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "text.de").read_text() == "Ein Hund.\nEine Katze.\n"


WORKER = """
import sys
sys.argv[1:] = [{verb!r}]
from kd_plugin.runners import local
def make():
    return lambda module: module in sys.modules
if __name__ == "__main__":
    sys.argv[0] = "kd-plugin"
    print(list(local.mapped([(0, "fairseq")], make, 2)))
"""


@pytest.mark.parametrize("verb, found", [("select", False), ("score", True)])
def test_worker_processes_import_fairseq_for_verbs_with_models_alone(verb, found, tmp_path):
    script = tmp_path / "kd-plugin.py"
    script.write_text(WORKER.format(verb=verb))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.stdout == f"[(0, {found})]\n", done.stderr


def test_the_losses_without_fairseq_leave_torch_alone():
    code = BLOCKED.format(modules=["fairseq"]) + (
        "sys.argv[0] = 'a program'; import torch; before = dict(vars(torch.serialization)); "
        "allowed = getattr(torch.serialization, 'get_safe_globals', list)(); import kd_plugin.losses; "
        "assert dict(vars(torch.serialization)) == before; "
        "assert getattr(torch.serialization, 'get_safe_globals', list)() == allowed"
    )
    subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), check=True)


@pytest.mark.parametrize(
    "verb, options, status",
    [("path", [], 0), ("doctor", [], 1), ("cache", ["DATA", "--teacher-path", "T.pt", "--cache-dir", "CACHE"], 1)],
)
def test_without_fairseq_the_command_still_answers(verb, options, status):
    """None in sys.modules is how Python itself marks a module that cannot be imported."""
    code = "import sys; sys.modules['fairseq'] = None; from kd_plugin.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, verb, *options], cwd=str(ROOT), capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    if verb == "doctor":
        assert "FAIL" in done.stdout and "pip install 'kd-plugin[fairseq]'" in done.stdout
    if verb == "cache":
        assert "kd-plugin: error: cache needs fairseq" in done.stderr
