"""Batches of sentences of similar length."""

from typing import Iterator

import numpy as np


def by_length(lengths: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """Positions of sentences, shortest first, in batches of at most max_tokens including padding.

    A sentence longer than max_tokens is a batch by itself.

    Args:
        lengths: (sentences,), or (keys, sentences) to sort by several lengths: the last key is the primary one, and
            batch sizes depend on it alone
    """
    keys = np.atleast_2d(lengths)
    if keys.shape[1] == 0:
        return
    order = np.lexsort(keys)
    ordered = keys[-1][order]
    start = 0
    for at in range(1, len(order) + 1):
        # lengths ascend, so the last one is the longest
        if at == len(order) or ordered[at] * (at + 1 - start) > max_tokens:
            yield order[start:at]
            start = at
