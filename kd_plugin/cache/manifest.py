"""A store's manifest, in JSON: whose answers it holds, for which data, and the hashes of its files."""

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from kd_plugin.cache.records import Layout, WholeLayout
from kd_plugin.files.atomic import digest_of
from kd_plugin.files.json_text import is_number, typed
from kd_plugin.files.sharded_folder import Format, shard_name

KINDS = ("topk", "sampled")
WHOLE = "whole"  # the kind of a labelling teacher's answers: all outputs
BLOCK_TOKENS = 1024  # records per checksum: the first access to any of them reads all of them
AGAIN = "run the same kd-plugin cache command again, or fetch an undamaged copy"
REMEDY = f"Remedy: {AGAIN}"
OF_PARTS = ("dropped", "dropped_tokens")
FORMAT = Format("kd_plugin teacher cache", 2, "a teacher cache", "answers", REMEDY)


class Shard(NamedTuple):
    """One file of records, for the target tokens that follow the previous shard's.

    sha256 is the hash of the records, checksums_sha256 that of the checksum file beside them.
    dropped: the teacher's probability on symbols that the student lacks, summed over `dropped_tokens`; None: it lacks
        none. Only in the shard's own file: a manifest has the mean of all
    """

    name: str
    tokens: int
    sha256: str
    checksums_sha256: str
    histogram: List[int]
    captured: float
    dropped: Optional[float] = None
    dropped_tokens: int = 0

    def records_path(self, folder: Path) -> Path:
        return folder / f"{self.name}.bin"

    def checksums_path(self, folder: Path) -> Path:
        return folder / f"{self.name}.crc"

    @property
    def remedy(self) -> str:
        """The remedy for damaged files: the command rewrites missing files, but keeps files of the right size."""
        return f"Remedy: delete {self.name}.* and {AGAIN}"


class Identity(NamedTuple):
    """Everything that determines a store's content; jobs that differ in any of it cannot write to the same store.

    teachers: for each, its sha256, parameters, weight, and the mapping of its dictionaries to the student's
    overrides: --teacher-overrides, without the location of the dictionaries
    max_positions: the longest (source, target) that the teachers accept; longer sentences have no answer
    data: {target_sha256, source_sha256, sentences, tokens} of the binarised split; with --truncate-source also
        source_truncated_to, in tokens. For labels: {input0_sha256, input1_sha256, reading_sha256, labels, sentences,
        tokens}, where tokens are sentences or words, and labels their names in the order of the values
    dictionary_sha256: of the target symbols in the order that ids refer to
    """

    kind: str
    k: int
    temperature: float
    vocab: int
    seed: int
    dtype: str
    shard_tokens: int
    split: str
    dictionary_sha256: str
    max_positions: List[int]
    data: Dict[str, Any]
    teachers: List[Dict[str, Any]]
    overrides: Dict[str, Any]

    @property
    def layout(self) -> Union[Layout, WholeLayout]:
        return WholeLayout(self.vocab) if self.kind == WHOLE else Layout(self.k, self.vocab)

    def digest(self) -> str:
        return digest_of(self._asdict())


class Manifest(NamedTuple):
    """What a store holds.

    teacher_dropped: the mean share of the teacher's probability on symbols that the student lacks; None: it lacks none,
        or the store is of a version that did not say
    """

    identity: Identity
    shards: List[Shard]
    teacher_dropped: Optional[float] = None

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def captured(self) -> float:
        """The share of the teacher's mass that the entries capture, averaged over all tokens."""
        return sum(shard.captured for shard in self.shards) / max(1, self.tokens)

    def write(self, folder: Path) -> None:
        content = {
            "identity": self.identity._asdict(),
            "identity_sha256": self.identity.digest(),
            "bytes_per_token": self.identity.layout.width,
            "tokens": self.tokens,
            "captured_mass": self.captured,
            "captured_mass_histogram": [sum(counts) for counts in zip(*(s.histogram for s in self.shards))],
            # with the keys that all versions of this format have
            "shards": [
                {name: value for name, value in shard._asdict().items() if name not in OF_PARTS}
                for shard in self.shards
            ],
        }
        if self.teacher_dropped is not None:
            content["teacher_dropped"] = self.teacher_dropped
        FORMAT.write(folder, content)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        return FORMAT.read(folder, cls._parse)

    @classmethod
    def _parse(cls, content: Dict[str, Any]) -> Tuple["Manifest", bool]:
        dropped = content.get("teacher_dropped")
        if dropped is not None and not (is_number(dropped) and 0 <= dropped <= 1):
            raise TypeError(f"teacher_dropped is {str(dropped)[:60]}")
        shards = [typed(Shard, shard) for shard in content["shards"]]
        manifest = cls(typed(Identity, content["identity"]), shards, dropped)
        if min(manifest.identity.k, manifest.identity.vocab, *(1 + shard.tokens for shard in manifest.shards)) < 1:
            raise TypeError("k, vocab or tokens below 0")
        return manifest, (
            manifest.identity.digest() == content["identity_sha256"]
            and manifest.tokens == content["tokens"]
            and [shard.name for shard in manifest.shards] == list(map(shard_name, range(len(manifest.shards))))
        )
