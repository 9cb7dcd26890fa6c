"""fairseq's commands, ours and scripts without the seconds that importing fairseq takes: forked off a process that has
imported it, or off a second one that has loaded the plugin too if that is what they do first.

It is the installed script that runs, in a process of its own with its folder, environment and descriptors, which ends
as any interpreter does, except that it does not take apart all that was imported. Of an interpreter's own settings
PYTHONPATH alone is heeded. KD_TEST_COLD=1 starts an interpreter for each command instead.
"""

import argparse
import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import io
import logging
import os
import pathlib
import pkgutil
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from typing import Any, BinaryIO, Dict, List, Optional, Sequence, Tuple

from tests import command_lines, warm_client, warm_hydra, warm_spawn

COMMANDS = (
    "fairseq-generate", "fairseq-hydra-train", "fairseq-interactive", "fairseq-preprocess", "fairseq-train",
    "fairseq-validate", "kd-plugin",
)  # fmt: skip
# what they import; not fairseq_cli itself, whose modules set up logging when they are imported
MODULES = ("fairseq.trainer", "fairseq.tasks", "fairseq.scoring", "fairseq.binarizer", "fairseq.logging.progress_bar")
# what commands import later, which takes longer than all else that they do; not every environment has each of them
LATER = ("ctranslate2", "hydra.experimental.compose", "sacrebleu", "sentencepiece", "torch.distributed.fsdp")
# with Triton, which complains at the end of what is never let go
LET_GO = ("torch._dynamo", "transformers.modeling_utils")
ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = "KD_TEST_SERVER"  # in the environment: the address of a session's server
READY = "-ready"  # what follows it in the name of a file that is there once it listens


class Command:
    """A running command, as subprocess.Popen has it; output and errors together.

    Args:
        arguments: the installed script, or `python` and a script, and what it is called with
    """

    def __init__(self, arguments: Sequence[str], env: Dict[str, str], folder: str, input: BinaryIO):
        self.args = list(arguments)
        self.returncode = None
        self._output = tempfile.NamedTemporaryFile(mode="a+b")
        line = self.args[1:] if os.path.basename(self.args[0]) == "python" else self.args
        output = self._output.fileno()
        address = warm_client.address_for(server(), line, env, folder)
        self._request = warm_client.Request(address, line, env, folder, [input.fileno(), output, output])

    @property
    def pid(self) -> int:
        return self._request.pid

    def poll(self, timeout: float = 0) -> Optional[int]:
        status = self._request.status(timeout) if self.returncode is None else None
        if status is not None:
            self.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return self.returncode

    def communicate(self, timeout: float) -> List[str]:
        if self.poll(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        with self._output as output:
            output.seek(0)
            return [output.read().decode("utf-8")]

    def kill(self) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


@functools.lru_cache(maxsize=None)
def server() -> str:
    """Address of the session's own server, or of this process's where there is none."""
    address = os.environ.get(SHARED) or start()
    deadline = time.monotonic() + 120
    while not os.path.exists(address + READY):
        assert time.monotonic() < deadline, "tests/warm_start.py has not begun to listen"
        time.sleep(0.02)
    return address


def start_for_all() -> None:
    """The server of all of a session's workers, which find it in their environment."""
    if not os.environ.get("KD_TEST_COLD"):
        os.environ[SHARED] = start()


def start() -> str:
    """Address of a new server, which imports meanwhile, and ends when its standard input does."""
    address = os.path.join(_folder(), "commands")
    usual = command_lines.training("data", "checkpoints", *command_lines.STOCK)[2:]  # of most of the tests' trainings
    # its commands' output is a pipe, most often: what it has itself must not be able to seek either
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_start", address, *map(str, usual)],
        cwd=str(ROOT), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    atexit.register(process.wait)
    atexit.register(process.terminate)  # perhaps it imports still
    atexit.register(process.stdin.close)  # the last one registered goes first
    return address


@functools.lru_cache(maxsize=None)
def _folder() -> str:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name


@functools.lru_cache(maxsize=None)
def path_of_commands() -> str:
    """A PATH for shell scripts that start the commands by name, the interpreter's own folder second."""
    installed = os.path.dirname(sys.executable)
    if os.environ.get("KD_TEST_COLD"):
        return installed
    folder, client = os.path.join(_folder(), "bin"), os.path.join(ROOT, "tests", "warm_client.py")
    os.mkdir(folder)
    ask = _words(sys.executable, "-S", client, server())
    for command in COMMANDS:
        _write_script(os.path.join(folder, command), f'exec {ask} {_words(os.path.join(installed, command))} "$@"')
    # which imports torch and fairseq; the recipes' other scripts end sooner than a fork of so large a process
    python = f'case "$1" in */average_checkpoints.py) exec {ask} "$@" ;; esac\nexec {_words(sys.executable)} "$@"'
    _write_script(os.path.join(folder, "python"), python)
    return folder + os.pathsep + installed


# modules that steps of `kd-plugin distill` start with sys.executable, which import torch and fairseq
STARTED_AS_MODULES = ("kd_plugin.checkpoints.average", "kd_plugin.pipeline.data")


@functools.lru_cache(maxsize=None)
def path_of_modules() -> str:
    """For PYTHONPATH: interpreters that are started for one of these modules ask the server instead."""
    if os.environ.get("KD_TEST_COLD"):
        return ""
    folder, client = os.path.join(_folder(), "site"), os.path.join(ROOT, "tests", "warm_client.py")
    os.mkdir(folder)
    ask = [sys.executable, "-S", client, server(), "-m"]
    with open(os.path.join(folder, "sitecustomize.py"), "w", encoding="utf-8") as file:
        file.write(
            "import os, sys\n"
            "line = getattr(sys, 'orig_argv', [])\n"
            f"if line[1:2] == ['-m'] and line[2] in {STARTED_AS_MODULES!r}:\n"
            f"    os.execv({sys.executable!r}, {ask!r} + line[2:])\n"
        )
    return folder


def _words(*words: str) -> str:
    return " ".join(map(shlex.quote, words))


def _write_script(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(f"#!/bin/sh\n{text}\n")
    os.chmod(path, 0o755)


def environment(venv: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A virtual environment in `folder` that is `venv` but for the commands, which start warm."""
    if os.environ.get("KD_TEST_COLD"):
        return venv
    shutil.copytree(venv / "bin", folder / "bin", symlinks=True)
    for path in venv.iterdir():
        if path.is_file():
            shutil.copy(path, folder)  # pyvenv.cfg, by which Python knows it, and what the set-up has left
        elif path.name != "bin":
            (folder / path.name).symlink_to(path)
    for command in COMMANDS:
        shutil.copy(os.path.join(path_of_commands().split(os.pathsep)[0], command), folder / "bin")
    return folder


def serve(address: str, *usual: str) -> None:
    """Forks for each command; returns in that command's process, after it, and at the end of standard input.

    Args:
        usual: flags that many a training has
    """
    for module in MODULES:
        importlib.import_module(module)
    for module in LATER:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    warm_hydra.install()
    _compose(*usual)
    _leave_logging_as_it_is()
    with contextlib.suppress(ImportError):
        import numba

        numba.njit(lambda: 0)()  # its types and LLVM, which the first call of any compiled function sets up
    gc.collect()
    gc.freeze()  # else each command's collector walks through all of it, and copies the pages that it touches
    for module in LET_GO:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    listening, told = os.pipe()
    with_plugin = os.fork() == 0
    if with_plugin:
        _load_plugin(*usual)
        address += warm_client.WITH_PLUGIN
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(8)
        _forget_exits()
        if with_plugin:
            os.write(told, b"1")
        os.close(told)
        if not with_plugin:
            assert os.read(listening, 1), "the server with the plugin has failed"
            open(address + READY, "w").close()
        os.close(listening)
        _fork_for_each(listener, address)


def _load_plugin(*usual: str) -> None:
    """As --user-dir and kd-plugin load it, with all that its verbs import later; and composes its flags once."""
    from fairseq.utils import import_user_module

    user_dir = str(ROOT / "kd_plugin")
    import_user_module(argparse.Namespace(user_dir=user_dir))
    for module in pkgutil.walk_packages([user_dir], "kd_plugin."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):  # not every environment has all that they need
                importlib.import_module(module.name)
    names = ["--task", "distillation_translation", "--criterion", "kd_label_smoothed_cross_entropy"]
    _compose(*usual, "--user-dir", user_dir, *names)
    _leave_logging_as_it_is()


def _forget_exits() -> None:
    """Of what is imported here, what a command's end would take apart, which takes longer than to start the command."""
    for finalizer in list(weakref.finalize._registry):  # torch's registrations of operators
        finalizer.atexit = False
    for name in ("torch._dynamo.utils", "torch._dynamo.eval_frame"):  # statistics for its log
        module = sys.modules.get(name)
        for function in ("dump_compile_times", "_log_traced_frames"):
            atexit.unregister(getattr(module, function, None))


def _leave_logging_as_it_is() -> None:
    """Imports log, which would leave fairseq_cli's own set-up undone."""
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)


def _fork_for_each(listener: socket.socket, address: str) -> None:
    ended, end = os.pipe()
    os.set_blocking(end, False)
    signal.set_wakeup_fd(end)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # heard through that pipe
    running: Dict[int, socket.socket] = {}
    while True:
        ready = select.select([listener, sys.stdin, ended], [], [])[0]
        if ended in ready:
            os.read(ended, 4096)
            _tell_ends(running)
        if listener in ready:
            connection = listener.accept()[0]
            try:
                request = warm_client.receive(connection)
            except (OSError, ValueError):  # killed while it asked
                connection.close()
                continue
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for own in (listener, connection, *running.values()):
                    own.close()
                os.close(ended)
                os.close(end)
                return _run(request, address)
            for descriptor in request[3]:  # whoever reads a pipe of the command's waits for nobody else
                os.close(descriptor)
            running[pid] = connection
            with contextlib.suppress(OSError):  # nobody asks any more
                connection.sendall(b"%16d" % pid)
        elif sys.stdin in ready:
            return None


def _tell_ends(running: Dict[int, socket.socket]) -> None:
    """To those who asked for the commands that have ended."""
    with contextlib.suppress(ChildProcessError):  # none is left
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            connection = running.pop(pid, None)
            if connection is None:  # the other server
                continue
            with connection, contextlib.suppress(OSError):  # nobody asks any more
                connection.sendall(b"%16d" % status)


def _compose(*usual: str) -> None:
    """What most of fairseq's commands do first, which then only give their own flags to it (tests/warm_hydra.py)."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # which leaves them to be shown to the commands
        training = ["data", "--task", "translation", "--arch", "transformer", *usual]
        for parser, flags in ((options.get_training_parser(), training), (options.get_generation_parser(), ["data"])):
            convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, flags))


def _run(request: Tuple[Any, ...], address: str) -> None:
    (script, *arguments), env, folder, descriptors, numbers, blocked = request
    _place(descriptors, numbers)
    # the server's own remembers that pytest's file could seek, which the command's pipe cannot
    sys.stderr = open(2, "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors, closefd=False)
    # a shell starts what it puts into the background with SIGINT ignored, these tests perhaps too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    warm_hydra.expect_one_composition()
    warm_spawn.install(lambda: address)
    try:
        _interpret(script, arguments)
    except SystemExit as end:
        _end(end.code)
        raise
    except Exception:
        sys.excepthook(*sys.exc_info())
        _end(1)
        sys.exit(1)
    _end(None)


def _place(descriptors: List[int], numbers: List[int]) -> None:
    """Moves the descriptors to those numbers, which some of them may have already."""
    above = max(*descriptors, *numbers) + 1
    copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for copy, number in zip(copies, numbers):
        os.dup2(copy, number)
        os.close(copy)


def _interpret(script: str, arguments: List[str]) -> None:
    # the root is where `python -m` put it
    paths = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    if script == "-c":
        program, *arguments = arguments
        sys.argv = [script, *arguments]
        sys.path[:1] = ["", *paths]
        exec(program, {"__name__": "__main__"})
        return
    if script == "-m":
        module, *arguments = arguments
        sys.argv = [script, *arguments]
        sys.path[:1] = ["", *paths]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    sys.argv = [script, *arguments]
    sys.path[:1] = [os.path.dirname(script), *paths]
    runpy.run_path(script, run_name="__main__")


def _end(status: object) -> None:
    """As an interpreter ends, but without taking the modules apart, which takes as long as many a command.

    Returns where more has to be done than that.
    """
    if not (status is None or isinstance(status, int)):
        return  # a message
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):  # an output that takes no more
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit((status or 0) & 0xFF)


if __name__ == "__main__":
    serve(*sys.argv[1:])
