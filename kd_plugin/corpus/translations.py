"""Translations of a corpus on disk: `kd-plugin decode` and `import` write them, `select` and `filter` rewrite them.

A folder holds shards in JSON lines and a manifest, which is written last: without one the folder is unfinished. A line
is a source sentence with all its translations, and the numbers of the corpus lines that have this source:

    {"ids": [0, 17], "source": "A dog.", "hypotheses": [{"text": "Ein Hund.", "score": -0.21}]}

Records are ordered by their first id; no id occurs twice. Text is raw (no subwords) and contains no line breaks.
"""

import heapq
import itertools
import re
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from kd_plugin.corpus.hypotheses import Hypothesis as Hypothesis  # public here since version 0.1
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
    """A file of records. counts: further counts of its writer, summed up in the manifest."""

    name: str
    sha256: str
    records: int
    lines: int
    hypotheses: int
    counts: Dict[str, int]

    def path(self, folder: Path) -> Path:
        return Path(folder) / f"{self.name}.jsonl"


class Manifest(NamedTuple):
    """The content of a folder.

    Args:
        identity: everything that determines the content: verb, options, hashes of the inputs; JSON
        languages: [source, target]
        input_lines: of the original corpus: ids lie in 0 … input_lines - 1
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
        """The number of ids; less than input_lines if lines were dropped."""
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
        """The hash of everything, which a verb that reads the folder puts into its own identity."""
        return digest_of(self.content())

    def write(self, folder: Path) -> None:
        FORMAT.write(folder, {**self.content(), "sha256": self.digest()})

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        path = Path(folder) / MANIFEST
        if not path.is_file():
            state = "is not finished" if Path(folder).is_dir() else "does not exist"
            raise KDPluginError(
                f"{folder}: no {MANIFEST} there: the folder {state}. Remedy: kd-plugin decode (the same command "
                "resumes the job) or kd-plugin import"
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
    """A finished folder, read sequentially.

    Raises:
        KDPluginError: it is unfinished, changed or damaged; each shard's sha256 is verified before its first record is
            returned
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)

    def __len__(self) -> int:
        """The number of records."""
        return self.manifest.records

    def check_any(self) -> None:
        """Raises KDPluginError if there is no translation at all."""
        if not self.manifest.hypotheses:
            raise KDPluginError(
                f"{self.folder}: contains no translation; nothing was written. Remedy: check how it was made, and the "
                "counts in its manifest"
            )

    def records(self) -> Iterator[Record]:
        """All records, in the order of their first id."""
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
                        f"{path}, line {number}: not a record of translations: {reason}. {DAMAGED}"
                    ) from error
                yield record

    def lines(self) -> Iterator[Tuple[int, Record]]:
        """(id, its record) for every remaining line of the corpus, once each, in the order of the corpus.

        Keeps only those records in memory whose source occurs again.
        """
        waiting: List[Tuple[int, int, Record]] = []  # a record's next line, the index of that line in its ids, itself
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
    """Translations during writing."""

    format, kind = FORMAT, Shard

    def is_whole(self, shard: Shard, plan: Plan) -> bool:
        return shard.path(self.path).is_file()

    def write_records(self, name: str, records: Iterable[Record], counts: Optional[Dict[str, int]] = None) -> Shard:
        """Writes a shard."""
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
    """Writes records, which must come in the order of their ids, shard by shard, and finally the manifest.

    Args:
        identity, languages, input_lines: as in Manifest
    """

    def __init__(
        self,
        folder: Path,
        identity: Dict[str, Any],
        languages: List[str],
        input_lines: int,
        shard_records: int = 50_000,
    ):
        self._folder, self._shard_records = TranslationsFolder(folder, digest_of(identity)), shard_records
        self._manifest = Manifest(identity, languages, input_lines, [])
        self._waiting: List[Record] = []
        self._claim = self._folder.claim("--output")
        (self._folder.path / MANIFEST).unlink(missing_ok=True)  # until everything is rewritten

    def add(self, record: Record) -> None:
        self._waiting.append(record)
        if len(self._waiting) >= self._shard_records:
            self._flush({})

    def finish(self, counts: Optional[Dict[str, int]] = None) -> Manifest:
        """Writes the rest. counts: of the whole run, such as the number of lines that a filter rule dropped."""
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
                self._claim.finish()  # nothing was written, so release the folder
            raise
        self._manifest.shards.append(shard)
        self._waiting = []
