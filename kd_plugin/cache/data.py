"""Which data a store answers for: the bytes of a binarised split, and the order of the target symbols."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import pieces_of

TRUNCATED = "source_truncated_to"
COUNTS = ("sentences", "tokens")  # what describe_data adds to a fingerprint


ENDS = (".bin", ".idx", "")  # without an ending: --dataset-impl raw


def split_prefixes(data: str, split: str, source_lang: str, target_lang: str) -> Tuple[str, str]:
    """How the source's and the target's files of a split begin, as fairseq-preprocess names them."""
    for pair in (f"{source_lang}-{target_lang}", f"{target_lang}-{source_lang}"):
        source, target = (os.path.join(data, f"{split}.{pair}.{lang}") for lang in (source_lang, target_lang))
        if _files(source) and _files(target):
            return source, target
    raise KDPluginError(
        f"{data}: no binarised split {split!r} of {source_lang}-{target_lang}. Remedy: fairseq-preprocess, or the "
        "right folder, name of the split, -s and -t"
    )


def split_files(data: str, split: str, source_lang: str, target_lang: str) -> Tuple[List[Path], List[Path]]:
    """The source's and the target's files of a split."""
    source, target = split_prefixes(data, split, source_lang, target_lang)
    return _files(source), _files(target)


def _files(prefix: str) -> List[Path]:
    return [Path(prefix + end) for end in ENDS if os.path.isfile(prefix + end)]


def fingerprint(
    data: str, split: str, source_lang: str, target_lang: str, truncated_to: Optional[int] = None
) -> Dict[str, Any]:
    """What tells the texts that a teacher reads: the sha256 of either side of a split, and where sources are cut.

    Args:
        truncated_to: tokens of a source that --truncate-source leaves, end of sentence included; None: all
    """
    source, target = _hashes(data, split, source_lang, target_lang)
    cut = {} if truncated_to is None else {TRUNCATED: truncated_to}
    return {"source_sha256": source, "target_sha256": target, **cut}


@lru_cache(maxsize=None)
def _hashes(data: str, split: str, source_lang: str, target_lang: str) -> Tuple[str, ...]:
    return tuple(_sha256(paths) for paths in split_files(data, split, source_lang, target_lang))


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.suffix}:{path.stat().st_size}:".encode())
        for piece in pieces_of(path):
            digest.update(piece)
    return digest.hexdigest()


def describe_data(texts: Dict[str, Any], sizes: np.ndarray) -> Dict[str, Any]:
    """What a manifest says about its data.

    Args:
        texts: their fingerprint
        sizes: (sentences,) number of target tokens of each, end of sentence included
    """
    return {**texts, "sentences": len(sizes), "tokens": int(np.sum(sizes, dtype=np.int64))}


def dictionary_sha256(symbols: Sequence[str]) -> str:
    """Of the symbols in their order, which is what ids count in."""
    return hashlib.sha256("\n".join(symbols).encode()).hexdigest()
