"""UTF-8 files read line by line. A line ends in LF or CR LF and in nothing else: U+2028 and its like are text."""

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

HEAD = 8192  # bytes: as many as a file's buffer holds


def numbered_lines(path: Path, flag: str, table: bool = False) -> Iterator[Tuple[int, str]]:
    """(number, from 1, and text without its end) of each line; what gzip has packed is unpacked.

    Args:
        table: columns and JSON are asked for, and not sentences

    Raises:
        KDPluginError: it cannot be read or unpacked, is no plain text, or no UTF-8: the line is named
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
            "Remedy: an undamaged file that exists"
        ) from error


def _unpacked(file: BufferedReader, path: Path) -> BufferedReader:
    """A pipe cannot be read twice: what it holds is looked at without being taken."""
    packed = path.suffix == ".gz" or file.peek(len(GZIP)).startswith(GZIP)
    return cast(BufferedReader, gzip.GzipFile(fileobj=file, mode="rb")) if packed else file


def decode_line(line: bytes, number: int, path: Path, flag: str) -> str:
    """A line's text without its end, the first one's without a byte order mark."""
    line = line[:-1] if line.endswith(b"\n") else line
    line = line[:-1] if line.endswith(b"\r") else line
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KDPluginError(
            f"{flag} {path}, line {number}: no UTF-8 ({error.reason} at byte {error.start}). Remedy: convert the file "
            "(iconv), or take the line out"
        ) from error
    return text[1:] if number == 1 and text.startswith("\ufeff") else text


def checked_sha256(path: Path, flag: str) -> str:
    """Of a file that a user has named, which is refused if it cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise KDPluginError(f"{flag} {path}: {error.strerror}. Remedy: a file that exists and can be read") from error


class TextLines:
    """A text file's lines by their number, from 0. In memory are where they begin, 8 bytes a line.

    Args:
        seen: is shown each line's text once, in their order

    Raises:
        KDPluginError: it cannot be read, is packed, no plain text, or no UTF-8: the line is named
    """

    def __init__(self, path: Path, flag: str, seen: Callable[[str], Any] = lambda text: None):
        self._path, self._flag = Path(path), flag
        digest, starts, position = hashlib.sha256(), array("q", [0]), 0
        try:
            with open(self._path, "rb") as file:
                head = file.peek(HEAD)[:HEAD]
                if head.startswith(GZIP):
                    raise KDPluginError(f"{flag} {path}: is packed, and must be read in any order. Remedy: gunzip it")
                check_plain(head, path, flag)
                for number, line in enumerate(progress(file, None, "reading", "line"), 1):
                    seen(decode_line(line, number, path, flag))
                    digest.update(line)
                    position += len(line)
                    starts.append(position)
            self._file = open(self._path, "rb")
        except OSError as error:
            raise KDPluginError(
                f"{flag} {path}: {error.strerror}. Remedy: a file that exists and can be read"
            ) from error
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
