"""Builds CTranslate2's vocabulary map from a parallel corpus: the target symbols that can translate a source symbol.

With a map the decoder computes scores for a few hundred symbols per batch instead of the whole vocabulary. A line of
the file is a source symbol, a tab and its candidates; the line without a symbol holds candidates for every sentence.

Selection of candidates: c(s) and c(t) are the numbers of sentence pairs with s in the source and t in the target, and
c(s, t) of those with both. A source symbol's candidates are the `per_symbol` target symbols with the largest Dice
coefficient 2 c(s, t) / (c(s) + c(t)); the candidates for every sentence are the `overall` most frequent target symbols.
Ties go to the symbol that comes first in the dictionary.
"""

from pathlib import Path
from typing import Iterable, List, Sequence, Tuple

import numpy as np

from kd_plugin.errors import KDPluginError

PER_SYMBOL, OVERALL = 32, 256
CHUNK = 4_000_000  # pairs of symbols to count at once: 64 MB


class PairCounts:
    """Counts c(s), c(t) and c(s, t). source_symbols, target_symbols: sizes of the vocabularies"""

    def __init__(self, source_symbols: int, target_symbols: int):
        self.source = np.zeros(source_symbols, np.int64)
        self.target = np.zeros(target_symbols, np.int64)
        self._codes = np.zeros(0, np.int64)  # s * target_symbols + t, ascending
        self._counts = np.zeros(0, np.int64)
        self._waiting: List[np.ndarray] = []
        self._waiting_size = 0

    def add(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Adds a sentence pair, given by its indices."""
        ours, theirs = np.unique(np.asarray(source, np.int64)), np.unique(np.asarray(target, np.int64))
        self.source[ours] += 1
        self.target[theirs] += 1
        codes = (ours[:, None] * len(self.target) + theirs).ravel()
        self._waiting.append(codes)
        self._waiting_size += len(codes)
        if self._waiting_size >= CHUNK:
            self._merge()

    def _merge(self) -> None:
        codes, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
        everything = np.concatenate([self._codes, codes])
        self._codes, places = np.unique(everything, return_inverse=True)
        self._counts = np.bincount(
            places.ravel(), weights=np.concatenate([self._counts, counts]), minlength=len(self._codes)
        ).astype(np.int64)
        self._waiting, self._waiting_size = [], 0

    def pairs(self) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(s, t, c(s, t)), each (pairs,), sorted by s and then t."""
        if self._waiting:
            self._merge()
        return self._codes // len(self.target), self._codes % len(self.target), self._counts


def candidates(counts: PairCounts, per_symbol: int = PER_SYMBOL, overall: int = OVERALL) -> List[np.ndarray]:
    """Each source symbol's candidates, best first; the last array holds the candidates for every sentence."""
    source, target, both = counts.pairs()
    dice = 2 * both / (counts.source[source] + counts.target[target])
    order = np.lexsort((target, -dice, source))
    starts = np.searchsorted(source[order], np.arange(len(counts.source) + 1))
    chosen = [target[order[start : min(stop, start + per_symbol)]] for start, stop in zip(starts[:-1], starts[1:])]
    frequent = np.lexsort((np.arange(len(counts.target)), -counts.target))[:overall]
    return [*chosen, frequent[counts.target[frequent] > 0]]


def write_vocabulary_map(
    path: Path,
    pairs: Iterable[Tuple[List[str], List[str]]],
    source_symbols: List[str],
    target_symbols: List[str],
    per_symbol: int = PER_SYMBOL,
    overall: int = OVERALL,
) -> int:
    """Writes a corpus's map.

    Args:
        pairs: source and target symbols of each sentence; unknown symbols are ignored
        source_symbols, target_symbols: of the dictionaries, in order

    Returns:
        the number of sentence pairs

    Raises:
        KDPluginError: the corpus has no symbol of the target dictionary
    """
    ours = {symbol: index for index, symbol in enumerate(source_symbols)}
    theirs = {symbol: index for index, symbol in enumerate(target_symbols)}
    counts, number = PairCounts(len(source_symbols), len(target_symbols)), 0
    for source, target in pairs:
        counts.add([ours[s] for s in source if s in ours], [theirs[t] for t in target if t in theirs])
        number += 1
    if not counts.target.any():
        raise KDPluginError(
            "--vocabulary-map-from: no symbol of the target dictionary occurs in the corpus. Remedy: the corpus that "
            "the model was trained on, and its --sentencepiece-model"
        )
    *chosen, frequent = candidates(counts, per_symbol, overall)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("\t" + " ".join(target_symbols[t] for t in frequent) + "\n")
        for symbol, found in zip(source_symbols, chosen):
            if len(found):
                file.write(f"{symbol}\t" + " ".join(target_symbols[t] for t in found) + "\n")
    return number
