"""What other packages print that a user of kd-plugin cannot do anything about, and how a stop is told.

For the command `kd-plugin` and its worker processes alone. In fairseq-train, which imports the plugin after fairseq,
nothing here changes anything: there logs and signals are fairseq's.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from typing import Any, Iterator

# fairseq tells everything about every model, sacreBLEU each step of its bootstrap; what counts our verbs say themselves
CHATTY = {"fairseq": logging.WARNING, "sacrebleu": logging.ERROR}
# of Python's own kinds only RuntimeWarning is about numbers, and stays
ABOUT_CODE = (FutureWarning, DeprecationWarning, PendingDeprecationWarning, UserWarning, ImportWarning, ResourceWarning)
# exit statuses, as a shell has them; not every system has SIGPIPE
INTERRUPTED, TERMINATED, NO_READER = 128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + 13


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a batch system or `timeout` sends. Work ends as with Ctrl-C."""


@contextlib.contextmanager
def first_import() -> Iterator[None]:
    """Around our import of fairseq: it sets up logging for everybody, only to say that a package is missing.

    Where fairseq is there already nothing is done.
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
        print("kd-plugin: interrupted: nothing was begun", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # exit() would print where Python was
    finally:
        logging.disable(disabled)
        root.setLevel(level)
        for handler in list(root.handlers):
            if handler not in handlers:
                root.removeHandler(handler)


def is_command() -> bool:
    """Whether this process is `kd-plugin …` or one of its workers, and not a program that imports the package."""
    return os.path.basename(sys.argv[0]).startswith("kd-plugin") or "kd_plugin.cli" in getattr(sys, "orig_argv", ())


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """`quiet`, and everything as before at the end, for programs that call kd_plugin.cli.main."""
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
    """From here on only warnings about the work are shown, ours each in a line of its own."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without ± or a file's name without UTF-8 end no work
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    _ignore_warnings()
    for name, level in CHATTY.items():
        logging.getLogger(name).setLevel(level)
    root = logging.getLogger()
    if not root.handlers:  # else a program that calls us has its own
        handler = logging.StreamHandler()
        handler.setFormatter(_Line())
        root.addHandler(handler)


def _ignore_warnings() -> None:
    if sys.warnoptions:  # the user has said which to show
        return
    for category in ABOUT_CODE:
        warnings.simplefilter("ignore", category)


class _Line(logging.Formatter):
    """`kd-plugin: warning: …`, as errors are shown."""

    def format(self, record: logging.LogRecord) -> str:
        return f"kd-plugin: {record.levelname.lower()}: {record.getMessage()}"


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated, so that temporary files are removed and workers are stopped."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # somebody else's business
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
    """Processes that are started inside never see Ctrl-C: the one that started them does, and ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop(pool: Any) -> None:
    """End the processes of a concurrent.futures.ProcessPoolExecutor at once, in the middle of their work."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()
