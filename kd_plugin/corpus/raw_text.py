"""Reads UTF-8 files line by line. Only LF and CR LF end a line; U+2028 and the like are text."""

import contextlib
import gzip
import hashlib
import zlib
from array import array
from io import BufferedReader
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple, cast

import numpy as np

from kd_plugin.corpus.text_formats import GZIP, check_plain
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import sha256_of
from kd_plugin.runners.progress import progress

HEAD = 8192  # bytes: the size of a file's buffer


def numbered_lines(path: Path, flag: str, table: bool = False) -> Iterator[Tuple[int, str]]:
    """(number, from 1, and text without its line end) of each line; unpacks gzip.

    Args:
        table: whether the file should be a table or JSON rather than sentences

    Raises:
        KDPluginError: the file cannot be read or unpacked, is not plain text, or a line, which is named, is not UTF-8
    """
    number = 0
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(_unpacked(stack.enter_context(open(path, "rb")), Path(path)))
            check_plain(file.peek(HEAD)[:HEAD], path, flag, table)
            for number, line in enumerate(file, 1):
                yield number, decode_line(line, number, path, flag)
    except (OSError, EOFError, zlib.error) as error:
        raise KDPluginError(
            f"{flag} {path}: cannot be read after line {number}: {getattr(error, 'strerror', None) or error}. "
            "Remedy: an existing, undamaged file"
        ) from error


def _unpacked(file: BufferedReader, path: Path) -> BufferedReader:
    """Unpacks gzip. Uses peek to detect it, because a pipe cannot be read twice."""
    packed = path.suffix == ".gz" or file.peek(len(GZIP)).startswith(GZIP)
    return cast(BufferedReader, gzip.GzipFile(fileobj=file, mode="rb")) if packed else file


def decode_line(line: bytes, number: int, path: Path, flag: str) -> str:
    """A line's text without its line end and, in the first line, without a byte order mark."""
    line = line[:-1] if line.endswith(b"\n") else line
    line = line[:-1] if line.endswith(b"\r") else line
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KDPluginError(
            f"{flag} {path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}). Remedy: convert the file "
            "(iconv), or remove the line"
        ) from error
    return text[1:] if number == 1 and text.startswith("\ufeff") else text


def checked_sha256(path: Path, flag: str) -> str:
    """The sha256 of a file that the user has named; refuses one that cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise KDPluginError(f"{flag} {path}: {error.strerror}. Remedy: an existing, readable file") from error


class TextLines:
    """Random access to a text file's lines by number, from 0. Keeps only their offsets in memory, 8 bytes per line.

    Args:
        seen: called with each line's text once, in order

    Raises:
        KDPluginError: the file cannot be read, is packed or not plain text, or a line, which is named, is not UTF-8
    """

    def __init__(self, path: Path, flag: str, seen: Callable[[str], Any] = lambda text: None):
        self._path, self._flag = Path(path), flag
        digest, starts, position = hashlib.sha256(), array("q", [0]), 0
        try:
            with open(self._path, "rb") as file:
                head = file.peek(HEAD)[:HEAD]
                if head.startswith(GZIP):
                    raise KDPluginError(f"{flag} {path}: is packed, but must allow random access. Remedy: gunzip it")
                check_plain(head, path, flag)
                for number, line in enumerate(progress(file, None, "reading", "line"), 1):
                    seen(decode_line(line, number, path, flag))
                    digest.update(line)
                    position += len(line)
                    starts.append(position)
            self._file = open(self._path, "rb")
        except OSError as error:
            raise KDPluginError(f"{flag} {path}: {error.strerror}. Remedy: an existing, readable file") from error
        self._starts = np.frombuffer(starts, dtype=np.int64)
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, line: int) -> str:
        start, stop = map(int, self._starts[line : line + 2])
        self._file.seek(start)
        return decode_line(self._file.read(stop - start), line + 1, self._path, self._flag)

    def close(self) -> None:
        self._file.close()
