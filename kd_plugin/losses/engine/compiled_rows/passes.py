"""Passes over a row: its best entry, softmaxes, cross-entropy, and gradient. Functions named `_block_…` see one block,
which keeps their sums short."""

import math

import numpy as np

from kd_plugin.losses.engine.compiled_rows.functions import BLOCK, CE, NLL, ONE, ZERO, exact, exp, reordered, sort_key


@reordered
def block_maxima(block, lanes):  # type: ignore[no-untyped-def]
    for i in range(lanes.size):
        lanes[i] = block[i] if block[i] > lanes[i] else lanes[i]


@exact
def _block_best(block):  # type: ignore[no-untyped-def]
    best = sort_key(block[0])
    for i in range(block.size):
        key = sort_key(block[i])
        best = key if key > best else best
    return best


@exact
def best_index(row):  # type: ignore[no-untyped-def]
    """The first index of the maximum; any index if there is a NaN."""
    best, best_start = _block_best(row[:BLOCK]), 0
    for start in range(BLOCK, row.size, BLOCK):
        of_block = _block_best(row[start : start + BLOCK])
        if of_block > best:
            best, best_start = of_block, start
    for index in range(best_start, min(best_start + BLOCK, row.size)):
        if sort_key(row[index]) == best:
            return index
    return 0


@reordered
def _block_softmax(block, best, inverse_temperature, exps):  # type: ignore[no-untyped-def]
    total, ties, centred_sum = ZERO * best, ZERO * best, ZERO * best
    for i in range(exps.size):
        centred = (block[i] - best) * inverse_temperature
        entry = exp(centred)
        exps[i] = entry
        tie = ONE if centred == ZERO else ZERO  # entry is then 1; a second condition would prevent vectorisation
        total += entry - tie
        ties += tie
        centred_sum += centred
    return total, ties, centred_sum


@exact
def softmax(row, best, inverse_temperature, exps):  # type: ignore[no-untyped-def]
    """Fills exps = exp(centred), centred = (row - best) / temperature. Returns the sums of both, in float64."""
    total, centred_sum = 0.0, 0.0
    for start in range(0, row.size, BLOCK):
        stop = start + BLOCK
        small, ties, centred = _block_softmax(row[start:stop], best, inverse_temperature, exps[start:stop])
        total += np.float64(small) + np.float64(ties)
        centred_sum += np.float64(centred)
    return total, centred_sum


@reordered
def _block_cross(teacher, t_best, student, z_best, inverse_temperature, exps):  # type: ignore[no-untyped-def]
    total, ties, cross = ZERO * t_best, ZERO * t_best, ZERO * t_best
    for i in range(exps.size):
        centred = (teacher[i] - t_best) * inverse_temperature
        gap = centred - (student[i] - z_best) * inverse_temperature
        entry = exp(centred)
        exps[i] = entry
        tie = ONE if centred == ZERO else ZERO
        total += entry - tie
        ties += tie
        cross += ZERO if entry == ZERO else entry * gap
    return total, ties, cross


@exact
def cross_softmax(t, t_best, z, z_best, inverse_temperature, exps):  # type: ignore[no-untyped-def]
    """softmax of the teacher's row and, in the same pass, cross = sum exps (its centred - the student's).

    The forward KL is cross / total plus the difference of the two log totals.
    """
    total, cross = 0.0, 0.0
    for start in range(0, t.size, BLOCK):
        part = slice(start, start + BLOCK)
        small, ties, of_block = _block_cross(t[part], t_best, z[part], z_best, inverse_temperature, exps[part])
        total += np.float64(small) + np.float64(ties)
        cross += np.float64(of_block)
    return total, cross


@reordered
def _block_of_two(first, second, constant, gradient):  # type: ignore[no-untyped-def]
    """gradient = the sum of entries * factor over both parts, minus a constant."""
    a, a_weight = first
    b, b_weight = second
    for i in range(gradient.size):
        gradient[i] = a_weight * a[i] + b_weight * b[i] - constant


@reordered
def _block_of_three(first, second, third, constant, gradient):  # type: ignore[no-untyped-def]
    a, a_weight = first
    b, b_weight = second
    c, c_weight = third
    for i in range(gradient.size):
        gradient[i] = a_weight * a[i] + b_weight * b[i] + c_weight * c[i] - constant


@exact
def cross_entropy(z, label, nll_weight, eps_i, exps, out):  # type: ignore[no-untyped-def]
    """Writes NLL and CE of a row, and exps = exp(z - best). Returns the best entry's index and sum exps in float64."""
    argmax = best_index(z)
    best = z[argmax]
    total, centred_sum = softmax(z, best, nll_weight * ZERO + ONE, exps)
    log_total = math.log(total)
    nll = log_total - np.float64(z[label] - best)
    out[NLL] = nll
    out[CE] = nll
    if eps_i > ZERO:
        out[CE] = nll_weight * nll + eps_i * (z.size * log_total - centred_sum)
    return argmax, total


@exact
def write_gradient(gradient, label, parts, of_three, ce_weight, nll_weight, eps_i):  # type: ignore[no-untyped-def]
    """gradient = the sum of entries * factor over the parts, minus the smoothed one-hot target's share.

    of_three: whether to include the last of the three parts
    """
    (a, a_weight), (b, b_weight), (c, c_weight) = parts
    for start in range(0, gradient.size, BLOCK):
        stop = start + BLOCK
        first, second = (a[start:stop], a_weight), (b[start:stop], b_weight)
        if of_three:
            _block_of_three(first, second, (c[start:stop], c_weight), ce_weight * eps_i, gradient[start:stop])
        else:
            _block_of_two(first, second, ce_weight * eps_i, gradient[start:stop])
    gradient[label] -= ce_weight * nll_weight
