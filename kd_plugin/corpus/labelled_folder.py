"""A binarised folder whose sentences have labels: `input0/`, perhaps `input1/`, and `label/`."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np
from fairseq.data import Dictionary

from kd_plugin.cache.data import ENDS
from kd_plugin.corpus.binarised import open_indexed
from kd_plugin.corpus.dictionaries import load_dictionary
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of, sha256_of

# marks in targets: a position without a label to learn, and a position whose label is unknown
IGNORE, UNLABELLED = -100, -1


class Reading(NamedTuple):
    """How the text of a folder is read.

    word_start: a rule of corpus.words, not auto
    init_token, separator_token: fairseq's flags
    """

    word_start: str
    init_token: Optional[int] = None
    separator_token: Optional[int] = None


def check_reading(reading: Reading, dictionary: Dictionary, data: str) -> None:
    """Refuses symbols around sentences that the dictionary does not have.

    Raises:
        KDPluginError: --init-token or --separator-token is no index of it
    """
    for flag, index in (("--init-token", reading.init_token), ("--separator-token", reading.separator_token)):
        if index is not None and not 0 <= index < len(dictionary):
            raise KDPluginError(
                f"{flag} {index}: the dictionary of {data} has only the indices 0 to {len(dictionary) - 1:,}. Remedy: "
                f"such as {flag} {dictionary.bos() if 'init' in flag else dictionary.eos()}, or leave it out"
            )


class LabelledSplit(NamedTuple):
    """A split of a folder."""

    data: str
    name: str

    def prefix(self, part: str) -> str:
        """Of the files of input0, input1 or label."""
        return os.path.join(self.data, part, self.name)

    def has(self, part: str) -> bool:
        return any(os.path.isfile(self.prefix(part) + end) for end in (".bin", ""))

    @property
    def inputs(self) -> List[str]:
        """Which inputs it has: one, or two for pairs of sentences."""
        return [part for part in ("input0", "input1") if self.has(part)]

    def open(self, dictionary: Dictionary) -> List[Any]:
        """Its inputs, as fairseq's datasets of token tensors."""
        return [open_indexed(self.prefix(part), dictionary) for part in self.inputs]

    def fingerprint(self, reading: Reading) -> Dict[str, Any]:
        """What identifies the text that a teacher reads: the sha256 of each input, and how it is read."""
        hashes = {f"{part}_sha256": _sha256(self.prefix(part)) for part in self.inputs}
        return {**hashes, "reading_sha256": digest_of(list(reading))}


@lru_cache(maxsize=None)
def _sha256(prefix: str) -> str:
    files = [Path(prefix + end) for end in ENDS if os.path.isfile(prefix + end)]
    return hashlib.sha256("".join(f"{path.suffix}:{sha256_of(path)};" for path in files).encode()).hexdigest()


def load_input_dictionary(data: str) -> Dictionary:
    """The dictionary of the text, with the <mask> that fairseq's task adds.

    Raises:
        KDPluginError: there is none, or it is damaged
    """
    path = os.path.join(data, "input0", "dict.txt")
    if not os.path.isfile(path):
        raise KDPluginError(
            f"{path}: no such file. Remedy: a folder with input0/ and label/, as fairseq-preprocess --only-source or "
            "kd-plugin prepare-tagging writes them"
        )
    dictionary = load_dictionary(path)
    dictionary.add_symbol("<mask>")
    return dictionary


def tokens_of(dataset: Any, index: int) -> np.ndarray:
    """(length,) the indices of a sentence."""
    return np.asarray(dataset[index])


def same_symbols(one: Dictionary, other: Dictionary) -> bool:
    return bool(one.symbols == other.symbols)


def sizes_of(dataset: Any) -> np.ndarray:
    """(sentences,) lengths."""
    return np.asarray(dataset.sizes, dtype=np.int64)
