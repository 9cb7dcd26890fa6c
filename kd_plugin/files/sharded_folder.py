"""A folder of shards and a manifest, which one job writes or several share; a job that was killed can be resumed.

A shard's files are written first and its part (`NAME.json`) last: if the part exists, the shard is complete. The part
names the job's identity, so that jobs with different options cannot share a folder. The manifest is written when all
shards are finished. kd_plugin.cache and kd_plugin.corpus.translations define the content of shards.
"""

import abc
import json
import re
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Generic,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Type,
    TypeVar,
)

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of, make_folder, read_json, sha256_of, write_atomically, write_json
from kd_plugin.files.json_text import parse_json, typed
from kd_plugin.files.locks import LOCK, Claim

MANIFEST = "manifest.json"
# the file names in a sharded folder of any format
OWN_NAMES = re.compile(r"shard-\d+\.(jsonl?|bin|crc)|\.shard-\d+\.answers|manifest\.json", re.IGNORECASE)
Parsed = TypeVar("Parsed")


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


class Plan(NamedTuple):
    """A shard to write: items [first, last) of the whole job. size: in the progress bar's unit."""

    number: int
    first: int
    last: int
    size: int

    @property
    def name(self) -> str:
        return shard_name(self.number)


class Format(NamedTuple):
    """A kind of manifest.

    name, version: its `format` and `version` fields
    words:  what it describes, for messages
    holds:  what the folder contains, for messages
    remedy: for a damaged folder
    """

    name: str
    version: int
    words: str
    holds: str
    remedy: str

    def header(self) -> Dict[str, Any]:
        return {"format": self.name, "version": self.version}

    def write(self, folder: Path, content: Dict[str, Any]) -> None:
        write_json(Path(folder) / MANIFEST, {**self.header(), **content})

    def read(self, folder: Path, parse: Callable[[Dict[str, Any]], Tuple[Parsed, bool]]) -> Parsed:
        """The manifest of a finished folder.

        Args:
            parse: returns the manifest and whether it is unchanged; raises KeyError or TypeError if it is malformed

        Raises:
            KDPluginError: the manifest is unreadable, of another format, or changed
        """
        path = Path(folder) / MANIFEST
        content = read_json(path, self.remedy)
        if {name: content.get(name) for name in self.header()} != self.header():
            raise KDPluginError(
                f"{path}: format {content.get('format')!r} version {content.get('version')}, but this kd_plugin reads "
                f"{self.name!r} version {self.version}. {self.remedy}"
            )
        try:
            manifest, whole = parse(content)
        except (KeyError, TypeError) as error:
            raise KDPluginError(f"{path}: not a manifest of {self.words} ({error}). {self.remedy}") from error
        if not whole:
            raise KDPluginError(f"{path} was changed after it was written. {self.remedy}")
        return manifest


def check_sha256(path: Path, sha256: str, remedy: str, progress: Optional[Callable[[int], Any]] = None) -> None:
    """Refuses a file that has changed since it was written.

    Args:
        progress: called with the number of bytes of each finished piece
    """
    try:
        found = sha256_of(path, progress)
    except OSError as error:
        raise KDPluginError(f"{path} cannot be read: {error.strerror or error}. {remedy}") from error
    if found != sha256:
        raise KDPluginError(f"{path} is damaged: its sha256 is not the recorded one. {remedy}")


class Shard(Protocol):
    """A shard's entry in its part and in the manifest: a NamedTuple that can be JSON."""

    @property
    def name(self) -> str: ...

    def _asdict(self) -> Dict[str, Any]: ...


ShardKind = TypeVar("ShardKind", bound=Shard)


class ShardedFolder(abc.ABC, Generic[ShardKind]):
    """A folder that a job is writing. A subclass defines the format, the kind of shard, and when a shard is complete.

    Args:
        identity_sha256: of everything that determines the folder's content
    """

    format: Format
    kind: Type[ShardKind]

    def __init__(self, path: Path, identity_sha256: str):
        self.path, self.identity_sha256 = Path(path), identity_sha256

    @abc.abstractmethod
    def is_whole(self, shard: ShardKind, plan: Plan) -> bool:
        """Whether the files of a shard with a part look complete; does not hash them."""

    def claim(self, flag: str, shards: Optional[Sequence[int]] = None) -> Claim:
        """Creates the folder, or resumes this job's, and keeps other runs out.

        Args:
            shards: as for Claim

        Raises:
            KDPluginError: the folder is not writable, another run works there, or it holds files of another job
        """
        make_folder(self.path, flag)
        what = f"{flag} {self.path}"
        return Claim(self.path / LOCK, what, self.identity_sha256, lambda begun: self._check(what, begun), shards)

    def write(self, shard: ShardKind, files: Dict[str, bytes]) -> ShardKind:
        """Writes a shard's files, given by their endings, and finally its part."""
        for ending, content in files.items():
            write_atomically(self.path / f"{shard.name}.{ending}", content)
        self.write_part(shard.name, shard._asdict())
        return shard

    def finished(self, plan: Plan) -> Optional[ShardKind]:
        """A planned shard if this run or an earlier one has finished it, else None.

        Raises:
            KDPluginError: another job has written it
        """
        part = self.read_part(plan.name)
        try:
            shard = None if part is None else typed(self.kind, part)
        except TypeError:  # it has been tampered with: write it again
            return None
        return shard if shard is not None and self.is_whole(shard, plan) else None

    def all_finished(self, plans: Iterable[Plan]) -> List[ShardKind]:
        """The planned shards that are finished."""
        found = (self.finished(plan) for plan in plans)
        return [shard for shard in found if shard is not None]

    def write_part(self, name: str, shard: Dict[str, Any]) -> None:
        content = {"identity_sha256": self.identity_sha256, "shard": shard}
        write_atomically(self.path / f"{name}.json", json.dumps(content).encode())

    def read_part(self, name: str) -> Optional[Dict[str, Any]]:
        """A shard's entry in its part; None: there is no part, or it is incomplete after a crash.

        Raises:
            KDPluginError: it has another identity
        """
        path = self.path / f"{name}.json"
        try:
            content = parse_json(path.read_bytes())
            digest, shard = content["identity_sha256"], dict(content["shard"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if digest != self.identity_sha256:
            raise KDPluginError(
                f"{path} was written by another teacher, from other data or with other options. Remedy: another "
                "folder, or the original options"
            )
        return shard

    def remove_leftovers(self, names: Iterable[str]) -> None:
        """Removes temporary files that a killed run has left for these shards."""
        mine = set(names)
        for path in self.path.glob(".shard-*.tmp"):
            if path.name.split(".")[1] in mine:
                path.unlink(missing_ok=True)

    def _check(self, what: str, begun: bool) -> None:
        """Refuses a folder with files that this job would overwrite but did not make.

        Args:
            begun: whether this job has started there before
        """
        manifest = self._manifest()
        if manifest is not None and _identity_of(manifest) != self.identity_sha256:
            holds = self.format.holds if manifest.get("format") == self.format.name else "content"
            raise KDPluginError(
                f"{what} already holds other {holds}, from other data or with other options. Remedy: another folder, "
                "or remove this one"
            )
        parts = (self.read_part(path.stem) for path in sorted(self.path.glob("shard-*.json")))
        if begun or manifest is not None or any(part is not None for part in parts):
            return
        for path in sorted(self.path.iterdir()):
            if OWN_NAMES.fullmatch(path.name):
                raise KDPluginError(
                    f"{what}: {path.name} already exists, and this job did not write it. Remedy: another folder, or "
                    "remove the file"
                )

    def _manifest(self) -> Optional[Dict[str, Any]]:
        """The folder's manifest, of any format, if it names an identity; else None."""
        try:
            content = parse_json((self.path / MANIFEST).read_bytes())
            return content if isinstance(content, dict) and _identity_of(content) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _identity_of(manifest: Dict[str, Any]) -> str:
    """The hash of the identity that a manifest names."""
    named = manifest.get("identity_sha256")
    return digest_of(manifest["identity"]) if named is None else str(named)
