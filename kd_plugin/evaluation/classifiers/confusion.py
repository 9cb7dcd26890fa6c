"""Confusion matrices of resampled test sets, and the scores that are formulas of them."""

from typing import Callable, NamedTuple

import numpy as np

MATRICES = 1 << 22  # numbers in the confusion matrices that are held at once, 32 MB


class Pairs(NamedTuple):
    """How often each pair of a right and a predicted class occurs in each sentence.

    A test set has few of the kinds² pairs, so only those that occur are counted: the memory is that of the words.

    Args:
        kinds: of classes
        sentence, pair, times: (entries,) a number and where it belongs; pair: right class × kinds + predicted class
        sentences: their number
    """

    kinds: int
    sentence: np.ndarray
    pair: np.ndarray
    times: np.ndarray
    sentences: int


def pairs_of(truth: np.ndarray, best: np.ndarray, kinds: int, of_sentence: np.ndarray, sentences: int) -> Pairs:
    """The pairs of (units,) right and predicted classes. of_sentence: the sentence of each unit"""
    keys, counts = np.unique(of_sentence.astype(np.int64) * kinds**2 + truth * kinds + best, return_counts=True)
    return Pairs(kinds, keys // kinds**2, keys % kinds**2, counts.astype(float), sentences)


def of_pairs(pairs: Pairs, formula: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A resampled metric that is a formula of confusion matrices; of one resample at a time, if these are large.

    Args:
        formula: (samples, kinds²) sums -> (samples,) values
    """
    size = pairs.kinds**2
    at_once = max(1, MATRICES // size)

    def resampled(drawn: np.ndarray) -> np.ndarray:
        found = []
        for begin in range(0, len(drawn), at_once):
            rows = drawn[begin : begin + at_once]
            sums = np.empty((len(rows), size))
            for into, row in zip(sums, rows):
                drawings = np.bincount(row, minlength=pairs.sentences)
                into[:] = np.bincount(pairs.pair, drawings[pairs.sentence] * pairs.times, minlength=size)
            found.append(formula(sums))
        return 100 * np.concatenate(found)

    return resampled


def _matrices(sums: np.ndarray) -> np.ndarray:
    kinds = int(round(sums.shape[1] ** 0.5))
    return sums.reshape(-1, kinds, kinds)


def accuracy(sums: np.ndarray) -> np.ndarray:
    """(samples,) the share of the diagonal, of (samples, kinds²) confusion matrices: rows right, columns predicted."""
    matrices = _matrices(sums)
    return np.trace(matrices, axis1=1, axis2=2) / np.maximum(matrices.sum(axis=(1, 2)), 1)


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """(samples,) the mean F1 of the classes that occur; arguments as for `accuracy`."""
    matrices = _matrices(sums)
    both = matrices.sum(axis=1) + matrices.sum(axis=2)
    ones = 2 * np.diagonal(matrices, axis1=1, axis2=2) / np.maximum(both, 1)
    return ones.sum(axis=1) / np.maximum((both > 0).sum(axis=1), 1)


def matthews(sums: np.ndarray) -> np.ndarray:
    """(samples,) Matthews' correlation for any number of classes (Gorodkin 2004,
    https://doi.org/10.1016/j.compbiolchem.2004.09.006), 0 where it is not defined; arguments as for `accuracy`."""
    matrices = _matrices(sums)
    total, right = matrices.sum(axis=(1, 2)), np.trace(matrices, axis1=1, axis2=2)
    predicted, truth = matrices.sum(axis=1), matrices.sum(axis=2)
    covariance = right * total - (predicted * truth).sum(axis=1)
    spread = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (truth**2).sum(axis=1))
    return np.where(spread > 0, covariance / np.sqrt(np.maximum(spread, 1)), 0.0)
