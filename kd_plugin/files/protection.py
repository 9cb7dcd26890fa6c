"""Decides where a run may write: never over an input, nor over anything that the user or another run has made.

A verb calls `check_outputs` with its inputs and outputs once, before any work. Paths are compared by the file that they
refer to, not by spelling: through links, `./`, relative paths, and case-insensitive file systems.
"""

import contextlib
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List, Sequence, Tuple, Union

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import NAME_BYTES, temporary_beside, write_atomically

PathLike = Union[str, Path]
Named = Tuple[str, Any]  # a flag and its path or paths; None: not given

ELSEWHERE = "Remedy: another name or folder"


def check_outputs(
    inputs: Iterable[Named],
    folders: Iterable[Tuple[str, PathLike]] = (),
    files: Iterable[Tuple[str, PathLike]] = (),
    made: Callable[[Path], bool] = lambda path: False,
) -> None:
    """Refuses outputs that cannot be written or would destroy something.

    Args:
        inputs: all files and folders that the run reads; one value may name several, as A:B or as a list
        folders: output folders, each for this run alone; `kd_plugin.files.locks` judges their existing content
        files: output files
        made: whether this same job made an existing file and may replace it
    """
    read: List[Tuple[str, PathLike]] = [(flag, path) for flag, value in inputs for path in _paths(value)]
    written: List[Tuple[str, PathLike]] = []
    for flag, folder in folders:
        check_possible(flag, folder)
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise KDPluginError(f"{flag} {folder}: is a file. {ELSEWHERE}")
        _check_apart(flag, folder, read, written)
        written.append((flag, folder))
    for flag, file in files:
        check_possible(flag, file)
        if os.path.isdir(file):
            raise KDPluginError(f"{flag} {file}: is a folder, but must be a file. {ELSEWHERE}")
        _check_apart(flag, file, read, written)
        if os.path.lexists(file) and not made(Path(file)):
            raise KDPluginError(already_there(flag, file))
        written.append((flag, file))


def already_there(flag: str, file: PathLike) -> str:
    return f"{flag} {file}: already exists, and this job did not write it. {ELSEWHERE}, or remove the file"


def check_possible(flag: str, path: PathLike) -> None:
    """Refuses a path that is invalid or where nothing can be created.

    Raises:
        KDPluginError: an empty path, a NUL, a name that is too long, a file or a broken link on the way, or no
            permission
    """
    text = os.fspath(path)
    if not text:
        raise KDPluginError(f"{flag}: is empty. Remedy: a path")
    if "\0" in text:
        raise KDPluginError(f"{flag} {text!r}: contains a NUL character, which no path can. {ELSEWHERE}")
    place = os.path.abspath(text)
    for name in Path(place).parts:
        if len(os.fsencode(name)) > NAME_BYTES:
            raise KDPluginError(
                f"{flag} {text}: the name {name[:40]}… has {len(os.fsencode(name))} bytes, but a file name may have "
                f"only {NAME_BYTES}. Remedy: a shorter name"
            )
    try:
        if os.path.islink(place) and not os.path.exists(place):
            raise KDPluginError(f"{flag} {text}: is a broken link. {ELSEWHERE}, or remove the link")
        existing = place if os.path.isdir(place) else os.path.dirname(place)
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        os.stat(os.path.join(existing, ""))  # fails unless it is a folder that we may enter
    except OSError as error:
        raise KDPluginError(f"{flag} {text}: {error.filename}: {error.strerror}. {ELSEWHERE}") from error
    if not os.access(existing, os.W_OK | os.X_OK):
        raise KDPluginError(f"{flag} {text}: no permission to write in {existing}. Remedy: a writable folder")


def same_place(one: PathLike, other: PathLike) -> bool:
    """Whether two paths are the same file or folder, through links and spellings; neither needs to exist."""
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    first, second = os.path.realpath(one), os.path.realpath(other)
    return first == second or (_folded(first) == _folded(second) and _folds_case(first))


def place(temporary: Path, path: Path, flag: str, may_replace: Callable[[Path], bool]) -> None:
    """Gives a finished file its name, unless another file has taken the name in the meantime.

    Raises:
        KDPluginError: another file has taken it, and `may_replace` forbids replacing it
        OSError: as os.replace
    """
    try:
        os.link(temporary, path)  # unlike a rename, it fails if the file exists
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not os.path.lexists(path):
            os.replace(temporary, path)
            return
    else:
        temporary.unlink()
        return
    if not may_replace(path):
        raise KDPluginError(already_there(flag, path))
    os.replace(temporary, path)


def write_output(path: Path, content: bytes, flag: str, made: Callable[[Path], bool]) -> None:
    """Writes a file atomically, and never over one that this job did not make.

    Args:
        made: as for check_outputs

    Raises:
        KDPluginError: the file cannot be written, or it exists and this job did not make it
    """
    temporary = temporary_beside(path)
    try:
        write_atomically(temporary, content)
        place(temporary, path, flag, made)
    except OSError as error:
        raise KDPluginError(f"{flag} {path}: {error.strerror or error}. {ELSEWHERE}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _paths(value: Any) -> Iterator[str]:
    """The existing paths in a flag's value, which may be A, A:B, A,B, NAME=A, or a list of these.

    Missing inputs are left to their readers to refuse.
    """
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _paths(each)
    elif value is not None:
        text = os.fspath(value)
        if text.startswith("["):
            with contextlib.suppress(ValueError, RecursionError):
                yield from _paths([path for path in json.loads(text) if isinstance(path, str)])
        whole = [text, text.partition("=")[2]]
        for path in dict.fromkeys([*whole, *(part for each in whole for part in re.split("[:,]", each))]):
            if path and "\0" not in path and os.path.exists(path):
                yield path


def _check_apart(
    flag: str, path: PathLike, read: Sequence[Tuple[str, PathLike]], written: List[Tuple[str, PathLike]]
) -> None:
    for other_flag, other in read:
        if same_place(path, other):
            raise KDPluginError(f"{flag} {path}: would overwrite {other_flag} {other}. {ELSEWHERE}")
    for other_flag, other in written:
        if same_place(path, other) or any(same_place(path, above) for above in Path(os.path.realpath(other)).parents):
            raise KDPluginError(f"{flag} {path}: conflicts with {other_flag} {other}. {ELSEWHERE}")


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _folds_case(path: str) -> bool:
    """Whether the file system there is case-insensitive."""
    while path != os.path.dirname(path):
        path, name = os.path.split(path)
        there, swapped = os.path.join(path, name), os.path.join(path, name.swapcase())
        if os.path.lexists(there) and swapped != there:
            return os.path.exists(swapped) and os.path.samefile(there, swapped)
    return False
