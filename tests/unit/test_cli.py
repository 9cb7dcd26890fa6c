import importlib
import os
import subprocess
import sys
import types

import pytest

import kd_plugin
from kd_plugin import cli
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
        monkeypatch.setitem(cli.VERBS, "work", cli.Verb("work for a test", module.__name__))

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
        assert name in text and verb.help.split()[0] in text


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
    monkeypatch.setitem(cli.VERBS, "other", cli.Verb("cannot be imported", "kd_plugin_no_such_module"))
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


def test_other_errors_keep_their_traceback(verb_that):
    def fail(args):
        raise RuntimeError("a defect")

    verb_that(fail)
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["work"])


@pytest.mark.parametrize("verb, status", [("path", 0), ("doctor", 1), ("cache", 1)])
def test_without_fairseq_the_command_still_answers(verb, status):
    """None in sys.modules is how Python itself marks a module that cannot be imported."""
    code = "import sys; sys.modules['fairseq'] = None; from kd_plugin.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, verb], cwd=str(ROOT), capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    if verb == "doctor":
        assert "FAIL" in done.stdout and "pip install 'kd-plugin[fairseq]'" in done.stdout
    if verb == "cache":
        assert "kd-plugin: error: cache needs fairseq" in done.stderr
