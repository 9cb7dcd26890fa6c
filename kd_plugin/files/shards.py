"""What a job leaves of each shard that it has finished, so that a killed one goes on with the others.

A shard's files are written first and its part (`NAME.json`) last: where the part is, the shard is whole. The part names
the identity of the whole, so that two jobs with other options cannot share a folder.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Sequence

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of, make_folder, write_atomically
from kd_plugin.files.json_text import parse_json
from kd_plugin.files.locks import LOCK, Claim

MANIFEST = "manifest.json"
# the names that a folder of shards gives to its files, in any of its formats
OWN_NAMES = re.compile(r"shard-\d+\.(jsonl?|bin|crc)|manifest\.json", re.IGNORECASE)


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def write_part(folder: Path, name: str, identity_sha256: str, shard: Dict[str, Any]) -> None:
    """Say that a shard is finished."""
    content = {"identity_sha256": identity_sha256, "shard": shard}
    write_atomically(Path(folder) / f"{name}.json", json.dumps(content).encode())


def read_part(folder: Path, name: str, identity_sha256: str) -> Optional[Dict[str, Any]]:
    """What write_part was told; None: there is none, or a crash left half of it.

    Raises:
        KDPluginError: it is of another identity
    """
    path = Path(folder) / f"{name}.json"
    try:
        content = parse_json(path.read_bytes())
        digest, shard = content["identity_sha256"], dict(content["shard"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if digest != identity_sha256:
        raise KDPluginError(
            f"{path} was written by another teacher, from other data or with other options. Remedy: another folder, "
            "or the options that it was begun with"
        )
    return shard


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Temporary files of a killed run of the same shards."""
    mine = set(names)
    for path in Path(folder).glob(".shard-*.tmp"):
        if path.name.split(".")[1] in mine:
            path.unlink(missing_ok=True)


def claim_folder(folder: Path, flag: str, identity_sha256: str, shards: Optional[Sequence[int]] = None) -> Claim:
    """Make a folder of shards, or go on with this job's, and let no other run in meanwhile.

    Args:
        shards: as Claim's

    Raises:
        KDPluginError: it cannot be written, another run is at work there, or it holds what this job did not make
    """
    make_folder(folder, flag)
    check = functools.partial(check_folder, folder, flag, identity_sha256)
    return Claim(Path(folder) / LOCK, f"{flag} {folder}", identity_sha256, check, shards)


def check_folder(folder: Path, flag: str, identity_sha256: str, begun: bool) -> None:
    """Refuse a folder with anything that this job would write over and has not made.

    Args:
        begun: whether this job began there before
    """
    folder = Path(folder)
    manifest = _identity_of(folder / MANIFEST)
    if manifest is not None and manifest != identity_sha256:
        raise KDPluginError(
            f"{flag} {folder} holds other {_content_of(folder)} already, from other data or with other options. "
            "Remedy: another folder, or remove that one"
        )
    parts = (read_part(folder, path.stem, identity_sha256) for path in sorted(folder.glob("shard-*.json")))
    if begun or manifest is not None or any(part is not None for part in parts):
        return
    for path in sorted(folder.iterdir()):
        if OWN_NAMES.fullmatch(path.name):
            raise KDPluginError(
                f"{flag} {folder}: {path.name} is there already, and this job did not write it. Remedy: another "
                "folder, or remove the file"
            )


def _content_of(folder: Path) -> str:
    return "answers" if any(folder.glob("shard-*.bin")) else "translations"


def _identity_of(manifest: Path) -> Optional[str]:
    """The hash of the identity that a manifest names; None: there is none, or it names none."""
    try:
        content = json.loads(manifest.read_bytes())
        return str(content["identity_sha256"]) if "identity_sha256" in content else digest_of(content["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
