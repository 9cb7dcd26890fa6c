"""Locks on output folders: which runs are working in a folder and on which job.

The file `.lock` names the job (the hash of its identity) and its runs, one line of JSON each. It is locked with fcntl,
so the lock of a killed run disappears; the file remains and says which job the unfinished output belongs to. The run
that finishes the job removes it. Runs with the same identity may share a folder if each writes its own shards.
"""

import contextlib
import errno
import json
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Sequence

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import NAME_BYTES, digest_of

try:
    import fcntl
except ImportError:  # on Windows, only identities keep jobs apart
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
PATIENCE = 10.0  # seconds to wait for another run that is just starting in a shared folder
ANOTHER = "Remedy: wait for it, or another folder"

Check = Callable[[bool], None]


class Claim:
    """A run's claim on an output folder, from its creation until `finish` or `close`.

    Args:
        path: of the lock
        what: the flag and folder, for errors
        identity_sha256: of the job
        check: called while no other run works there, with whether this job has started here before; raises if the job
            must not write there
        shards: the numbers of the shards that this run writes, if other runs of the same job may write others at the
            same time; None: no other run may work there

    Raises:
        KDPluginError: another run is working there, or as `check`
    """

    def __init__(
        self, path: Path, what: str, identity_sha256: str, check: Check, shards: Optional[Sequence[int]] = None
    ):
        self._path, self._what, self._identity = path, what, identity_sha256
        self._enter(check, shards is not None)
        try:
            if shards is not None:
                self._share(shards)
            now = time.strftime("%Y-%m-%d %H:%M:%S %z")
            command = " ".join([os.path.basename(sys.argv[0]), *map(shlex.quote, sys.argv[1:])])
            self._append({"host": socket.gethostname(), "pid": os.getpid(), "since": now, "command": command})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, kind: Any, *exception: Any) -> None:
        if kind is not None:
            self._withdraw()
        self.close()

    def _withdraw(self) -> None:
        """If the folder contains nothing but the lock, and no other run works there, removes the lock."""
        nothing = self._path.name == LOCK and [path.name for path in self._path.parent.iterdir()] == [LOCK]
        if nothing and _lock_byte(self._file, 0):
            self._path.unlink()

    def finish(self) -> None:
        """Removes the lock: the job is done, and the folder itself now identifies it."""
        self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Releases the lock. Unfinished output still belongs to this job."""
        self._file.close()

    def _enter(self, check: Check, shares: bool) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            self._file = self._open()
            try:
                if _lock_byte(self._file, 0):
                    if self._is_there():
                        return self._begin(check)
                elif shares and _lock_byte(self._file, 0, shared=True):
                    if self._is_there():
                        return self._join()
                elif self._is_there() and (not shares or time.monotonic() > deadline):
                    raise KDPluginError(f"{self._what}: another run is working there: {self._who()}. {ANOTHER}")
            except BaseException:
                self._file.close()
                raise
            self._file.close()  # another run has just removed the file or is just starting
            time.sleep(0.02)

    def _begin(self, check: Check) -> None:
        """Starts as the only run there."""
        recorded = self._recorded()
        if recorded is None and os.fstat(self._file.fileno()).st_size:
            raise KDPluginError(f"{self._what}: {self._path} is not a lock of kd-plugin. Remedy: another folder")
        try:
            check(recorded == self._identity)
        except BaseException:
            if recorded is None:
                self._path.unlink(missing_ok=True)
            raise
        self._file.truncate(0)
        self._append({"identity_sha256": self._identity})

    def _join(self) -> None:
        if self._recorded() != self._identity:
            raise KDPluginError(
                f"{self._what}: another run is working there, on other data or with other options: {self._who()}. "
                f"{ANOTHER}"
            )

    def _share(self, shards: Sequence[int]) -> None:
        for number in shards:
            if not _lock_byte(self._file, 1 + number):
                raise KDPluginError(
                    f"{self._what}: another run is working on the same shards: {self._who()}. Remedy: wait for it, or "
                    "give each run its own --shard-id of --num-shards"
                )
        _lock_byte(self._file, 0, shared=True)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _open(self) -> BinaryIO:
        try:
            return open(os.open(self._path, FLAGS, 0o666), "r+b", buffering=0)
        except OSError as error:
            raise KDPluginError(f"{self._what}: {self._path}: {error.strerror}. Remedy: a writable folder") from error

    def _append(self, content: Dict[str, Any]) -> None:
        self._file.write(json.dumps(content).encode() + b"\n")

    def _lines(self) -> List[Dict[str, Any]]:
        # through the open file: closing a second one of the same path would release this process's locks
        self._file.seek(0)
        return _lines(self._file.read())

    def _recorded(self) -> Optional[str]:
        """The identity of the job that started here, or None."""
        return _identity(self._lines())

    def _who(self) -> str:
        runs = [line for line in self._lines() if "pid" in line]
        if not runs:
            return "it is just starting"
        last = runs[-1]
        return f"process {last['pid']} on {last['host']} since {last['since']}, `{last['command']}`"


def _lock_byte(file: BinaryIO, byte: int, shared: bool = False) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, 1, byte)
    except OSError as error:
        # any other error: the file system has no locks, and only identities keep jobs apart
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def lock_beside(path: Path) -> Path:
    """The path of the lock for an output that cannot contain one because it appears as a whole."""
    name = f".{path.name}{LOCK}"
    if len(os.fsencode(name)) > NAME_BYTES:
        name = f".{digest_of(path.name)[:16]}{LOCK}"
    return path.with_name(name)


def begun(path: Path, identity_sha256: str) -> bool:
    """Whether this job has started but not finished at this lock; for a check before the claim."""
    try:
        return _identity(_lines(path.read_bytes())) == identity_sha256
    except OSError:
        return False


def _lines(content: bytes) -> List[Dict[str, Any]]:
    lines = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError):  # a run was killed while it wrote this line
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def _identity(lines: List[Dict[str, Any]]) -> Optional[str]:
    return next((line["identity_sha256"] for line in lines if "identity_sha256" in line), None)
