"""What is not printed, and how a stop is told: one line, and no worker left behind."""

import logging
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest

from kd_plugin import cli, quiet
from tests.support import ROOT
from tests.unit.test_cli import verb_that  # noqa: F401


@pytest.mark.parametrize(
    "error, status, told",
    [
        (
            KeyboardInterrupt,
            130,
            "kd-plugin work: interrupted: nothing is finished, and the same command starts from the beginning\n",
        ),
        (
            quiet.Terminated,
            143,
            "kd-plugin work: terminated: nothing is finished, and the same command starts from the beginning\n",
        ),
    ],
)
def test_a_stop_is_one_line_that_says_how_to_go_on(error, status, told, verb_that, capsys):  # noqa: F811
    def stopped(args):
        raise error

    verb_that(stopped)
    assert cli.main(["work"]) == status
    assert capsys.readouterr().err == told


def test_verbs_in_shards_say_that_shards_are_kept():
    for verb in ("cache", "decode", "score"):
        assert "shards are kept" in cli.VERBS[verb].stopped


def test_sigterm_stops_the_verb_and_is_the_caller_s_again_afterwards(verb_that, capsys):  # noqa: F811
    def stopped(args):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    verb_that(stopped)
    assert cli.main(["work"]) == 143
    assert "terminated" in capsys.readouterr().err and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_other_packages_are_quiet_inside_and_as_before_outside(verb_that, caplog):  # noqa: F811
    def talk(args):
        warnings.warn("a class will be renamed", FutureWarning, stacklevel=1)
        warnings.warn("overflow in exp", RuntimeWarning, stacklevel=1)
        logging.getLogger("fairseq.tasks.x").info("dictionary: 40 types")
        logging.getLogger("sacrebleu").warning("It looks like you forgot to detokenize")
        logging.getLogger("kd_plugin.x").warning("the teacher is slow")
        return 0

    verb_that(talk)
    caplog.set_level(logging.INFO)
    before = [logging.getLogger(name).level for name in quiet.CHATTY]
    with pytest.warns(RuntimeWarning) as seen:
        assert cli.main(["work"]) == 0
    ours = [str(each.message) for each in seen if each.filename == __file__]
    assert ours == ["overflow in exp"]
    assert [r.getMessage() for r in caplog.records if r.pathname == __file__] == ["the teacher is slow"]
    assert [logging.getLogger(name).level for name in quiet.CHATTY] == before


def test_our_own_warnings_are_lines_like_errors(capsys):
    record = logging.LogRecord("kd_plugin.x", logging.WARNING, "", 0, "slow: %s", ("bf16",), None)
    assert quiet._Line().format(record) == "kd-plugin: warning: slow: bf16"


TALKATIVE = """
import logging, sys
import kd_plugin                                    # which imports fairseq
assert logging.getLogger().handlers == [] and logging.getLogger().level == logging.WARNING
assert logging.getLogger().manager.disable == 0
from multiprocessing import get_context
with get_context("spawn").Pool(1) as pool:          # a worker imports it too
    pool.apply(print, ["worker"])
"""


def test_import_prints_nothing_and_leaves_logging_alone():
    done = subprocess.run(
        [sys.executable, "-c", f"if __name__ == '__main__':\n{TALKATIVE.replace(chr(10), chr(10) + '    ')}"],
        cwd=str(ROOT),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "worker\n", "")


def test_fairseq_s_logging_is_untouched_where_fairseq_came_first(monkeypatch):
    monkeypatch.setitem(sys.modules, "fairseq", sys.modules["fairseq"])
    logger, handler = logging.getLogger(), logging.NullHandler()
    try:
        with quiet.first_import():
            assert logger.manager.disable == 0
            logger.addHandler(handler)
        assert handler in logger.handlers
    finally:
        logger.removeHandler(handler)


WORKERS = """
import sys, time
from kd_plugin.runners import jobs, local
from kd_plugin import quiet

class Slow:
    def __init__(self, number=0):
        pass
    def __call__(self, work):
        print("at work", flush=True)
        time.sleep(120)

if __name__ == "__main__":
    try:
        if sys.argv[2] == "shards":
            list(jobs.run([1, 2], Slow, print, workers=2))
        else:
            list(local.mapped(((i, i) for i in range(300)), Slow, 2))
    except KeyboardInterrupt:
        print("stopped")
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["shards", "sentences"])
def test_ctrl_c_ends_workers_at_once_and_without_tracebacks(module, tmp_path):
    """As a terminal does it: every process of the group gets SIGINT."""
    script = tmp_path / "kd-plugin.py"
    script.write_text(WORKERS)
    process = subprocess.Popen(
        [sys.executable, str(script), "select", module],  # a verb whose workers need no fairseq: they start quickly
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # a shell starts what it puts into the background with SIGINT ignored, these tests perhaps too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    assert process.stdout.readline() == "at work\n"
    os.killpg(process.pid, signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and set(rest.splitlines()) <= {"at work", "stopped"} and "stopped" in rest
