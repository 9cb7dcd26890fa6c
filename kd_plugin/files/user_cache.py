"""Caches results that take long to compute and never change, for the user's next run."""

import contextlib
import os
import stat
from pathlib import Path
from typing import Callable

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of_bytes, write_atomically


def kept(name: str, make: Callable[[], str]) -> str:
    """The text with this name from the user's cache; makes and stores it if it is missing.

    It is trusted only if nobody else can have written it: the file must be this user's, in a folder closed to others.
    A hash at its head proves that it is complete. Without such a folder, nothing is stored.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "kd_plugin")
    if not _is_closed_to_others(folder):
        return make()
    path = folder / name
    with contextlib.suppress(OSError), open(path, "rb") as file:
        digest, _, found = file.read().partition(b"\n")
        if os.fstat(file.fileno()).st_uid == os.geteuid() and digest == digest_of_bytes(found).encode():
            return found.decode("utf-8")
    made = make()
    content = made.encode("utf-8")
    with contextlib.suppress(KDPluginError):  # a full disk only makes the next run slower
        write_atomically(path, digest_of_bytes(content).encode() + b"\n" + content)
    return made


def _is_closed_to_others(folder: Path) -> bool:
    """Whether only this user can access the folder; creates it if it does not exist."""
    try:
        if folder.is_absolute():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
