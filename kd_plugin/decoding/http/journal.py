"""The answers of an unfinished shard, so that a restart does not repeat requests.

Until the shard is finished, `.shard-00000.answers` lies beside its files: a line of JSON that names the job, and a line
for each answered sentence. Lines are appended immediately, so that a killed process loses none of them; they are synced
to disk in small groups. A line that is incomplete after a kill does not count.
"""

import json
import os
import re
import time
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import write_atomically
from kd_plugin.files.json_text import parse_json, typed
from kd_plugin.files.sharded_folder import shard_name

ENDING = ".answers"
NAME = re.compile(r"\.(shard-\d+)\.answers")
GROUP, SECONDS = 64, 1.0  # number of answers, or time, after which they are synced to disk


class Entry(NamedTuple):
    """The result for a sentence.

    place: in the shard
    texts, scores: those of its translations
    faults: reasons of rejected answers; lost: why there is no answer at all
    tokens: of the prompt, and of all answers
    """

    place: int
    texts: List[str]
    scores: List[Optional[float]]
    faults: List[str]
    lost: Optional[str]
    tokens: List[int]


class Journal:
    """The journal of one shard, opened by the run that has claimed the shard.

    Args:
        identity_sha256: the job's; a journal of another job is refused
        sentences: number of sentences in the shard

    Raises:
        KDPluginError: it cannot be written, or belongs to another job
    """

    def __init__(self, folder: Path, shard: int, identity_sha256: str, sentences: int):
        self.path = journal_path(folder, shard)
        self._head = json.dumps({"identity_sha256": identity_sha256}).encode() + b"\n"
        self.entries: Dict[int, Entry] = {}
        whole = self._read(sentences)
        try:
            # an incomplete line would otherwise be joined to the next one
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
            self._file = os.open(self.path, flags, 0o666)
            os.ftruncate(self._file, whole)
            os.lseek(self._file, 0, os.SEEK_END)
        except OSError as error:
            raise self._unwritten(error) from error
        self._waiting, self._last = 0, time.monotonic()
        if not whole:
            self._write(self._head)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: Any) -> None:
        os.close(self._file)

    def add(self, entry: Entry) -> None:
        """Record the result for a sentence."""
        self.entries[entry.place] = entry
        self._write(json.dumps(entry._asdict()).encode() + b"\n")
        self._waiting += 1
        now = time.monotonic()
        if self._waiting >= GROUP or now > self._last + SECONDS:
            self._waiting, self._last = 0, now
            try:
                os.fsync(self._file)
            except OSError as error:
                raise self._unwritten(error) from error

    def forget(self, places: Iterable[int]) -> None:
        """Remove sentences, so that the next run asks them again. Nothing can be added to the journal after that."""
        for place in places:
            self.entries.pop(place, None)
        lines = (json.dumps(entry._asdict()).encode() + b"\n" for entry in self.entries.values())
        write_atomically(self.path, self._head + b"".join(lines))

    def _write(self, line: bytes) -> None:
        # one call per line: a concurrent reader sees, and a kill leaves, at most one incomplete line
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> KDPluginError:
        return KDPluginError(
            f"{self.path}: answers could not be written: {error.strerror or error}. Finished work is kept. Remedy: "
            "free disk space, then run the same command again"
        )

    def _read(self, sentences: int) -> int:
        """Read the entries of an earlier run; returns the number of bytes in complete lines."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise KDPluginError(
                f"{self.path} cannot be read: {error.strerror or error}. Remedy: use a readable folder"
            ) from error
        whole = content.rfind(b"\n") + 1
        head, *lines = content[:whole].split(b"\n")
        if not whole:
            return 0
        if head + b"\n" != self._head:
            raise KDPluginError(
                f"{self.path}: contains another job's answers. Remedy: use another --output, or remove the file"
            )
        for line in lines:
            entry = _entry(line)
            if entry is not None and 0 <= entry.place < sentences:
                self.entries[entry.place] = entry
        return whole


def _entry(line: bytes) -> Optional[Entry]:
    """The entry in a line; None: the line is damaged, and its sentence is asked again."""
    try:
        entry = typed(Entry, parse_json(line))
    except (ValueError, TypeError):
        return None
    fits = len(entry.texts) == len(entry.scores) and len(entry.tokens) == 2
    return entry if fits and (entry.texts or entry.faults or entry.lost) else None


def journal_path(folder: Path, shard: int) -> Path:
    """Where the answers of a shard of this number are, until it is finished."""
    return Path(folder) / f".{shard_name(shard)}{ENDING}"


def remove_finished(folder: Path) -> None:
    """Remove journals of finished shards, left by a run that was killed just then."""
    for path in Path(folder).glob(f".shard-*{ENDING}"):
        found = NAME.fullmatch(path.name)
        if found and (path.parent / f"{found[1]}.json").is_file():
            path.unlink(missing_ok=True)
