"""Files that are either whole or not there, and their hashes."""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Union

from kd_plugin.errors import KDPluginError
from kd_plugin.files.json_text import parse_json

NAME_BYTES = 255  # what a file's name may have nearly everywhere


def pieces_of(path: Union[str, Path]) -> Iterator[bytes]:
    """A file's bytes, of which no more than needed are in memory."""
    with open(path, "rb") as file:
        yield from iter(lambda: file.read(1 << 20), b"")


def sha256_of(path: Union[str, Path], progress: Optional[Callable[[int], Any]] = None) -> str:
    """Hexadecimal sha256 of a file. progress: called with the number of bytes of each piece that is done."""
    digest = hashlib.sha256()
    for piece in pieces_of(path):
        digest.update(piece)
        if progress is not None:
            progress(len(piece))
    return digest.hexdigest()


def digest_of_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of(content: Any) -> str:
    """Hexadecimal sha256 of what can be written as JSON, whatever the order of its keys."""
    return digest_of_bytes(json.dumps(content, sort_keys=True).encode())


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that nothing else has, hidden, and no longer than a file's name may be."""
    ending = f".{uuid.uuid4().hex[:8]}.tmp"
    name = os.fsencode(f".{path.name}")[: NAME_BYTES - len(ending)]
    return path.with_name(name.decode("utf-8", "ignore") + ending)


def write_atomically(path: Path, content: Any) -> None:
    """Under another name, to the disk, then renamed: whoever reads sees all of it or nothing.

    Raises:
        KDPluginError: it cannot be written; nothing is left of it
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
            f"{path}: {len(content)} bytes could not be written: {error.strerror or error}. What is finished is kept. "
            "Remedy: make room, then run the same command again"
        ) from error


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path, remedy: str) -> Dict[str, Any]:
    """The object in a JSON file.

    Raises:
        KDPluginError: not there, no JSON or no object in it; ends with `remedy`
    """
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KDPluginError(f"{path} cannot be read: {error}. {remedy}") from error
    if not isinstance(content, dict):
        raise KDPluginError(f"{path}: it holds no JSON object. {remedy}")
    return content


def make_folder(folder: Path, flag: str) -> None:
    """Make a folder for output, or refuse it by its flag."""
    remedy = "Remedy: a folder that can be written"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KDPluginError(f"{flag} {folder}: {error.strerror}. {remedy}") from error
    if not os.access(folder, os.W_OK):
        raise KDPluginError(f"{flag} {folder}: no permission to write. {remedy}")
