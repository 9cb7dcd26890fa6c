"""What a job leaves of each shard that it has finished, so that a killed one goes on with the others.

A shard's files are written first and its part (`NAME.json`) last: where the part is, the shard is whole. The part names
the identity of the whole, so that two jobs with other options cannot share a folder.
"""

import json
from pathlib import Path
from typing import Any, Dict, Iterable, Optional

from kd_plugin.errors import KDPluginError
from kd_plugin.files import write_atomically


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
        content = json.loads(path.read_bytes())
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
