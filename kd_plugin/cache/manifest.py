"""The manifest of a store: whose answers to which data it holds, and which bytes that is, in JSON."""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from kd_plugin.cache.records import Layout
from kd_plugin.errors import KDPluginError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
KINDS = ("topk", "sampled")
BLOCK_TOKENS = 1024  # records under one checksum: what is read once more when one of them is asked for first
REMEDY = "Remedy: write the store again (kd-plugin cache), or fetch an undamaged copy"


class Shard(NamedTuple):
    """One file of records, of the target tokens that follow those of the shard before.

    sha256 is the records', checksums_sha256 that of the file of checksums beside them.
    """

    name: str
    tokens: int
    sha256: str
    checksums_sha256: str
    histogram: List[int]
    captured: float

    def records_path(self, folder: Path) -> Path:
        return folder / f"{self.name}.bin"

    def checksums_path(self, folder: Path) -> Path:
        return folder / f"{self.name}.crc"

    def part_path(self, folder: Path) -> Path:
        return folder / f"{self.name}.json"


class Identity(NamedTuple):
    """All that decides what is in a store; two jobs that differ in any of it cannot write the same one.

    teachers: of each its sha256, parameters and weight
    max_positions: the longest (source, target) that the teachers read; longer sentences have no answer
    data: {target_sha256, source_sha256, sentences, tokens} of the binarised split
    dictionary_sha256: of the target symbols in their order, in which ids count
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

    @property
    def layout(self) -> Layout:
        return Layout(self.k, self.vocab)

    def digest(self) -> str:
        text = json.dumps(self._asdict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Manifest(NamedTuple):
    identity: Identity
    shards: List[Shard]

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def captured(self) -> float:
        """The share of the teacher's mass that the entries hold, over all tokens."""
        return sum(shard.captured for shard in self.shards) / max(1, self.tokens)

    def write(self, folder: Path) -> None:
        content = {
            "format": "kd_plugin teacher cache",
            "version": FORMAT_VERSION,
            "identity": self.identity._asdict(),
            "identity_sha256": self.identity.digest(),
            "bytes_per_token": self.identity.layout.width,
            "tokens": self.tokens,
            "captured_mass": self.captured,
            "captured_mass_histogram": [sum(counts) for counts in zip(*(s.histogram for s in self.shards))],
            "shards": [shard._asdict() for shard in self.shards],
        }
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1).encode() + b"\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        path = folder / MANIFEST
        content = read_json(path)
        if content.get("version") != FORMAT_VERSION:
            raise KDPluginError(
                f"{path}: format version {content.get('version')}, this kd_plugin reads {FORMAT_VERSION}. {REMEDY}"
            )
        try:
            manifest = cls(Identity(**content["identity"]), [Shard(**shard) for shard in content["shards"]])
            whole = manifest.identity.digest() == content["identity_sha256"] and manifest.tokens == content["tokens"]
        except (KeyError, TypeError) as error:
            raise KDPluginError(f"{path}: no manifest of a teacher cache ({error}). {REMEDY}") from error
        if not whole:
            raise KDPluginError(f"{path} was changed after it was written. {REMEDY}")
        return manifest


def read_json(path: Path) -> Dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KDPluginError(f"{path} cannot be read: {error}. {REMEDY}") from error
    if not isinstance(content, dict):
        raise KDPluginError(f"{path}: no manifest of a teacher cache. {REMEDY}")
    return content


def read_part(path: Path, identity: Identity) -> Optional[Shard]:
    """The finished shard that a part's manifest tells of; None: there is none, or a crash left half of it.

    Raises:
        KDPluginError: it is somebody else's
    """
    try:
        content = json.loads(path.read_bytes())
        digest, shard = content["identity_sha256"], Shard(**content["shard"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if digest != identity.digest():
        raise KDPluginError(
            f"{path} belongs to a store of another teacher, other data or other options. Remedy: another --cache-dir, "
            "or the options that it was begun with"
        )
    return shard


def write_atomically(path: Path, content: Any) -> None:
    """Under another name, to the disk, then renamed: whoever reads sees all of it or nothing.

    Raises:
        KDPluginError: it cannot be written; nothing is left of it
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise KDPluginError(
            f"{path}: {len(content)} bytes could not be written: {error.strerror or error}. Finished shards are kept. "
            "Remedy: make room, then run the same command again"
        ) from error
