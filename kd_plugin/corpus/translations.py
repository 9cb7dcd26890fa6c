"""Translations of a corpus on disk: what `kd-plugin decode` and `import` write, and `select` and `filter` rewrite.

A folder of shards in JSON lines and a manifest, which is written last: a folder without one is not finished. A line is
a source sentence with all its translations, and the numbers of the corpus' lines that have this source:

    {"ids": [0, 17], "source": "A dog.", "hypotheses": [{"text": "Ein Hund.", "score": -0.21}]}

Records come in the order of their first id; no id occurs twice. Text is raw (no subwords) and holds no line break.
"""

import heapq
import itertools
import re
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from kd_plugin.corpus.hypotheses import Hypothesis as Hypothesis  # its name from version 0.1 on
from kd_plugin.corpus.hypotheses import Record as Record
from kd_plugin.corpus.languages import check_languages
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of, digest_of_bytes
from kd_plugin.files.json_text import typed
from kd_plugin.files.sharded_folder import MANIFEST, Format, Plan, ShardedFolder, check_sha256, shard_name

SHARD_NAME = re.compile(r"shard-\d{5,}")
AGAIN = "run the same command again, or fetch an undamaged copy"
REMEDY, DAMAGED = f"Remedy: {AGAIN}", f"Remedy: delete it and {AGAIN}"
FORMAT = Format("kd_plugin translations", 1, "translations", "translations", REMEDY)


class Shard(NamedTuple):
    """A file of records. counts: what else its writer counted, summed up in the manifest."""

    name: str
    sha256: str
    records: int
    lines: int
    hypotheses: int
    counts: Dict[str, int]

    def path(self, folder: Path) -> Path:
        return Path(folder) / f"{self.name}.jsonl"


class Manifest(NamedTuple):
    """What a folder holds.

    Args:
        identity: all that decides what is in it: verb, options, hashes of what it was made from; JSON
        languages: [source, target]
        input_lines: of the corpus that was translated first: ids lie in 0 … input_lines - 1
    """

    identity: Dict[str, Any]
    languages: List[str]
    input_lines: int
    shards: List[Shard]

    @property
    def records(self) -> int:
        return sum(shard.records for shard in self.shards)

    @property
    def lines(self) -> int:
        """How many ids there are: less than input_lines where lines were dropped."""
        return sum(shard.lines for shard in self.shards)

    @property
    def hypotheses(self) -> int:
        return sum(shard.hypotheses for shard in self.shards)

    @property
    def counts(self) -> Dict[str, int]:
        total: Dict[str, int] = {}
        for shard in self.shards:
            for name, count in shard.counts.items():
                total[name] = total.get(name, 0) + count
        return total

    def content(self) -> Dict[str, Any]:
        return {
            **FORMAT.header(),
            "identity": self.identity,
            "languages": self.languages,
            "input_lines": self.input_lines,
            "lines": self.lines,
            "records": self.records,
            "hypotheses": self.hypotheses,
            "counts": self.counts,
            "shards": [shard._asdict() for shard in self.shards],
        }

    def digest(self) -> str:
        """Of everything: what a verb that reads the folder puts into its own identity."""
        return digest_of(self.content())

    def write(self, folder: Path) -> None:
        FORMAT.write(folder, {**self.content(), "sha256": self.digest()})

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        path = Path(folder) / MANIFEST
        if not path.is_file():
            state = "is not finished" if Path(folder).is_dir() else "does not exist"
            raise KDPluginError(
                f"{folder}: no {MANIFEST} there: the folder {state}. Remedy: kd-plugin decode (the same command goes "
                "on with what is missing) or kd-plugin import"
            )
        manifest = FORMAT.read(folder, cls._parse)
        check_languages(*manifest.languages, where=str(path))
        return manifest

    @classmethod
    def _parse(cls, content: Dict[str, Any]) -> Tuple["Manifest", bool]:
        fields = {name: content[name] for name in ("identity", "languages", "input_lines")}
        shards = [typed(Shard, shard) for shard in content["shards"]]
        manifest = typed(cls, {**fields, "shards": []})._replace(shards=shards)
        if len(manifest.languages) != 2 or not all(SHARD_NAME.fullmatch(shard.name) for shard in shards):
            raise TypeError("languages or names of shards")
        return manifest, manifest.digest() == content["sha256"]


class Translations:
    """A finished folder, read from its beginning to its end.

    Raises:
        KDPluginError: not finished, changed or damaged; each shard's sha256 is compared before its first record is
            given away
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)

    def __len__(self) -> int:
        """Number of records."""
        return self.manifest.records

    def check_any(self) -> None:
        """Raises KDPluginError where there is no translation at all."""
        if not self.manifest.hypotheses:
            raise KDPluginError(
                f"{self.folder}: holds no translation; nothing was written. Remedy: look at what made it, and at its "
                "counts in the manifest"
            )

    def records(self) -> Iterator[Record]:
        """All records, by their first id."""
        last, ids = -1, 0
        for shard in self.manifest.shards:
            for record in self.records_of(shard):
                first = record.ids[0] if record.ids else -1
                if (
                    first <= last
                    or record.ids != sorted(set(record.ids))
                    or record.ids[-1] >= self.manifest.input_lines
                ):
                    raise KDPluginError(f"{shard.path(self.folder)}: ids {record.ids} after {last}. {REMEDY}")
                last, ids = first, ids + len(record.ids)
                yield record
        if ids != self.manifest.lines:
            raise KDPluginError(f"{self.folder}: {ids} lines instead of {self.manifest.lines}. {REMEDY}")

    def records_of(self, shard: Shard) -> Iterator[Record]:
        """One shard's records."""
        path = shard.path(self.folder)
        if not path.is_file():
            raise KDPluginError(f"{path} is missing. {REMEDY}")
        check_sha256(path, shard.sha256, DAMAGED)
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = Record.decode(line.decode("utf-8"))
                except ValueError as error:
                    reason = str(error)[:300]
                    raise KDPluginError(
                        f"{path}, line {number}: no record of translations: {reason}. {DAMAGED}"
                    ) from error
                yield record

    def lines(self) -> Iterator[Tuple[int, Record]]:
        """(id, its record) for every line of the corpus that is left, in the corpus' order, each once.

        What it holds in memory are the records whose source occurs again.
        """
        waiting: List[Tuple[int, int, Record]] = []  # its next line, and which one of its lines that is
        last = -1
        for record in itertools.chain(self.records(), [None]):
            while waiting and (record is None or waiting[0][0] < record.ids[0]):
                line, at, known = heapq.heappop(waiting)
                if line <= last:
                    raise KDPluginError(f"{self.folder}: two translations of line {line}. {REMEDY}")
                yield line, known
                last = line
                if at + 1 < len(known.ids):
                    heapq.heappush(waiting, (known.ids[at + 1], at + 1, known))
            if record is not None:
                heapq.heappush(waiting, (record.ids[0], 0, record))


class TranslationsFolder(ShardedFolder[Shard]):
    """Translations that are being written."""

    format, kind = FORMAT, Shard

    def is_whole(self, shard: Shard, plan: Plan) -> bool:
        return shard.path(self.path).is_file()

    def write_records(self, name: str, records: Iterable[Record], counts: Optional[Dict[str, int]] = None) -> Shard:
        """Write a shard."""
        kept = list(records)
        content = "".join(record.encode() + "\n" for record in kept).encode("utf-8")
        shard = Shard(
            name,
            sha256=digest_of_bytes(content),
            records=len(kept),
            lines=sum(len(record.ids) for record in kept),
            hypotheses=sum(len(record.hypotheses) for record in kept),
            counts=dict(counts or {}),
        )
        return self.write(shard, {"jsonl": content})


class Writer:
    """Writes records that come in the order of their ids, a shard at a time, and the manifest at the end.

    Args:
        identity, languages, input_lines: as Manifest's
        flag: that names the folder, for errors
    """

    def __init__(
        self,
        folder: Path,
        identity: Dict[str, Any],
        languages: List[str],
        input_lines: int,
        flag: str = "--output",
        shard_records: int = 50_000,
    ):
        self._folder, self._shard_records = TranslationsFolder(folder, digest_of(identity)), shard_records
        self._manifest = Manifest(identity, languages, input_lines, [])
        self._waiting: List[Record] = []
        self._claim = self._folder.claim(flag)
        (self._folder.path / MANIFEST).unlink(missing_ok=True)  # until all of it is there again

    def add(self, record: Record) -> None:
        self._waiting.append(record)
        if len(self._waiting) >= self._shard_records:
            self._flush({})

    def finish(self, counts: Optional[Dict[str, int]] = None) -> Manifest:
        """counts: of the whole run, such as what a filter dropped and why."""
        self._flush(counts or {})
        self._manifest.write(self._folder.path)
        self._claim.finish()
        return self._manifest

    def _flush(self, counts: Dict[str, int]) -> None:
        name = shard_name(len(self._manifest.shards))
        self._folder.remove_leftovers([name])
        try:
            shard = self._folder.write_records(name, self._waiting, counts)
        except KDPluginError:
            if not self._manifest.shards:
                self._claim.finish()  # nothing was written: the folder is as free as before
            raise
        self._manifest.shards.append(shard)
        self._waiting = []
