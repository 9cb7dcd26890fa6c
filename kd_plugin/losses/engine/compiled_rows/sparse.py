"""The loss of rows for which a cache's entries are known: k symbols, and a bucket for all others."""

import math

import numpy as np

from kd_plugin.losses.engine.compiled_rows.divergences import forward_kl, js, reverse_kl, tvd
from kd_plugin.losses.engine.compiled_rows.functions import (
    AGREE,
    BLOCK,
    FORWARD_KL,
    JS,
    KD,
    ONE,
    REVERSE_KL,
    SMALL_MASS,
    ZERO,
    entry_point,
    exact,
    exp,
    reordered,
)
from kd_plugin.losses.engine.compiled_rows.passes import best_index, cross_entropy, softmax, write_gradient


@reordered
def _block_sum(entries):  # type: ignore[no-untyped-def]
    total = ZERO * entries[0]
    for i in range(entries.size):
        total += entries[i]
    return total


@reordered
def _block_centred(block, best, inverse_temperature, centred):  # type: ignore[no-untyped-def]
    for i in range(centred.size):
        centred[i] = (block[i] - best) * inverse_temperature


@exact
def _mass_of_the_rest(z, ids, best, inverse_temperature, exps):  # type: ignore[no-untyped-def]
    """Fills exps = exp(centred - origin), 0 at ids, where origin is the best centred entry outside ids.

    Returns their sum, in float64, and origin. For rows where all entries outside ids underflow relative to the best.
    """
    for start in range(0, z.size, BLOCK):
        part = slice(start, start + BLOCK)
        _block_centred(z[part], best, inverse_temperature, exps[part])
    for i in range(ids.size):
        exps[ids[i]] = -np.inf
    origin = exps[best_index(exps)]
    if origin == -np.inf:  # there are no others
        exps[:] = ZERO
        return 0.0, origin
    return softmax(exps, origin, inverse_temperature * ZERO + ONE, exps)[0], origin


@exact
def _sparse_share(divergence, p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    if divergence == FORWARD_KL:
        return forward_kl(p, q, log_p, log_q, weight, rest)
    if divergence == REVERSE_KL:
        return reverse_kl(p, q, log_p, log_q, weight, rest)
    if divergence == JS:
        return js(p, q, log_p, log_q, weight, rest)
    return tvd(p, q, log_p, log_q, weight, rest)


@entry_point
def sparse_rows(  # type: ignore[no-untyped-def]
    student,  # (all, vocab)
    rows,  # (tokens,)
    ids,  # (tokens, k)
    lprobs,  # (tokens, k)
    log_rest,  # (tokens,)
    sampled,  # whether the ids are draws
    target,  # from here on as in dense_rows
    gradient,
    terms,
    want_gradient,
    divergence,
    ce_weight,
    kd_weight,
    inverse_temperature,
    nll_weight,
    eps_i,
    parameter,
):
    """With h the slope in log p, d/d(logits / temperature) is h - p sum h for an entry and p / p_rest h_rest - p sum h
    for a symbol in the bucket."""
    vocab, k = student.shape[1], ids.shape[1]
    real = student.dtype.type
    plain_exps = np.empty(vocab, student.dtype)
    tempered = inverse_temperature != ONE
    exps = np.empty(vocab, student.dtype) if tempered else plain_exps
    slopes, entries = np.empty(k, student.dtype), np.empty(k, student.dtype)
    other = ONE - parameter
    for token in range(rows.size):
        z, out, label = student[rows[token]], terms[token], target[token]
        argmax, plain_total = cross_entropy(z, label, nll_weight, eps_i, plain_exps, out)
        best, total = z[argmax], plain_total
        if tempered:
            total = softmax(z, best, inverse_temperature, exps)[0]
        norm, log_total = real(1.0 / total), real(math.log(total))
        kd, slope_sum, of_rest, shrink = 0.0, 0.0, real(0.0), real(1.0)
        if sampled:
            for i in range(k):
                log_p = (z[ids[token, i]] - best) * inverse_temperature - log_total
                kd += np.float64(lprobs[token, i] - log_p) / k
                slopes[i] = real(-1.0 / k)
            slope_sum = -1.0
        else:
            for i in range(k):
                entries[i] = exps[ids[token, i]]
                exps[ids[token, i]] = real(0.0)  # now, not after the loop: cache.compress.unknown repeats a symbol
                log_p = (z[ids[token, i]] - best) * inverse_temperature - log_total
                log_q = lprobs[token, i]
                value, slope = _sparse_share(divergence, entries[i] * norm, exp(log_q), log_p, log_q, parameter, other)
                slopes[i] = slope
                kd += np.float64(value)
                slope_sum += np.float64(slope)
            mass, origin = 0.0, real(0.0)
            for start in range(0, vocab, BLOCK):
                mass += np.float64(_block_sum(exps[start : start + BLOCK]))
            if mass < SMALL_MASS:
                mass, origin = _mass_of_the_rest(z, ids[token], best, inverse_temperature, exps)
                shrink = exp(origin)
            log_p = real(-np.inf)
            if mass != 0.0:
                log_p = real(math.log(mass) + np.float64(origin)) - log_total
            log_q = log_rest[token]
            p = real(mass * np.float64(shrink) / total)
            value, slope = _sparse_share(divergence, p, exp(log_q), log_p, log_q, parameter, other)
            kd += np.float64(value)
            slope_sum += np.float64(slope)
            of_rest = real(slope / mass) if mass != 0.0 else of_rest
            kd = 0.0 if kd < 0.0 else kd
        out[KD] = kd
        out[AGREE] = argmax == ids[token, 0]
        if want_gradient:
            g = gradient[rows[token]]
            factor = real(kd_weight * (of_rest - slope_sum * shrink / total))
            plain_weight = real(ce_weight / plain_total)
            if not tempered:
                plain_weight *= shrink
            plain_part = (plain_exps, plain_weight)
            write_gradient(g, label, ((exps, factor), plain_part, plain_part), False, ce_weight, nll_weight, eps_i)
            for i in range(k):
                share = kd_weight * slopes[i]
                if not sampled:
                    share -= real(kd_weight * slope_sum) * entries[i] * norm
                    if not tempered:
                        share += ce_weight * entries[i] * norm
                g[ids[token, i]] += share
