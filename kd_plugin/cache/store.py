"""Reads a store: records by the position of their target token in the split."""

import errno
import mmap
import zlib
from pathlib import Path
from typing import Any, Callable, List, Optional

import numpy as np

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

from kd_plugin.cache.manifest import BLOCK_TOKENS, REMEDY, Identity, Manifest, Shard
from kd_plugin.cache.records import Records
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of_bytes
from kd_plugin.files.sharded_folder import MANIFEST, check_sha256

CHECKSUM = np.dtype("<u4")


def checksums(encoded: bytes, width: int, name: str, identity: Identity) -> np.ndarray:
    """(blocks,) uint32 of a shard's records. They cover the shard's name and the store's identity, so a block from
    another place does not pass."""
    size = BLOCK_TOKENS * width
    blocks = range(0, len(encoded), size)
    start, view = _start(name, identity), memoryview(encoded)
    found = [_checksum(start, block, view[at : at + size]) for block, at in enumerate(blocks)]
    return np.array(found, dtype=CHECKSUM)


def n_blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _start(name: str, identity: Identity) -> int:
    return zlib.crc32(f"{identity.digest()}/{name}".encode())


def _checksum(start: int, block: int, content: memoryview) -> int:
    return zlib.crc32(content, zlib.crc32(block.to_bytes(8, "little"), start))


class _OpenShard:
    """A memory-mapped shard; a block's checksum is verified before its first record is returned."""

    def __init__(self, folder: Path, shard: Shard, identity: Identity):
        self.path = shard.records_path(folder)
        self._width, self._remedy = identity.layout.width, shard.remedy
        expected = shard.tokens * self._width
        try:
            stored = shard.checksums_path(folder).read_bytes()
            with open(self.path, "rb") as file:
                size = file.seek(0, 2)
                if size != expected:
                    raise KDPluginError(f"{self.path} has {size} bytes instead of {expected}. {shard.remedy}")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            remedy = shard.remedy
            if error.errno == errno.EMFILE:
                remedy = "Remedy: more open files (ulimit -n), or larger shards (kd-plugin cache --shard-tokens)"
            path = error.filename or self.path
            raise KDPluginError(f"teacher cache: {path}: {error.strerror}. {remedy}") from error
        if digest_of_bytes(stored) != shard.checksums_sha256:
            raise KDPluginError(
                f"{shard.checksums_path(folder)} is damaged: its sha256 is not the recorded one. {shard.remedy}"
            )
        self._stored = np.frombuffer(stored, dtype=CHECKSUM)
        self._start = _start(shard.name, identity)
        self._checked = np.zeros(n_blocks(shard.tokens), dtype=bool)
        self._records = np.frombuffer(self._map, dtype=np.uint8).reshape(shard.tokens, self._width)

    def read(self, positions: np.ndarray) -> np.ndarray:
        blocks = np.unique(positions // BLOCK_TOKENS)
        for block in blocks[~self._checked[blocks]].tolist():
            self._check(block)
        return self._records[positions]

    def _check(self, block: int) -> None:
        size = BLOCK_TOKENS * self._width
        content = memoryview(self._map)[block * size : (block + 1) * size]
        if _checksum(self._start, block, content) != self._stored[block]:
            raise KDPluginError(
                f"{self.path} is damaged: wrong checksum at byte {block * size}, tokens {block * BLOCK_TOKENS} to "
                f"{(block + 1) * BLOCK_TOKENS - 1}. {self._remedy}"
            )
        self._checked[block] = True


def _allow_open_files(more: int) -> None:
    """Raises the limit of open files as far as allowed if it may be too low: a mapped shard keeps its file open."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and 2 * more > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Store:
    """A teacher's answers for every target token of one binarised split, in the split's order.

    Memory use does not grow with the store: shards are memory-mapped, and only a batch's records are copied.

    Raises:
        KDPluginError: a file, which the message names, is missing, damaged or of the wrong size
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.identity = self.manifest.identity
        ends = np.cumsum([shard.tokens for shard in self.manifest.shards], dtype=np.int64)
        self._starts = np.concatenate([[0], ends])
        _allow_open_files(len(self.manifest.shards))
        self._shards = [_OpenShard(self.folder, shard, self.identity) for shard in self.manifest.shards]

    def __reduce__(self) -> Any:
        """For data-loading workers, each of which maps the files itself."""
        return Store, (self.folder,)

    def read(self, positions: np.ndarray) -> Records:
        """Records at (tokens,) positions among all target tokens of the split."""
        return self.identity.layout.decode(self.read_encoded(positions))

    def read_encoded(self, positions: np.ndarray) -> np.ndarray:
        """As `read`, but (tokens, width) uint8."""
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size and (positions.min() < 0 or positions.max() >= self._starts[-1]):
            raise KDPluginError(f"{self.folder}: no token {positions.max()} among {self._starts[-1]}. {REMEDY}")
        encoded = np.empty((len(positions), self.identity.layout.width), dtype=np.uint8)
        of_shard = np.searchsorted(self._starts, positions, side="right") - 1
        for shard in np.unique(of_shard).tolist():
            chosen = of_shard == shard
            encoded[chosen] = self._shards[shard].read(positions[chosen] - self._starts[shard])
        return encoded

    def verify(self, progress: Optional[Callable[[int], None]] = None) -> None:
        """Hashes every byte. progress: called with the number of bytes of each finished piece"""
        for shard in self.manifest.shards:
            check_sha256(shard.records_path(self.folder), shard.sha256, shard.remedy, progress)


def open_stores(folder: Path, flag: str = "--teacher-cache") -> List[Store]:
    """The finished stores in a cache, one per split and data folder."""
    if not folder.is_dir():
        raise KDPluginError(f"{flag} {folder}: no such folder. Remedy: create it with kd-plugin cache")
    stores = [Store(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    if not stores:
        begun = sorted({str(path.parent) for path in folder.glob("*/shard-*.json")})
        state = f"{', '.join(begun)} is unfinished" if begun else "nothing was ever written there"
        raise KDPluginError(
            f"{flag} {folder}: no finished store ({state}). Remedy: run all --num-shards jobs of kd-plugin cache"
        )
    return stores
