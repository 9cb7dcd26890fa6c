"""Several checkpoints in one flag: A.pt:B.pt, as in fairseq, or a JSON list for paths with colons."""

import json
import os
import re
from typing import List

from kd_plugin.errors import KDPluginError

ESCAPED = re.compile(r"(?<!\\):")  # a colon that is not escaped as \:
AS_LIST = """'["DIR:1/A.pt", "B.pt"]'"""


def split_model_paths(text: str) -> List[str]:
    r"""The paths in --teacher-path, --path, --teacher or --model.

    Args:
        text: `A.pt:B.pt`, with `\:` for a colon in a path; or a JSON list of literal paths. Text that exists as a path
            is one path, unless all its parts exist too.

    Raises:
        KDPluginError: an empty path, a remote address, a Windows path, or JSON other than a list of strings
    """
    if text.lstrip().startswith("[") and not os.path.exists(text):
        return _from_json(text)
    parts = [part.replace("\\:", ":") for part in ESCAPED.split(text)]
    if len(parts) > 1 and os.path.exists(text) and not all(map(os.path.exists, parts)):
        return [text]
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise KDPluginError(f"{text}: is an address, not a file. Remedy: copy it to a local disk and give that path")
    if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]", text) and not os.path.exists(parts[0]):
        raise KDPluginError(f"{text}: is a Windows path. Remedy: the drive's path on this system (WSL: /mnt/c/…)")
    if not all(parts):
        raise KDPluginError(f"{text!r}: contains an empty path. Remedy: A.pt, or several with one colon between them")
    _refuse_torn(text, parts)
    return parts


def join_model_paths(paths: List[str]) -> str:
    """The text that `split_model_paths` splits into `paths`."""
    plain = ":".join(paths)
    return (
        plain
        if not any(":" in path or path.startswith("[") for path in paths)
        else json.dumps(paths, ensure_ascii=False)
    )


def _from_json(text: str) -> List[str]:
    try:
        paths = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KDPluginError(
            f"{text[:200]}: not a JSON list of paths ({error}). Remedy: write it like {AS_LIST}"
        ) from error
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise KDPluginError(f"{text[:200]}: not a JSON list of paths. Remedy: write it like {AS_LIST}")
    return paths


def _refuse_torn(text: str, parts: List[str]) -> None:
    """Refuses parts that do not exist but do when joined: the colon belongs to the path."""
    for first in range(len(parts)):
        for last in range(len(parts), first + 1, -1):
            whole = ":".join(parts[first:last])
            if os.path.exists(whole) and not all(map(os.path.exists, parts[first:last])):
                raise KDPluginError(
                    f"{text}: a colon separates checkpoints, but {whole} has one in its path. Remedy: write "
                    rf"{whole.replace(':', chr(92) + ':')}, or a JSON list: {AS_LIST}"
                )
