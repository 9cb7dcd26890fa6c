"""What a killed training has left: whether it had reached its end, and a last checkpoint that is whole."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Sequence

from kd_plugin.files.atomic import temporary_beside

LAST = "checkpoint_last.pt"


def reached_its_end(words: Sequence[str]) -> bool:
    """Whether a killed fairseq-train had made its last update; if not, it can go on afterwards.

    fairseq would make another update first, and would save that. It copies checkpoint_last.pt from another checkpoint
    of the same moment, and so leaves half a file if it is killed meanwhile: that file is copied again.
    """
    last = Path(value_of(words, "--save-dir")) / LAST
    if last.exists() and not zipfile.is_zipfile(last):
        whole = [path for path in last.parent.glob("checkpoint*.pt") if zipfile.is_zipfile(path)]
        if whole:
            temporary = temporary_beside(last)
            shutil.copyfile(max(whole, key=lambda path: (path.stat().st_mtime_ns, path.name)), temporary)
            os.replace(temporary, last)
        else:
            last.unlink()
    updates = int(value_of(words, "--max-update") or 0)
    if not updates or not last.exists():
        return False
    from kd_plugin.checkpoints.read import read_checkpoint

    return int(read_checkpoint(str(last))["optimizer_history"][-1]["num_updates"]) >= updates


def value_of(words: Sequence[str], flag: str) -> str:
    """Of its last occurrence, as fairseq reads it."""
    found = ""
    for word, following in zip(words, [*words[1:], ""]):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else following
    return found
