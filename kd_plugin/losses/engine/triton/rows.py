"""Shared by the GPU kernels: a row's softmax statistics, its best entry, each entry's share of a divergence."""

import math
import os

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from kd_plugin.losses import definition, divergences
from kd_plugin.losses.engine.storage import SMALL, STEP

# globals that kernels read must be constexpr
CE, NLL, KD, RANK, TEACHER_NLL, AGREE = (tl.constexpr(column) for column in range(definition.N_TERMS))
N_TERMS = tl.constexpr(definition.N_TERMS)
MASKED_LPROB = tl.constexpr(divergences.MASKED_LPROB)
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # initial maximum: finite, because -inf - -inf is NaN
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
FP16_STEP, FP16_SMALL = tl.constexpr(STEP), tl.constexpr(SMALL)
LOG2_E = tl.constexpr(math.log2(math.e))
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # set by the tests


@triton.jit
def exp(x):  # type: ignore[no-untyped-def]
    """exp with subnormal results flushed to 0: tl.exp keeps them, which took a third more instructions per row."""
    if INTERPRETED:  # the interpreter cannot call libdevice
        result = tl.exp2(x * LOG2_E)
    else:
        result = libdevice.exp2(x * LOG2_E)
    return result


@triton.jit
def begin(  # type: ignore[no-untyped-def]
    tensor, row, STRIDE: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr
):
    """The vector in which a row begins, and the offset of the row's first entry within it."""
    first = row * STRIDE
    vector, shift = tensor + first, 0
    if EDGES:
        vector, shift = tensor + first // VECTOR * VECTOR, (first % VECTOR).to(tl.int32)
    return vector, shift


@triton.jit
def edges(shift, VOCAB: tl.constexpr, VECTOR: tl.constexpr):  # type: ignore[no-untyped-def]
    """(2 VECTOR,) indices of a row's entries outside its whole vectors, and a mask of the valid ones."""
    number = tl.arange(0, 2 * VECTOR)
    after = (shift + VOCAB) // VECTOR * VECTOR
    at = tl.where(number < VECTOR, number, after + number - VECTOR)
    stop = tl.where(number < VECTOR, tl.where(shift > 0, after, 0), shift + VOCAB)
    return at - shift, (at >= shift) & (at < stop)


@triton.jit
def positions(LANES: tl.constexpr, VECTOR: tl.constexpr):  # type: ignore[no-untyped-def]
    """(LANES, VECTOR) positions of the first block's entries, counted from the vector in which the row begins."""
    return tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]


@triton.jit
def inside(  # type: ignore[no-untyped-def]
    at, start, shift, VOCAB: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr
):
    """Mask of the block's entries that belong to the row, without edges: constant per vector, so vectors move whole.

    at: `positions` of the block that begins at start
    """
    if EDGES:
        vectors = start + tl.arange(0, LANES)[:, None] * VECTOR
        result = (vectors >= shift) & (vectors + VECTOR <= shift + VOCAB)
    else:
        result = at < VOCAB
    return result


@triton.jit
def load(row, at, wanted, POLICY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Entries of a row in fp32; -inf, a probability of 0, where not wanted."""
    return tl.load(row + at, mask=wanted, other=-float("inf"), eviction_policy=POLICY).to(tl.float32)


@triton.jit
def load_beside(row, at, apart, wanted, EDGES: tl.constexpr, POLICY: tl.constexpr):  # type: ignore[no-untyped-def]
    """`load` at another row's positions, from which this row's are shifted by `apart`; vectors move whole only if 0."""
    if EDGES:
        if apart == 0:
            logits = tl.load(row + at, mask=wanted, other=-float("inf"), eviction_policy=POLICY)
        else:
            logits = tl.load(row + apart + at, mask=wanted, other=-float("inf"), eviction_policy=POLICY)
    else:
        logits = tl.load(row + at, mask=wanted, other=-float("inf"), eviction_policy=POLICY)
    return logits.to(tl.float32)


@triton.jit
def in_lanes(values, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """A sum, spread evenly over the lanes; exact, because their number is a power of two."""
    return tl.sum(values, axis=0) * (1.0 / LANES)


@triton.jit
def extend(  # type: ignore[no-untyped-def]
    logits, start, best, first, total, tempered, inverse_temperature, TEMPERED: tl.constexpr
):
    """Updates the lanes' statistics, (LANES,) each, with another block of (LANES, VECTOR) logits.

    best: the maximum; first: the start of the first block that has it; total: sum exp(logits - best);
    tempered: sum exp((logits - best) / temperature), unused if the temperature is 1
    """
    block_best = tl.max(logits, axis=1)
    new_best = tl.maximum(best, block_best)
    centred = logits - new_best[:, None]
    total = total * exp(best - new_best) + tl.sum(exp(centred), axis=1)
    if TEMPERED:
        rescaled = tempered * exp((best - new_best) * inverse_temperature)
        tempered = rescaled + tl.sum(exp(centred * inverse_temperature), axis=1)
    return new_best, tl.where(block_best > best, start, first), total, tempered


@triton.jit
def merge(best, total, tempered, of_edges, inverse_temperature, TEMPERED: tl.constexpr):  # type: ignore[no-untyped-def]
    """From a row's lanes and edges (None: no edges): its maximum, log sum exp(logits - maximum), and the latter at the
    temperature."""
    top = tl.max(best, axis=0)
    if of_edges is not None:
        top = tl.maximum(top, tl.max(of_edges, axis=0))
    sum_total = tl.sum(total * exp(best - top), axis=0)
    if of_edges is not None:
        sum_total += tl.sum(exp(of_edges - top), axis=0)
    log_total = tl.log(sum_total)
    log_tempered = log_total
    if TEMPERED:
        sum_tempered = tl.sum(tempered * exp((best - top) * inverse_temperature), axis=0)
        if of_edges is not None:
            sum_tempered += tl.sum(exp((of_edges - top) * inverse_temperature), axis=0)
        log_tempered = tl.log(sum_tempered)
    return top, log_total, log_tempered


@triton.jit
def visit(  # type: ignore[no-untyped-def]
    z_row,
    z_shift,
    t_row,
    t_shift,
    origin,
    inverse_temperature,
    VOCAB: tl.constexpr,
    TEMPERED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    EDGES: tl.constexpr,
):
    """The first pass over the student's row and, if not None, the teacher's: both sides' statistics per lane, and the
    sums of the student's logits minus `origin` (sums of large logits would be inexact)."""
    END: tl.constexpr = VOCAB + (VECTOR - 1 if EDGES else 0)
    zero, no_index = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.int32)
    z_best, z_first, z_total, z_tempered, z_sum = zero + LOWEST, no_index, zero, zero, zero
    t_best, t_first, t_total, t_tempered = zero + LOWEST, no_index, zero, zero
    offsets = positions(LANES, VECTOR)
    for start in range(0, END, LANES * VECTOR):
        at = start + offsets
        own = inside(at, start, z_shift, VOCAB, LANES, VECTOR, EDGES)
        z = load(z_row, at, own, "evict_last")
        if t_row is not None:
            t_own = own
            if EDGES:
                t_own = inside(at, start, t_shift, VOCAB, LANES, VECTOR, EDGES)
            t = load(t_row, at, t_own, "evict_last")
            t_best, t_first, t_total, t_tempered = extend(
                t, start, t_best, t_first, t_total, t_tempered, inverse_temperature, TEMPERED
            )
        z_best, z_first, z_total, z_tempered = extend(
            z, start, z_best, z_first, z_total, z_tempered, inverse_temperature, TEMPERED
        )
        if SMOOTHED:
            z_sum += tl.sum(tl.where(own, z - origin, 0.0), axis=1)
    return z_best, z_first, z_total, z_tempered, z_sum, t_best, t_first, t_total, t_tempered


@triton.jit
def cross_entropy(  # type: ignore[no-untyped-def]
    out, z_label, origin, top, log_total, z_sum, nll_weight, eps_i, VOCAB: tl.constexpr, SMOOTHED: tl.constexpr
):
    """Stores a row's CE and NLL, from the results of `visit` and `merge`."""
    nll = log_total - (z_label - top)
    ce = nll
    if SMOOTHED:
        ce = nll_weight * nll + eps_i * (VOCAB * (log_total - (origin - top)) - tl.sum(z_sum, axis=0))
    tl.store(out + CE, ce)
    tl.store(out + NLL, nll)


@triton.jit
def argmax(  # type: ignore[no-untyped-def]
    row,
    shift,
    top,
    best,
    first,
    VOCAB: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    EDGES: tl.constexpr,
):
    """The first index of a row's maximum. Reads only the first vector that contains it, and the edges."""
    vectors = first + tl.arange(0, LANES) * VECTOR
    at = tl.min(tl.where(best == top, vectors, shift + VOCAB), axis=0) + tl.arange(0, VECTOR)
    own = at < shift + VOCAB
    if EDGES:
        own = own & (at >= shift)
    result = tl.min(tl.where(load(row, at, own, "evict_last") == top, at - shift, VOCAB), axis=0)
    if EDGES:
        at_edges, is_edge = edges(shift, VOCAB, VECTOR)
        of_edges = load(row + shift, at_edges, is_edge, "evict_last")
        result = tl.minimum(result, tl.min(tl.where(of_edges == top, at_edges, VOCAB), axis=0))
    return result


@triton.jit
def lprobs(logits, top, log_total, inverse_temperature, TEMPERED: tl.constexpr):  # type: ignore[no-untyped-def]
    centred = logits - top
    if TEMPERED:
        centred *= inverse_temperature
    return centred - log_total


@triton.jit
def divergence(z_lprobs, t_lprobs, parameter, DIVERGENCE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each entry's share of the divergence, and the slope with respect to log p, as in divergences.py.

    If a probability is 0, its logarithm may be infinite. No comparison or maximum may hide a NaN.
    """
    p, q = exp(z_lprobs), exp(t_lprobs)
    if DIVERGENCE == "forward_kl":
        value = tl.where(q == 0, 0.0, q * (t_lprobs - z_lprobs))
        slope = -q
    elif DIVERGENCE == "reverse_kl":
        t_lprobs = tl.where(t_lprobs == -float("inf"), MASKED_LPROB, t_lprobs)
        value = tl.where(p == 0, 0.0, p * (z_lprobs - t_lprobs))
        slope = value
    elif DIVERGENCE == "adaptive_kl":
        forward = tl.where(q == 0, 0.0, q * (t_lprobs - z_lprobs))
        t_lprobs = tl.where(t_lprobs == -float("inf"), MASKED_LPROB, t_lprobs)
        reverse = tl.where(p == 0, 0.0, p * (z_lprobs - t_lprobs))
        value = parameter * forward + (1.0 - parameter) * reverse
        slope = (1.0 - parameter) * reverse - parameter * q
    elif DIVERGENCE == "tvd":
        gap = p - q
        value = 0.5 * tl.abs(gap)
        slope = tl.where(gap > 0, 0.5 * p, tl.where(gap < 0, -0.5 * p, 0.0 * gap))
    else:
        teacher_weight = 1.0 - parameter if DIVERGENCE == "skew_reverse_kl" else parameter
        mixture = teacher_weight * q + (1.0 - teacher_weight) * p
        mixture = tl.where(mixture < TINY, TINY, mixture)
        log_mixture = tl.log(mixture)
        of_teacher = tl.where(q == 0, 0.0, q * (t_lprobs - log_mixture))
        of_student = tl.where(p == 0, 0.0, p * (z_lprobs - log_mixture))
        if DIVERGENCE == "js":
            slope = (1.0 - parameter) * of_student
            value = parameter * of_teacher + slope
        elif DIVERGENCE == "skew_forward_kl":
            value = of_teacher
            slope = (parameter - 1.0) * q * (p / mixture)
        else:
            tl.static_assert(DIVERGENCE == "skew_reverse_kl")
            value = of_student
            slope = of_student - parameter * p * (p / mixture)
    return value, slope


@triton.jit
def row_scale(bound, kd, kd_weight, DIVERGENCE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The factor of a gradient's row in fp16, as storage.scale_for."""
    if DIVERGENCE == "reverse_kl" or DIVERGENCE == "adaptive_kl":
        # a divergence with weight 0 may be infinite
        bound += tl.where(kd_weight > 0.0, kd_weight * tl.maximum(kd, 0.0), 0.0)
    return FP16_STEP * tl.exp2(-tl.maximum(tl.ceil(tl.log2(bound / FP16_SMALL)), 0.0))
