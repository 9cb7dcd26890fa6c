"""Silences output of other packages that users of kd-plugin cannot act on, and handles interrupts.

This is only for the command `kd-plugin` and its worker processes. In fairseq-train, which imports the plugin after
fairseq, nothing here has any effect: there fairseq controls logs and signals.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from typing import Any, Iterator

# fairseq logs every detail of every model, sacreBLEU each bootstrap step; our verbs report what matters
CHATTY = {"fairseq": logging.WARNING, "sacrebleu": logging.ERROR}
# warnings about code; of Python's categories only RuntimeWarning is about numbers, and stays on
ABOUT_CODE = (FutureWarning, DeprecationWarning, PendingDeprecationWarning, UserWarning, ImportWarning, ResourceWarning)
# exit statuses as in a shell; not every system has SIGPIPE
INTERRUPTED, TERMINATED, NO_READER = 128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + 13


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which a batch system or `timeout` sends. Work ends as with Ctrl-C."""


@contextlib.contextmanager
def first_import() -> Iterator[None]:
    """Wraps our import of fairseq, which sets up global logging just to say that a package is missing.

    Does nothing if fairseq is already imported.
    """
    if "fairseq" in sys.modules:
        yield
        return
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            _ignore_warnings()
            yield
    except KeyboardInterrupt:
        if not is_command():
            raise
        print("kd-plugin: interrupted: nothing was started", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # exit() would print a traceback
    finally:
        logging.disable(disabled)
        root.setLevel(level)
        for handler in list(root.handlers):
            if handler not in handlers:
                root.removeHandler(handler)


def is_command() -> bool:
    """Whether this process is `kd-plugin …` or one of its workers, rather than a program that imports the package."""
    modules = {"kd_plugin.cli", "kd_plugin.checkpoints.average", "kd_plugin.pipeline.data", "kd_plugin.pipeline.step"}
    return os.path.basename(sys.argv[0]).startswith("kd-plugin") or bool(modules & set(getattr(sys, "orig_argv", ())))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """`quiet` within a context that restores everything at the end, for programs that call kd_plugin.cli.main."""
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    handlers = list(logging.getLogger().handlers)
    try:
        with warnings.catch_warnings():
            quiet()
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        logging.getLogger().handlers[:] = handlers


def quiet() -> None:
    """From here on, shows only warnings about the work itself, each of ours on its own line."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without ± or a non-UTF-8 file name must not end the work
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _ignore_warnings()
    for name, level in CHATTY.items():
        logging.getLogger(name).setLevel(level)
    root = logging.getLogger()
    if not root.handlers:  # a program that calls us may have its own
        handler = logging.StreamHandler()
        handler.setFormatter(_Line())
        root.addHandler(handler)


def _ignore_warnings() -> None:
    if sys.warnoptions:  # the user has chosen which to show
        return
    for category in ABOUT_CODE:
        warnings.simplefilter("ignore", category)


class _Line(logging.Formatter):
    """Formats messages as `kd-plugin: warning: …`, like errors."""

    def format(self, record: logging.LogRecord) -> str:
        return f"kd-plugin: {record.levelname.lower()}: {record.getMessage()}"


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within this context, SIGTERM raises Terminated, so that temporary files are removed and workers stopped."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # the calling program handles signals
        return

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started within this context ignore Ctrl-C: their parent receives it and stops them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop(pool: Any) -> None:
    """Terminates a ProcessPoolExecutor's processes at once, even in the middle of their work."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()
