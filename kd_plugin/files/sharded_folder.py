"""A folder of shards and a manifest: one job writes it or several share it, and a killed one goes on with the rest.

A shard's files are written first and its part (`NAME.json`) last: where the part is, the shard is whole. The part names
the identity of the whole, so that two jobs with other options cannot share a folder. The manifest is written when every
shard is finished. What is in a shard is for its writers to say: kd_plugin.cache and kd_plugin.corpus.translations.
"""

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
# the names that a folder of shards gives to its files, in any of its formats
OWN_NAMES = re.compile(r"shard-\d+\.(jsonl?|bin|crc)|\.shard-\d+\.answers|manifest\.json", re.IGNORECASE)
Parsed = TypeVar("Parsed")


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


class Plan(NamedTuple):
    """A shard to write: the items [first, last) of all that the job shares out. size: in the progress bar's unit."""

    number: int
    first: int
    last: int
    size: int

    @property
    def name(self) -> str:
        return shard_name(self.number)


class Format(NamedTuple):
    """What a manifest is of: its `format` and `version`, the same in words, what the folder holds, the remedy."""

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
            parse: gives it, and whether it is as it was written; raises KeyError or TypeError where it is none

        Raises:
            KDPluginError: it cannot be read, is of another format, or was changed
        """
        path = Path(folder) / MANIFEST
        content = read_json(path, self.remedy)
        if {name: content.get(name) for name in self.header()} != self.header():
            raise KDPluginError(
                f"{path}: format {content.get('format')!r} version {content.get('version')}, this kd_plugin reads "
                f"{self.name!r} version {self.version}. {self.remedy}"
            )
        try:
            manifest, whole = parse(content)
        except (KeyError, TypeError) as error:
            raise KDPluginError(f"{path}: no manifest of {self.words} ({error}). {self.remedy}") from error
        if not whole:
            raise KDPluginError(f"{path} was changed after it was written. {self.remedy}")
        return manifest


def check_sha256(path: Path, sha256: str, remedy: str, progress: Optional[Callable[[int], Any]] = None) -> None:
    """Refuse a file whose bytes are not those that were written.

    Args:
        progress: called with the number of bytes of each piece that is done
    """
    try:
        found = sha256_of(path, progress)
    except OSError as error:
        raise KDPluginError(f"{path} cannot be read: {error.strerror or error}. {remedy}") from error
    if found != sha256:
        raise KDPluginError(f"{path} is damaged: another sha256 than written. {remedy}")


class Shard(Protocol):
    """What its part and the manifest say of a shard: a NamedTuple that can be JSON."""

    @property
    def name(self) -> str: ...

    def _asdict(self) -> Dict[str, Any]: ...


ShardKind = TypeVar("ShardKind", bound=Shard)


class ShardedFolder(Generic[ShardKind]):
    """A folder that a job is writing. A subclass says of which format, of what shards, and when one's files are whole.

    Args:
        identity_sha256: of all that decides what will be in it
    """

    format: Format
    kind: Type[ShardKind]

    def __init__(self, path: Path, identity_sha256: str):
        self.path, self.identity_sha256 = Path(path), identity_sha256

    def is_whole(self, shard: ShardKind, plan: Plan) -> bool:
        """Whether the files of a shard that has a part look as they should; nothing is hashed."""
        raise NotImplementedError

    def claim(self, flag: str, shards: Optional[Sequence[int]] = None) -> Claim:
        """Make the folder, or go on with this job's, and let no other run in meanwhile.

        Args:
            shards: as Claim's

        Raises:
            KDPluginError: it cannot be written, another run is at work there, or it holds what this job did not make
        """
        make_folder(self.path, flag)
        what = f"{flag} {self.path}"
        return Claim(self.path / LOCK, what, self.identity_sha256, lambda begun: self._check(what, begun), shards)

    def write(self, shard: ShardKind, files: Dict[str, bytes]) -> ShardKind:
        """Write a shard's files, by their endings, and last the part that says that they are there."""
        for ending, content in files.items():
            write_atomically(self.path / f"{shard.name}.{ending}", content)
        self.write_part(shard.name, shard._asdict())
        return shard

    def finished(self, plan: Plan) -> Optional[ShardKind]:
        """A planned shard that this run or an earlier one has finished.

        Raises:
            KDPluginError: another job has written it
        """
        part = self.read_part(plan.name)
        try:
            shard = None if part is None else typed(self.kind, part)
        except TypeError:  # somebody has changed it: it is done again
            return None
        return shard if shard is not None and self.is_whole(shard, plan) else None

    def all_finished(self, plans: Iterable[Plan]) -> List[ShardKind]:
        """Those of the planned shards that are finished."""
        found = (self.finished(plan) for plan in plans)
        return [shard for shard in found if shard is not None]

    def write_part(self, name: str, shard: Dict[str, Any]) -> None:
        content = {"identity_sha256": self.identity_sha256, "shard": shard}
        write_atomically(self.path / f"{name}.json", json.dumps(content).encode())

    def read_part(self, name: str) -> Optional[Dict[str, Any]]:
        """What is said of a shard; None: nothing, or a crash left half of it.

        Raises:
            KDPluginError: it is of another identity
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
                "folder, or the options that it was begun with"
            )
        return shard

    def remove_leftovers(self, names: Iterable[str]) -> None:
        """Temporary files of a killed run of these shards."""
        mine = set(names)
        for path in self.path.glob(".shard-*.tmp"):
            if path.name.split(".")[1] in mine:
                path.unlink(missing_ok=True)

    def _check(self, what: str, begun: bool) -> None:
        """Refuse a folder with anything that this job would write over and has not made.

        Args:
            begun: whether this job began there before
        """
        manifest = self._manifest()
        if manifest is not None and _identity_of(manifest) != self.identity_sha256:
            holds = self.format.holds if manifest.get("format") == self.format.name else "content"
            raise KDPluginError(
                f"{what} holds other {holds} already, from other data or with other options. Remedy: another folder, "
                "or remove that one"
            )
        parts = (self.read_part(path.stem) for path in sorted(self.path.glob("shard-*.json")))
        if begun or manifest is not None or any(part is not None for part in parts):
            return
        for path in sorted(self.path.iterdir()):
            if OWN_NAMES.fullmatch(path.name):
                raise KDPluginError(
                    f"{what}: {path.name} is there already, and this job did not write it. Remedy: another folder, or "
                    "remove the file"
                )

    def _manifest(self) -> Optional[Dict[str, Any]]:
        """One of any format that names an identity; None: there is none."""
        try:
            content = parse_json((self.path / MANIFEST).read_bytes())
            return content if isinstance(content, dict) and _identity_of(content) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _identity_of(manifest: Dict[str, Any]) -> str:
    """The hash of the identity that a manifest names."""
    named = manifest.get("identity_sha256")
    return digest_of(manifest["identity"]) if named is None else str(named)
