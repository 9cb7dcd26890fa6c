"""One training of a sweep: a process of fairseq-train in a folder of its own, followed through its log."""

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Optional, Sequence

from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.training_logs import EPOCH, INTERVAL, parse_line
from kd_plugin.files.atomic import write_json
from kd_plugin.files.json_text import parse_json
from kd_plugin.runners.fairseq_train import executable

LOG, RESULT, LOCK, CHECKPOINTS = "train.log", "result.json", "running.lock", "checkpoints"
COMPLETE = "done training in "  # fairseq-train's last line
WAIT = 0.5  # seconds between two looks at a log
PATIENCE = 20.0  # seconds for a stopped training to end
FAILED, STOPPED, DONE = "failed", "stopped", "done"

# told (update, objective) at each validation; says whether to stop
Judge = Callable[[int, float], bool]


class Outcome(NamedTuple):
    """How a training ended.

    state:   done, stopped (by the judge) or failed
    values:  the objective by update; the last one is that of the end
    seconds: of training
    error:   of a failed one
    """

    state: str
    values: Dict[int, float]
    seconds: float
    error: str = ""


class End(NamedTuple):
    """The end of a log. line: the last with text. complete: whether fairseq-train says that it is done"""

    line: str
    complete: bool


class Training:
    """A training that continues where it was interrupted, also by kill -9.

    A process that outlived its sweep keeps the lock of the folder, so the next sweep follows it instead of starting a
    second one. result.json is written once the training has ended.

    Args:
        folder: created if missing
        words: fairseq-train's arguments
        objective: a term of the first validation subset's line
        environment: of the process
        ended: asked again and again, whether to stop unfinished; the next call then continues
    """

    def __init__(
        self,
        folder: Path,
        words: Sequence[str],
        objective: str,
        environment: Dict[str, str],
        ended: Callable[[], bool],
    ):
        self._folder, self._words, self._objective = folder, list(words), objective
        self._environment, self._ended = environment, ended

    def outcome(self) -> Optional[Outcome]:
        """That of a training that has ended, else None."""
        try:
            content = parse_json((self._folder / RESULT).read_bytes())
            values = {int(update): float(value) for update, value in content["values"].items()}
            return Outcome(content["state"], values, float(content["seconds"]), content["error"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KDPluginError(f"{self._folder / RESULT}: {error!r}. Remedy: remove the file") from error

    def run(self, judge: Judge) -> Outcome:
        """Trains to the end, or until the judge stops it."""
        ended = self.outcome()
        if ended is not None:
            return ended
        self._check_ended()  # those still waiting for a worker need not begin
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / LOCK, "a+b") as lock:
            process, outcome = None, None
            while outcome is None:
                if _locked(lock.fileno()):
                    process = self._start(lock.fileno())
                try:
                    outcome = self._follow(process, lock.fileno(), judge)
                except BaseException:
                    self._stop(process, lock.fileno())
                    raise
        write_json(
            self._folder / RESULT, {**outcome._asdict(), "values": {str(k): v for k, v in outcome.values.items()}}
        )
        return outcome

    def _check_ended(self) -> None:
        if self._ended():
            raise KDPluginError(f"{self._folder}: stopped unfinished; the same command continues")

    def _start(self, lock: int) -> "subprocess.Popen[bytes]":
        with open(self._folder / LOG, "ab") as log:
            log.write(b"\n")  # after a line that a crash cut off
            log.flush()
            # a session of its own: Ctrl-C reaches the sweep, which then stops its trainings in order
            process = subprocess.Popen(
                [executable("fairseq-train"), *self._words],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                pass_fds=[lock],
                start_new_session=True,
            )
        os.ftruncate(lock, 0)
        os.write(lock, str(process.pid).encode())
        return process

    def _follow(self, process: "Optional[subprocess.Popen[bytes]]", lock: int, judge: Judge) -> Optional[Outcome]:
        """None: a training that outlived its sweep has ended before its end, so it has to be started again."""
        told: Dict[int, float] = {}
        stopped = False
        while True:
            # looked at before the log is read, so that the last lines are not missed
            ended = process.poll() is not None if process is not None else _locked(lock)
            values, seconds, end = self._read()
            for update, value in values.items():
                if update not in told and not stopped:
                    told[update] = value
                    # a value that is not finite ends the training; so does the judge
                    stopped = value != value or abs(value) == float("inf") or judge(update, value)
            if stopped and not ended:
                self._stop(process, lock)
            if ended and not stopped and process is None and not end.complete:
                return None
            if stopped or ended:
                return _outcome(told, seconds, process, stopped, end.line)
            self._check_ended()
            time.sleep(WAIT)

    def _read(self) -> "tuple[Dict[int, float], float, End]":
        """The objective by update, the seconds of training, and the end of the log."""
        values: Dict[int, float] = {}
        seconds, last, complete = 0.0, "", False
        try:
            lines = (self._folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            last, complete = line.strip() or last, complete or COMPLETE in line
            try:
                parsed = parse_line(line)
            except (ValueError, OverflowError, RecursionError):  # a line that is still being written
                continue
            if parsed is None:
                continue
            kind, update, terms = parsed
            seconds = max(seconds, terms.get("wall", 0.0))
            if kind not in (INTERVAL, EPOCH) and self._objective in terms and kind == "valid":
                values[update] = terms[self._objective]
        return values, seconds, End(last, complete)

    def _stop(self, process: "Optional[subprocess.Popen[bytes]]", lock: int) -> None:
        """Ends the training's process and its children."""
        if process is None:
            with contextlib.suppress(ValueError, ProcessLookupError, PermissionError):
                os.lseek(lock, 0, os.SEEK_SET)
                if not _locked(lock):
                    os.killpg(int(os.read(lock, 20)), signal.SIGTERM)
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
                return


def _outcome(
    values: Dict[int, float], seconds: float, process: "Optional[subprocess.Popen[bytes]]", stopped: bool, end: str
) -> Outcome:
    last = list(values.values())[-1:]
    if last and not abs(last[0]) < float("inf"):
        return Outcome(FAILED, values, seconds, "the objective is not finite")
    if stopped:
        return Outcome(STOPPED, values, seconds)
    status = process.returncode if process is not None else 0
    if status or not values:
        return Outcome(FAILED, values, seconds, f"exit status {status}: {end[:300]}")
    return Outcome(DONE, values, seconds)


def _locked(descriptor: int) -> bool:
    """Takes the lock, if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
