"""UTF-8 files read line by line. A line ends in LF or CR LF and in nothing else: U+2028 and its like are text."""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import BinaryIO, Iterator, Tuple, cast

import numpy as np

from kd_plugin.errors import KDPluginError
from kd_plugin.files import sha256_of


def numbered_lines(path: Path, flag: str) -> Iterator[Tuple[int, str]]:
    """(number, from 1, and text without its end) of each line; .gz is unpacked. A byte order mark is left out.

    Args:
        flag: that names the file, for errors

    Raises:
        KDPluginError: it cannot be read or unpacked, or is no UTF-8: the line is named
    """
    number = 0
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                text = decode_line(line, number, path, flag)
                yield number, text[1:] if number == 1 and text.startswith("\ufeff") else text
    except (OSError, EOFError, zlib.error) as error:
        raise KDPluginError(
            f"{flag} {path}: cannot be read after line {number}: {getattr(error, 'strerror', None) or error}. "
            "Remedy: an undamaged file that exists"
        ) from error


def open_bytes(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if Path(path).suffix == ".gz" else open(path, "rb")


def decode_line(line: bytes, number: int, path: Path, flag: str) -> str:
    """A line's text without its end."""
    line = line[:-1] if line.endswith(b"\n") else line
    line = line[:-1] if line.endswith(b"\r") else line
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KDPluginError(
            f"{flag} {path}, line {number}: no UTF-8 ({error.reason} at byte {error.start}). Remedy: convert the file "
            "(iconv), or take the line out"
        ) from error


def checked_sha256(path: Path, flag: str) -> str:
    """Of a file that a user has named.

    Raises:
        KDPluginError: it cannot be read
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise KDPluginError(f"{flag} {path}: {error.strerror}. Remedy: a file that exists and can be read") from error


class TextLines:
    """A text file's lines by their number, from 0. In memory are where they begin, 8 bytes a line.

    Raises:
        KDPluginError: it cannot be read, is packed, or is no UTF-8: the line is named
    """

    def __init__(self, path: Path, flag: str):
        self._path, self._flag = Path(path), flag
        if self._path.suffix == ".gz":
            raise KDPluginError(f"{flag} {path}: is packed, and must be read in any order. Remedy: gunzip it")
        digest, starts, position = hashlib.sha256(), np.zeros(1024, np.int64), 0
        self._lines = 0
        try:
            with open(self._path, "rb") as file:
                for number, line in enumerate(file, 1):
                    decode_line(line, number, self._path, flag)
                    digest.update(line)
                    position += len(line)
                    if number == len(starts):
                        starts = np.concatenate([starts, np.zeros(number, np.int64)])
                    starts[number] = position
                    self._lines = number
            self._file = open(self._path, "rb")
        except OSError as error:
            raise KDPluginError(f"{flag} {path}: {error.strerror}. Remedy: a file that exists") from error
        self._starts = starts[: self._lines + 1]
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return self._lines

    def __getitem__(self, line: int) -> str:
        start, stop = map(int, self._starts[line : line + 2])
        self._file.seek(start)
        return decode_line(self._file.read(stop - start), line + 1, self._path, self._flag)

    def close(self) -> None:
        self._file.close()
