"""Writes a store, shard by shard: a finished shard stays finished, even if the job is killed."""

from pathlib import Path
from typing import List, Optional

import numpy as np

from kd_plugin.cache.manifest import FORMAT, Identity, Manifest, Shard
from kd_plugin.cache.records import Records, mass_histogram
from kd_plugin.cache.store import CHECKSUM, checksums, n_blocks
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of_bytes
from kd_plugin.files.sharded_folder import Plan, ShardedFolder


def plan_shards(sizes: np.ndarray, shard_tokens: int) -> List[Plan]:
    """Shards of whole sentences with about `shard_tokens` target tokens each; they depend on the data alone.

    Args:
        sizes: (sentences,) target tokens of each
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    plans: List[Plan] = []
    first = 0
    while first < len(sizes):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + shard_tokens, side="right")))
        plans.append(Plan(len(plans), first, last, int(ends[last - 1]) - done))
        first = last
    return plans


class StoreFolder(ShardedFolder[Shard]):
    """A store during writing."""

    format, kind = FORMAT, Shard

    def __init__(self, path: Path, identity: Identity):
        super().__init__(path, identity.digest())
        self.identity = identity

    def is_whole(self, shard: Shard, plan: Plan) -> bool:
        sizes = {
            shard.records_path(self.path): plan.size * self.identity.layout.width,
            shard.checksums_path(self.path): n_blocks(plan.size) * CHECKSUM.itemsize,
        }
        found = (path.is_file() and path.stat().st_size == size for path, size in sizes.items())
        return shard.tokens == plan.size and all(found)

    def conclude(self, shards: List[Shard]) -> Manifest:
        """Writes the manifest of all shards. Any job may call this, even several at once."""
        dropped = [shard.dropped for shard in shards if shard.dropped is not None]
        mean = sum(dropped) / max(1, sum(shard.dropped_tokens for shard in shards)) if dropped else None
        manifest = Manifest(self.identity, shards, mean)
        manifest.write(self.path)
        return manifest


class ShardWriter:
    """Collects one shard's records in memory, with sentences in any order, and then writes them all at once.

    Args:
        sizes: (sentences,) target tokens of each sentence of the whole split
    """

    def __init__(self, folder: StoreFolder, plan: Plan, sizes: np.ndarray):
        self._folder, self._plan, self._layout = folder, plan, folder.identity.layout
        lengths = np.asarray(sizes[plan.first : plan.last], dtype=np.int64)
        self._starts = np.cumsum(lengths) - lengths
        self._lengths = lengths
        self._encoded = np.zeros((plan.size, self._layout.width), dtype=np.uint8)
        self._log_rest = np.zeros(plan.size, dtype=np.float32)
        self._written = np.zeros(len(lengths), dtype=bool)

    def add(self, sentences: np.ndarray, records: Records) -> None:
        """Adds the concatenated records of some sentences, one record per target token."""
        local = np.asarray(sentences, dtype=np.int64) - self._plan.first
        lengths = self._lengths[local]
        if int(lengths.sum()) != len(records.ids) or self._written[local].any():
            raise KDPluginError(f"{self._plan.name}: records do not match its sentences; none of it was written")
        bad = np.isnan(records.lprobs).any(axis=1) | np.isnan(records.log_rest)
        if bad.any():
            at = np.unique(np.repeat(np.asarray(sentences), lengths)[bad]).tolist()
            raise KDPluginError(
                f"{self._plan.name}: the teacher's answers for the sentences {at[:10]} are NaN; none of it was "
                "written. Remedy: --teacher-dtype fp32, or another checkpoint"
            )
        positions = np.repeat(self._starts[local] - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        self._encoded[positions] = self._layout.encode(records)
        self._log_rest[positions] = records.log_rest
        self._written[local] = True

    def finish(self, dropped: Optional[float] = None, dropped_tokens: int = 0) -> Shard:
        """Writes the shard. dropped, dropped_tokens: as in `Shard`"""
        if not self._written.all():
            raise KDPluginError(f"{self._plan.name}: {int((~self._written).sum())} sentences have no records")
        encoded, identity = self._encoded.tobytes(), self._folder.identity
        crc = checksums(encoded, identity.layout.width, self._plan.name, identity).tobytes()
        counts, captured = mass_histogram(self._log_rest)
        shard = Shard(
            self._plan.name,
            self._plan.size,
            digest_of_bytes(encoded),
            digest_of_bytes(crc),
            counts.tolist(),
            captured,
            dropped,
            dropped_tokens,
        )
        return self._folder.write(shard, {"bin": encoded, "crc": crc})
