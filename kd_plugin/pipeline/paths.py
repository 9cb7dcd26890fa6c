"""The user's files in the words of commands."""

import os
import re
from typing import List, Sequence

from kd_plugin.pipeline.schema import Words


def absolute(words: Sequence[str]) -> Words:
    """Words in which paths of existing files, also as A:B, A,B or NAME=A, are absolute: steps run in another folder.

    A plain name is a path only if it has an ending, as model.pt has: `2` or `adam` may be anything.
    """
    whole = map(_absolute, words)
    return [each if os.path.isabs(each) else "".join(map(_absolute, re.split("([:,=])", each))) for each in whole]


def _absolute(part: str) -> str:
    looks = os.sep in part or re.search(r"[A-Za-z_]\w*\.[A-Za-z]\w*$", part)
    return os.path.abspath(part) if looks and os.path.exists(part) else part


def files_in(words: Sequence[str]) -> List[str]:
    """The files that absolute paths in words name; of folders, the files directly inside."""
    found: List[str] = []
    parts = (part for word in words for part in [word, word.partition("=")[2], *re.split("[:,=]", word)])
    for part in filter(os.path.isabs, parts):
        if os.path.isfile(part):
            found.append(part)
        elif os.path.isdir(part) and not os.path.isfile(os.path.join(part, "__init__.py")):
            found += [entry.path for entry in sorted(os.scandir(part), key=lambda entry: entry.name) if entry.is_file()]
    return list(dict.fromkeys(found))
