"""Atomic writes, so that a file is complete or absent, and hashes of files."""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Union

from kd_plugin.errors import KDPluginError
from kd_plugin.files.json_text import parse_json

NAME_BYTES = 255  # the longest file name on nearly every file system


def pieces_of(path: Union[str, Path]) -> Iterator[bytes]:
    """A file's bytes, piece by piece."""
    with open(path, "rb") as file:
        yield from iter(lambda: file.read(1 << 20), b"")


def sha256_of(path: Union[str, Path], progress: Optional[Callable[[int], Any]] = None) -> str:
    """Hexadecimal sha256 of a file. progress: called with the number of bytes of each finished piece."""
    digest = hashlib.sha256()
    for piece in pieces_of(path):
        digest.update(piece)
        if progress is not None:
            progress(len(piece))
    return digest.hexdigest()


def digest_of_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of(content: Any) -> str:
    """Hexadecimal sha256 of content that can be JSON, independent of the order of keys."""
    return digest_of_bytes(json.dumps(content, sort_keys=True).encode())


def temporary_beside(path: Path) -> Path:
    """A unique, hidden name in the same folder, no longer than NAME_BYTES."""
    ending = f".{uuid.uuid4().hex[:8]}.tmp"
    name = os.fsencode(f".{path.name}")[: NAME_BYTES - len(ending)]
    return path.with_name(name.decode("utf-8", "ignore") + ending)


def write_atomically(path: Path, content: Any) -> None:
    """Writes to a temporary file, syncs, then renames it: a reader sees all of the content or none.

    Raises:
        KDPluginError: the file cannot be written; nothing is left behind
    """
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise KDPluginError(
            f"{path}: could not write {len(content)} bytes: {error.strerror or error}. Finished work is kept. "
            "Remedy: free some space, then run the same command again"
        ) from error


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path, remedy: str) -> Dict[str, Any]:
    """The object in a JSON file.

    Raises:
        KDPluginError: it is missing, not JSON or not an object; the message ends with `remedy`
    """
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KDPluginError(f"{path} cannot be read: {error}. {remedy}") from error
    if not isinstance(content, dict):
        raise KDPluginError(f"{path} is not a JSON object. {remedy}")
    return content


def make_folder(folder: Path, flag: str) -> None:
    """Creates an output folder; raises KDPluginError, naming the flag, if it cannot be written."""
    remedy = "Remedy: a writable folder"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KDPluginError(f"{flag} {folder}: {error.strerror}. {remedy}") from error
    if not os.access(folder, os.W_OK):
        raise KDPluginError(f"{flag} {folder}: no permission to write. {remedy}")
