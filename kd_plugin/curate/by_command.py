"""Scores from any program that reads translations on standard input and writes a score for each."""

import contextlib
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any, BinaryIO, Iterator, List, Optional, Sequence

from kd_plugin.curate.scorers import Progress, Scorer, Texts
from kd_plugin.errors import KDPluginError

CONTRACT = "for each line `source TAB translation` on standard input, one number on standard output and nothing else"
LAST_WORDS = 1.0  # seconds to read what a command wrote to standard error before it ended


class CommandScorer(Scorer):
    """Starts the command once for each shard, in a shell. A higher number must mean a better translation.

    A tab inside a text becomes a space, since a tab separates the two texts.
    """

    def __init__(self, command: str):
        self._command = command
        self.identity = {"command": command}

    def __call__(self, pairs: Sequence[Texts], progress: Progress) -> List[Optional[float]]:
        """As Scorer's.

        Raises:
            KDPluginError: the command failed, or did not write a finite number for each line
        """
        if not pairs:
            return []
        lines = ("\t".join(text.replace("\t", " ") for text in pair) + "\n" for pair in pairs)
        scores = self._parsed(self._run("".join(lines).encode("utf-8")))
        if len(scores) != len(pairs):
            raise self._error(f"wrote {len(scores):,} scores for {len(pairs):,} translations")
        progress(len(pairs))
        return scores

    def _run(self, content: bytes) -> bytes:
        """The command's output."""
        # files, not pipes: a command may read and write in any order, or leave input unread
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as written:
            given.write(content)
            given.seek(0)
            process = subprocess.Popen(
                self._command, shell=True, stdin=given, stdout=written, stderr=subprocess.PIPE, start_new_session=True
            )
            assert process.stderr is not None
            last: List[str] = [""]
            listener = threading.Thread(target=_pass_on, args=(process.stderr, last), daemon=True)
            with _ended_with_us(process):
                listener.start()
                status = process.wait()
                listener.join(LAST_WORDS)  # a program left in the background could keep the pipe open
            if status != 0:
                how = f"exit status {status}" if status > 0 else f"signal {-status}"
                raise self._error(f"ended with {how}" + (f" ({last[0][:200]})" if last[0] else ""))
            written.seek(0)
            return written.read()

    def _parsed(self, content: bytes) -> List[Optional[float]]:
        try:
            lines = content.decode("utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise self._error("wrote invalid UTF-8") from error
        if not lines[-1]:
            del lines[-1]
        scores: List[Optional[float]] = []
        for number, line in enumerate(lines, 1):
            try:
                score = float("" if "_" in line else line)  # Python's 1_000
            except ValueError:
                score = math.nan
            if not math.isfinite(score):
                raise self._error(f"line {number:,} of its output is {line[:80]!r}, which is not a finite number")
            scores.append(score)
        return scores

    def _error(self, what: str) -> KDPluginError:
        return KDPluginError(f"--command {self._command!r}: {what}. Remedy: use a command that writes, {CONTRACT}")


def _pass_on(stream: BinaryIO, last: List[str]) -> None:
    """Copies a command's standard error to ours. last: its single element becomes the last non-empty line"""
    for line in stream:
        text = line.decode("utf-8", "replace")
        last[0] = text.strip() or last[0]
        sys.stderr.write(text)
        sys.stderr.flush()


@contextlib.contextmanager
def _ended_with_us(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Ends the command and all its child processes when the block ends, also by an interruption.

    In the main process an interruption is an exception. Workers are ended by SIGTERM, which would leave the command
    running.
    """
    is_worker = multiprocessing.parent_process() is not None
    here = threading.current_thread() is threading.main_thread()
    handles = is_worker and here and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def terminate(number: int, frame: Any) -> None:
        _kill(process)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    if handles:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if process.returncode is None:
            _kill(process)
            process.wait()
        if handles:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # the shell's children too: it leads its own session
        else:
            process.kill()
