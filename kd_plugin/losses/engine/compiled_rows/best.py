"""The best entries of rows, and the mass of all others."""

import numpy as np

from kd_plugin.losses.engine.compiled_rows.functions import BLOCK, ZERO, entry_point, exact, exp, reordered
from kd_plugin.losses.engine.compiled_rows.passes import block_maxima


@reordered
def _block_exps(block, best, inverse_temperature):  # type: ignore[no-untyped-def]
    total = ZERO * best
    for i in range(block.size):
        total += exp((block[i] - best) * inverse_temperature)
    return total


@exact
def _insert(value, index, values, indices, count):  # type: ignore[no-untyped-def]
    """Inserts into the first `count` of descending values; if all places are taken, the last value drops out."""
    at = min(count, values.size - 1)
    while at > 0 and values[at - 1] < value:
        values[at] = values[at - 1]
        indices[at] = indices[at - 1]
        at -= 1
    values[at] = value
    indices[at] = index


@exact
def _centre(values):  # type: ignore[no-untyped-def]
    """The origin for exponentials: the best of descending values, or 0 if all are -inf."""
    return values.dtype.type(0.0) if values[0] == -np.inf else values[0]


@exact
def _insert_best(row, maxima, threshold, best, first, count, groups):  # type: ignore[no-untyped-def]
    """Inserts the entries of a row that are not below the threshold into `best`.

    maxima: the maximum of each group; group i holds every maxima.size-th entry, starting at the i-th
    best: descending values and their ids (positions in the row plus `first`)
    count: how many places of `best` are taken; returns it plus the number of insertions
    groups: working memory
    """
    values, ids = best
    n_groups, k = maxima.size, values.size
    n_chosen = 0
    for i in range(n_groups):
        if not maxima[i] < threshold:  # written so that a NaN passes
            groups[n_chosen] = i
            n_chosen += 1
    for start in range(0, row.size if n_chosen > 0 else 0, n_groups):
        for j in range(n_chosen):
            i = start + groups[j]
            if i < row.size and not row[i] < threshold and (count < k or row[i] > values[k - 1]):
                _insert(row[i], first + i, values, ids, count)
                count += 1
    return count


@exact
def _kth_of_lanes(maxima, lanes, values, groups):  # type: ignore[no-untyped-def]
    """The k-th largest lane maximum, a lower bound of the k-th largest entry. Overwrites values, (k,), and groups."""
    k = values.size
    lanes[:] = maxima[: lanes.size]
    for start in range(lanes.size, maxima.size, lanes.size):
        block_maxima(maxima[start : start + lanes.size], lanes)
    for i in range(lanes.size):
        if i < k or lanes[i] > values[k - 1]:
            _insert(lanes[i], i, values, groups, i)
    return values[k - 1]


@entry_point
def top_rows(  # type: ignore[no-untyped-def]
    logits,  # (tokens, some columns of the vocabulary), changed and restored
    first,  # the first column's index; calls come in ascending order, and the first has at least 2 k columns
    values,  # (tokens, k) the best logits so far, descending
    ids,  # (tokens, k) their indices in the vocabulary
    rests,  # (tokens,) float64, sum of exp((logit - the best one) / temperature) over all other entries
    inverse_temperature,
    n_groups,
    n_lanes,
):
    width, k = logits.shape[1], ids.shape[1]
    real = logits.dtype.type
    n_groups = min(n_groups, width)
    maxima, lanes = np.empty(n_groups, logits.dtype), np.empty(n_lanes, logits.dtype)
    groups, before = np.empty(n_groups, np.int64), np.empty(k, logits.dtype)
    whole = width - width % n_groups
    for token in range(logits.shape[0]):
        row, best = logits[token], (values[token], ids[token])
        maxima[:] = row[:n_groups]
        for start in range(n_groups, whole, n_groups):
            block_maxima(row[start : start + n_groups], maxima)
        for i in range(whole, width):
            maxima[i - whole] = max(maxima[i - whole], row[i])
        rest, centre = 0.0, real(0.0)
        if first == 0:
            threshold = _kth_of_lanes(maxima, lanes, values[token], groups)
            n_new = _insert_best(row, maxima, threshold, best, 0, 0, groups)
            if n_new < k:  # there are NaNs
                n_new = _insert_best(row, maxima, -np.inf, best, 0, 0, groups)
        else:
            before[:] = values[token]
            rest, centre = rests[token], _centre(before)
            n_new = _insert_best(row, maxima, before[k - 1], best, first, k, groups) - k
        if n_new > 0:
            new_centre = _centre(values[token])
            if rest > 0.0:
                rest *= np.float64(exp((centre - new_centre) * inverse_temperature))
            centre = new_centre
            # sum without the best entries: a small rest computed as a difference would be inexact
            kept = k
            for i in range(k):
                if ids[token, i] >= first:
                    row[ids[token, i] - first] = -np.inf
                    kept -= 1
            if first > 0:
                for i in range(kept, k):
                    rest += np.float64(exp((before[i] - centre) * inverse_temperature))
        for start in range(0, width, BLOCK):
            rest += np.float64(_block_exps(row[start : start + BLOCK], centre, inverse_temperature))
        rests[token] = rest
        if n_new > 0:
            for i in range(k):
                if ids[token, i] >= first:
                    row[ids[token, i] - first] = values[token, i]
