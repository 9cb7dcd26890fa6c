"""What the GPU kernels do with a row: its softmax's statistics, its best entry, each entry's share of a divergence."""

import math
import os

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from kd_plugin.losses import definition, divergences
from kd_plugin.losses.engine.storage import SMALL, STEP

# what kernels read must be a constexpr
CE, NLL, KD, RANK, TEACHER_NLL, AGREE = (tl.constexpr(column) for column in range(definition.N_TERMS))
N_TERMS = tl.constexpr(definition.N_TERMS)
MASKED_LPROB = tl.constexpr(divergences.MASKED_LPROB)
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # where maxima start: finite, for -inf - -inf is NaN
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
FP16_STEP, FP16_SMALL = tl.constexpr(STEP), tl.constexpr(SMALL)
LOG2_E = tl.constexpr(math.log2(math.e))
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # the tests do so


@triton.jit
def exp(x):  # type: ignore[no-untyped-def]
    """Results below the normal numbers are 0: tl.exp keeps them, which made a row a third longer in instructions."""
    if INTERPRETED:  # where libdevice cannot be called
        result = tl.exp2(x * LOG2_E)
    else:
        result = libdevice.exp2(x * LOG2_E)
    return result


@triton.jit
def load(row, at, VOCAB: tl.constexpr, POLICY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Entries of a row in fp32; -inf beyond the vocabulary, so with a probability of 0."""
    return tl.load(row + at, mask=at < VOCAB, other=-float("inf"), eviction_policy=POLICY).to(tl.float32)


@triton.jit
def extend(  # type: ignore[no-untyped-def]
    logits, start, best, first, total, tempered, inverse_temperature, TEMPERED: tl.constexpr
):
    """The statistics of the lanes, (LANES,) each, with another block of (LANES, VECTOR) logits.

    best: the maximum; first: the start of the first block that has it; total: sum exp(logits - best);
    tempered: sum exp((logits - best) / temperature), not in use where that is 1
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
def merge(best, total, tempered, inverse_temperature, TEMPERED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a row, from its lanes: the maximum, log sum exp(logits - maximum), and the same at the temperature."""
    top = tl.max(best, axis=0)
    log_total = tl.log(tl.sum(total * exp(best - top), axis=0))
    log_tempered = log_total
    if TEMPERED:
        log_tempered = tl.log(tl.sum(tempered * exp((best - top) * inverse_temperature), axis=0))
    return top, log_total, log_tempered


@triton.jit
def argmax(  # type: ignore[no-untyped-def]
    row, top, best, first, VOCAB: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr
):
    """The first index of a row's maximum, for which only the first VECTOR entries that have it are looked at."""
    vectors = first + tl.arange(0, LANES) * VECTOR
    at = tl.min(tl.where(best == top, vectors, VOCAB), axis=0) + tl.arange(0, VECTOR)
    return tl.min(tl.where(load(row, at, VOCAB, "evict_last") == top, at, VOCAB), axis=0)


@triton.jit
def lprobs(logits, top, log_total, inverse_temperature, TEMPERED: tl.constexpr):  # type: ignore[no-untyped-def]
    centred = logits - top
    if TEMPERED:
        centred *= inverse_temperature
    return centred - log_total


@triton.jit
def divergence(z_lprobs, t_lprobs, parameter, DIVERGENCE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each entry's share of the divergence, and the slope with respect to log p, as in divergences.py.

    Where a probability is 0 its logarithm may be infinite. No comparison or maximum may hide a NaN.
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
        # a divergence that does not count may be infinite
        bound += tl.where(kd_weight > 0.0, kd_weight * tl.maximum(kd, 0.0), 0.0)
    return FP16_STEP * tl.exp2(-tl.maximum(tl.ceil(tl.log2(bound / FP16_SMALL)), 0.0))
