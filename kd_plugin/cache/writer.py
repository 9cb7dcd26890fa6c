"""Writing a store, shard by shard: whatever is finished stays finished, whenever a job is killed."""

import hashlib
from pathlib import Path
from typing import List, NamedTuple, Optional

import numpy as np

from kd_plugin.cache.manifest import Identity, Manifest, Shard
from kd_plugin.cache.records import Records, mass_histogram
from kd_plugin.cache.store import CHECKSUM, checksums, n_blocks
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import write_atomically
from kd_plugin.files.json_text import typed
from kd_plugin.files.shards import read_part, shard_name, write_part


class Plan(NamedTuple):
    """A shard to write: the sentences [first, last) of the split."""

    name: str
    first: int
    last: int
    tokens: int


def plan_shards(sizes: np.ndarray, shard_tokens: int) -> List[Plan]:
    """Shards of about `shard_tokens` target tokens, whole sentences each; they depend on the data alone.

    Args:
        sizes: (sentences,) target tokens of each
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    plans: List[Plan] = []
    first = 0
    while first < len(sizes):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + shard_tokens, side="right")))
        plans.append(Plan(shard_name(len(plans)), first, last, int(ends[last - 1]) - done))
        first = last
    return plans


class ShardWriter:
    """Collects the records of one shard in any order of its sentences, in memory, and writes them at once.

    Args:
        sizes: (sentences,) target tokens of each sentence of the whole split
    """

    def __init__(self, folder: Path, identity: Identity, plan: Plan, sizes: np.ndarray):
        self._folder, self._identity, self._plan = Path(folder), identity, plan
        lengths = np.asarray(sizes[plan.first : plan.last], dtype=np.int64)
        self._starts = np.cumsum(lengths) - lengths
        self._lengths = lengths
        self._encoded = np.zeros((plan.tokens, identity.layout.width), dtype=np.uint8)
        self._log_rest = np.zeros(plan.tokens, dtype=np.float32)
        self._written = np.zeros(len(lengths), dtype=bool)

    def add(self, sentences: np.ndarray, records: Records) -> None:
        """Records of some sentences, one after the other, each with as many as it has target tokens."""
        local = np.asarray(sentences, dtype=np.int64) - self._plan.first
        lengths = self._lengths[local]
        if int(lengths.sum()) != len(records.ids) or self._written[local].any():
            raise KDPluginError(f"{self._plan.name}: records do not fit its sentences; nothing of it was written")
        bad = np.isnan(records.lprobs).any(axis=1) | np.isnan(records.log_rest)
        if bad.any():
            at = np.unique(np.repeat(np.asarray(sentences), lengths)[bad]).tolist()
            raise KDPluginError(
                f"{self._plan.name}: the teacher's answers to the sentences {at[:10]} are NaN; nothing of it was "
                "written. Remedy: --teacher-dtype fp32, or another checkpoint"
            )
        positions = np.repeat(self._starts[local] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        self._encoded[positions] = self._identity.layout.encode(records)
        self._log_rest[positions] = records.log_rest
        self._written[local] = True

    def finish(self) -> Shard:
        """Write the shard: records, checksums, and last the part of the manifest that says it is there."""
        if not self._written.all():
            raise KDPluginError(f"{self._plan.name}: {int((~self._written).sum())} sentences have no records")
        encoded = self._encoded.tobytes()
        crc = checksums(encoded, self._identity.layout.width, self._plan.name, self._identity).tobytes()
        counts, captured = mass_histogram(self._log_rest)
        shard = Shard(
            self._plan.name,
            self._plan.tokens,
            hashlib.sha256(encoded).hexdigest(),
            hashlib.sha256(crc).hexdigest(),
            counts.tolist(),
            captured,
        )
        write_atomically(shard.records_path(self._folder), encoded)
        write_atomically(shard.checksums_path(self._folder), crc)
        write_part(self._folder, shard.name, self._identity.digest(), shard._asdict())
        return shard


def finished(folder: Path, identity: Identity, plan: Plan) -> Optional[Shard]:
    """The shard of a plan if an earlier run has finished it; its files are looked at, not hashed."""
    part = read_part(folder, plan.name, identity.digest())
    if part is None or part.get("tokens") != plan.tokens:
        return None
    try:
        shard = typed(Shard, part)
    except TypeError:  # somebody has changed it: it is done again
        return None
    sizes = {
        shard.records_path(Path(folder)): plan.tokens * identity.layout.width,
        shard.checksums_path(Path(folder)): n_blocks(plan.tokens) * CHECKSUM.itemsize,
    }
    return shard if all(path.is_file() and path.stat().st_size == size for path, size in sizes.items()) else None


def merge(folder: Path, identity: Identity, plans: List[Plan]) -> Optional[Manifest]:
    """Write the manifest if every shard is finished; None: some are missing. Any job may do it, and several at once."""
    shards = [finished(folder, identity, plan) for plan in plans]
    if any(shard is None for shard in shards):
        return None
    manifest = Manifest(identity, [shard for shard in shards if shard is not None])
    manifest.write(Path(folder))
    return manifest
