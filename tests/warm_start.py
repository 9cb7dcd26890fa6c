"""fairseq's commands without the seconds that importing fairseq takes: forked off a process that has imported it.

It is the installed script that runs, in a process of its own with its environment and output, which ends as any
interpreter does. KD_TEST_COLD=1 starts an interpreter for each command instead.
"""

import atexit
import contextlib
import functools
import importlib
import logging
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing.connection import Client, Connection
from typing import Dict, List, Sequence

COMMANDS = ("fairseq-train", "fairseq-generate", "fairseq-preprocess")
# what they import; not fairseq_cli itself, whose modules set up logging when they are imported
MODULES = ("fairseq.trainer", "fairseq.tasks", "fairseq.scoring", "fairseq.binarizer", "fairseq.logging.progress_bar")
ROOT = pathlib.Path(__file__).resolve().parent.parent


class Command:
    """A running command, as subprocess.Popen has it."""

    def __init__(self, arguments: Sequence[str], env: Dict[str, str]):
        self.args = list(arguments)
        self.returncode = None
        self._output = tempfile.NamedTemporaryFile()
        self._connection = Client(_server(), family="AF_UNIX")
        self._connection.send((self.args, env, os.getcwd(), self._output.name))
        self._pid = self._connection.recv()

    def communicate(self, timeout: float) -> List[str]:
        if not self._connection.poll(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout)
        status = self._connection.recv()
        self.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        with self._output as output:
            return [output.read().decode("utf-8")]

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)


@functools.lru_cache(maxsize=None)
def _server() -> str:
    """Address of this process's own server, which ends when its standard input does."""
    folder = tempfile.TemporaryDirectory()
    address = os.path.join(folder.name, "commands")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_start", address],
        cwd=str(ROOT), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    atexit.register(folder.cleanup)
    atexit.register(process.wait)
    atexit.register(process.stdin.close)  # the last one registered goes first
    assert process.stdout.readline() == b"ready\n"
    return address


def serve(address: str) -> None:
    """Forks for each command; returns in that command's process, after it, and at the end of standard input."""
    for module in MODULES:
        importlib.import_module(module)
    logging.getLogger().handlers.clear()  # those imports log, which would leave fairseq_cli's own set-up undone
    logging.getLogger().setLevel(logging.WARNING)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(8)
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection = Connection(listener.accept()[0].detach())
            if os.fork() == 0:
                listener.close()
                return _run(connection)
            connection.close()
            with contextlib.suppress(ChildProcessError):  # none is left
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _run(connection: Connection) -> None:
    (script, *arguments), env, folder, output = connection.recv()
    pid = os.fork()
    if pid:
        connection.send(pid)
        connection.send(os.waitpid(pid, 0)[1])
        os._exit(0)
    connection.close()
    for path, mode, descriptors in ((os.devnull, os.O_RDONLY, [0]), (output, os.O_WRONLY | os.O_APPEND, [1, 2])):
        opened = os.open(path, mode)
        for descriptor in descriptors:
            os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(script)  # where `python -m` put the root
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
