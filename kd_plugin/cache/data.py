"""The data that a store answers for, identified by the bytes of a binarised split and the order of target symbols."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import pieces_of

TRUNCATED = "source_truncated_to"
COUNTS = ("sentences", "tokens")  # describe_data adds these to a fingerprint
ENDS = (".bin", ".idx", "")  # no ending: --dataset-impl raw


class Split(NamedTuple):
    """A binarised split, in files named as by fairseq-preprocess.

    truncated_to: the length to which --truncate-source cuts sources, end of sentence included; None: not at all
    """

    data: str
    name: str
    source_lang: str
    target_lang: str
    truncated_to: Optional[int] = None

    def prefixes(self) -> Tuple[str, str]:
        """The path prefixes of the source's and the target's files."""
        languages = self.source_lang, self.target_lang
        for pair in ("-".join(languages), "-".join(languages[::-1])):
            source, target = (os.path.join(self.data, f"{self.name}.{pair}.{lang}") for lang in languages)
            if _files(source) and _files(target):
                return source, target
        raise KDPluginError(
            f"{self.data}: no binarised split {self.name!r} of {'-'.join(languages)}. Remedy: run fairseq-preprocess, "
            "or correct the folder, the name of the split, -s and -t"
        )

    def files(self) -> Tuple[List[Path], List[Path]]:
        """The source's and the target's files."""
        source, target = self.prefixes()
        return _files(source), _files(target)

    def fingerprint(self) -> Dict[str, Any]:
        """What identifies the text that a teacher reads: each side's sha256, and where sources are cut."""
        source, target = _hashes(self._replace(truncated_to=None))
        cut = {} if self.truncated_to is None else {TRUNCATED: self.truncated_to}
        return {"source_sha256": source, "target_sha256": target, **cut}


def split_names(subset: str) -> List[str]:
    """The splits that --subset names, each once.

    Raises:
        KDPluginError: it names none
    """
    names = [name for name in dict.fromkeys(map(str.strip, subset.split(","))) if name]
    if not names:
        raise KDPluginError(f"--subset {subset!r}: names no split. Remedy: such as --subset train,valid")
    return names


def _files(prefix: str) -> List[Path]:
    return [Path(prefix + end) for end in ENDS if os.path.isfile(prefix + end)]


@lru_cache(maxsize=None)
def _hashes(split: Split) -> Tuple[str, ...]:
    return tuple(map(_sha256, split.files()))


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.suffix}:{path.stat().st_size}:".encode())
        for piece in pieces_of(path):
            digest.update(piece)
    return digest.hexdigest()


def describe_data(texts: Dict[str, Any], sizes: np.ndarray) -> Dict[str, Any]:
    """The entry for the data in a manifest.

    Args:
        texts: a fingerprint
        sizes: (sentences,) number of target tokens of each, end of sentence included
    """
    return {**texts, "sentences": len(sizes), "tokens": int(np.sum(sizes, dtype=np.int64))}


def dictionary_sha256(symbols: Sequence[str]) -> str:
    """The sha256 of the symbols in the order that ids refer to."""
    return hashlib.sha256("\n".join(symbols).encode()).hexdigest()
