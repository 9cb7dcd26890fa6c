"""The one-pass engine on GPUs: Triton kernels for `one_pass` and for the scaling of its gradient.

One program takes one row and runs over the vocabulary two or three times: the statistics of both softmaxes; the
divergence, where the gradient needs a sum of its slope; the gradient. Later visits should find the row in the L2
cache, so that device memory sees two reads and a write.

What was chosen, with an H100 in mind (speed: not measured; registers, spills and the width of loads: read off what
Triton 3.9 compiles for it):
* Lanes. A block of a row is (LANES, VECTOR) entries, VECTOR of them one load of 16 bytes. Each lane has statistics of
  its own, merged when the row is through: no barrier between warps in the loops, one exponential in VECTOR + 1 spent
  on rescaling, and sums about as exact as pairwise ones.
* Programs as large as they come, 16 warps with two lanes a thread, and 64 registers a thread, with which two fit on a
  multiprocessor: at V = 32k in bf16 the rows at work are 2 * 132 * 128 KB, 34 of the L2 cache's 50 MB.
* The vocabulary and strides are compile-time constants: else nobody would know that loads can be 16 bytes wide where
  the vocabulary is a multiple of 8 (fairseq pads it to that) and not of 16. The number of rows, alpha, temperature
  and parameters may change from batch to batch without a compilation; a temperature of 1 has kernels of its own.
"""

import contextlib
import math
import os
from typing import Any, ContextManager, Optional

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from kd_plugin.losses import definition, divergences
from kd_plugin.losses.engine.storage import SMALL, STEP, gradient_bound
from kd_plugin.losses.sparse import Knowledge, SparseAnswer

# without adaptive_kl, for which the teacher's probabilities would have to be sorted
KNOWN_DIVERGENCES = ("forward_kl", "reverse_kl", "js", "skew_forward_kl", "skew_reverse_kl", "tvd")
KNOWN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_VOCAB = 2**30  # positions in a row are int32
MIN_LANES, MAX_LANES = 32, 1024
SCALE_PROGRAMS = 2048  # few: where the factor is 1, all that they do is to start

# what kernels read must be a constexpr
CE, NLL, KD, TEACHER_NLL, AGREE, N_TERMS = (
    tl.constexpr(getattr(definition, name)) for name in ("CE", "NLL", "KD", "TEACHER_NLL", "AGREE", "N_TERMS")
)
MASKED_LPROB = tl.constexpr(divergences.MASKED_LPROB)
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # where maxima start: finite, for -inf - -inf is NaN
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
FP16_STEP, FP16_SMALL = tl.constexpr(STEP), tl.constexpr(SMALL)
LOG2_E = tl.constexpr(math.log2(math.e))
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # the tests do so


def supports(student_logits: Tensor, teacher_logits: Knowledge, objective: definition.Objective) -> bool:
    """Whether `one_pass` here takes such logits and knows the objective."""
    if isinstance(teacher_logits, SparseAnswer):
        return False
    if teacher_logits is not None and (objective.divergence not in KNOWN_DIVERGENCES or objective.top1_rank > 0):
        return False
    if torch.version.hip:
        return False  # untried
    if student_logits.is_cuda and torch.cuda.get_device_capability(student_logits.device) < (8, 0):
        return False  # Triton's own limit
    return all(
        logits.dtype in KNOWN_DTYPES and logits.dim() == 2 and logits.stride(1) == 1 and logits.size(1) <= MAX_VOCAB
        for logits in (student_logits, teacher_logits)
        if logits is not None
    )


def one_pass(
    student_logits: Tensor,
    teacher_logits: Optional[Tensor],
    target: Tensor,
    objective: definition.Objective,
    *,
    rows: Optional[Tensor] = None,
    teacher_rows: Optional[Tensor] = None,
    gradient: Optional[Tensor] = None,
    scales: Optional[Tensor] = None,
) -> Tensor:
    """As chunked.one_pass, for what `supports` agrees to. Nothing waits for the device.

    gradient: its last dimension is contiguous too

    Returns:
        (tokens, N_TERMS) fp32
    """
    n_rows, vocab = target.numel(), student_logits.size(1)
    assert teacher_logits is None or teacher_logits.size(1) == vocab
    assert gradient is None or (gradient.shape == student_logits.shape and gradient.stride(1) == 1)
    terms = torch.zeros(n_rows, definition.N_TERMS, dtype=torch.float32, device=student_logits.device)
    if n_rows == 0:
        return terms
    alpha, temperature, eps = objective.alpha, objective.temperature, objective.label_smoothing
    eps_i = eps / (vocab - 1) if eps > 0 else 0.0
    divergence, tempered, parameter = "", False, 0.0  # one kernel for all cross-entropy alone
    if teacher_logits is not None:
        divergence, tempered = objective.divergence, temperature != 1.0
        parameter = float(next(iter(objective.divergence_parameters().values()), 0.0))
    scales = None if gradient is None else scales
    bound = alpha
    if teacher_logits is not None:  # at a divergence of 0; the kernel adds the reverse KL's own
        bound = float(gradient_bound(objective, 0.0))
    strides = [0 if tensor is None else tensor.stride(0) for tensor in (student_logits, teacher_logits, gradient)]
    # of a power of two and the bitwise or of some numbers, the gcd is that of them all: every row can be loaded so
    vector = math.gcd(16 // student_logits.element_size(), vocab | strides[0] | strides[1] | strides[2])
    # at least a lane a thread: in place, an entry has one reader, who then overwrites it
    lanes = min(MAX_LANES, max(MIN_LANES, triton.next_power_of_2(triton.cdiv(vocab, vector))))
    with _on(student_logits):
        _row_kernel[(n_rows,)](
            student_logits.detach(),
            None if teacher_logits is None else teacher_logits.detach(),
            target.contiguous(),
            None if rows is None else rows.contiguous(),
            None if teacher_rows is None else teacher_rows.contiguous(),
            None if gradient is None else gradient.detach(),
            scales,
            terms,
            alpha,
            (1.0 - alpha) * temperature,
            1.0 / temperature,
            1.0 - eps - eps_i,
            eps_i,
            parameter,
            bound,
            VOCAB=vocab,
            STUDENT_STRIDE=strides[0],
            TEACHER_STRIDE=strides[1],
            GRADIENT_STRIDE=strides[2],
            DIVERGENCE=divergence,
            TEMPERED=tempered,
            SMOOTHED=eps > 0,
            LANES=lanes,
            VECTOR=vector,
            num_warps=max(1, lanes // 64),
            maxnreg=64,
        )
    return terms


def scale_(tensor: Tensor, factor: Tensor, scales: Optional[Tensor] = None) -> None:
    """tensor *= factor, a 0-dim tensor on its device, in fp32; where the factor is 1, no entry is read or written.

    scales: (rows,) fp32, what each row of a two-dimensional tensor is to be divided by
    """
    if tensor.dtype not in KNOWN_DTYPES or not (
        tensor.is_contiguous() or (tensor.dim() == 2 and tensor.stride(1) == 1)
    ):
        factor = factor if scales is None else (factor / scales).unsqueeze(-1)
        tensor.copy_(tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * factor)
    elif tensor.numel() > 0:
        entries = tensor.detach() if tensor.dim() == 2 else tensor.detach().view(-1, *tensor.shape[-1:] or (1,))
        n_rows, width = entries.shape
        with _on(tensor):
            _scale_kernel[(min(n_rows, SCALE_PROGRAMS),)](
                entries, factor.detach(), scales, n_rows, WIDTH=width, STRIDE=entries.stride(0), BLOCK=4096, num_warps=8
            )


def _on(tensor: Tensor) -> ContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@triton.jit(do_not_specialize=["n_rows"])
def _scale_kernel(  # type: ignore[no-untyped-def]
    tensor, factor, scales, n_rows, WIDTH: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr
):
    of_all = tl.load(factor).to(tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), n_rows, tl.num_programs(0)):
        by = of_all
        if scales is not None:
            by = of_all / tl.load(scales + row)
        if by != 1.0:
            for start in range(0, WIDTH, BLOCK):
                at = start + tl.arange(0, BLOCK)
                entries = tensor + row * STRIDE + at
                values = tl.load(entries, mask=at < WIDTH).to(tl.float32) * by
                tl.store(entries, values.to(tensor.dtype.element_ty), mask=at < WIDTH)


@triton.jit
def _exp(x):  # type: ignore[no-untyped-def]
    """Results below the normal numbers are 0: tl.exp keeps them, which made a row a third longer in instructions."""
    if INTERPRETED:  # where libdevice cannot be called
        result = tl.exp2(x * LOG2_E)
    else:
        result = libdevice.exp2(x * LOG2_E)
    return result


@triton.jit
def _load(row, at, VOCAB: tl.constexpr, POLICY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Entries of a row in fp32; -inf beyond the vocabulary, so with a probability of 0."""
    return tl.load(row + at, mask=at < VOCAB, other=-float("inf"), eviction_policy=POLICY).to(tl.float32)


@triton.jit
def _extend(  # type: ignore[no-untyped-def]
    logits, start, best, first, total, tempered, inverse_temperature, TEMPERED: tl.constexpr
):
    """The statistics of the lanes, (LANES,) each, with another block of (LANES, VECTOR) logits.

    best: the maximum; first: the start of the first block that has it; total: sum exp(logits - best);
    tempered: sum exp((logits - best) / temperature), not in use where that is 1
    """
    block_best = tl.max(logits, axis=1)
    new_best = tl.maximum(best, block_best)
    centred = logits - new_best[:, None]
    total = total * _exp(best - new_best) + tl.sum(_exp(centred), axis=1)
    if TEMPERED:
        rescaled = tempered * _exp((best - new_best) * inverse_temperature)
        tempered = rescaled + tl.sum(_exp(centred * inverse_temperature), axis=1)
    return new_best, tl.where(block_best > best, start, first), total, tempered


@triton.jit
def _merge(best, total, tempered, inverse_temperature, TEMPERED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a row, from its lanes: the maximum, log sum exp(logits - maximum), and the same at the temperature."""
    top = tl.max(best, axis=0)
    log_total = tl.log(tl.sum(total * _exp(best - top), axis=0))
    log_tempered = log_total
    if TEMPERED:
        log_tempered = tl.log(tl.sum(tempered * _exp((best - top) * inverse_temperature), axis=0))
    return top, log_total, log_tempered


@triton.jit
def _argmax(  # type: ignore[no-untyped-def]
    row, top, best, first, VOCAB: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr
):
    """The first index of a row's maximum, for which only the first VECTOR entries that have it are looked at."""
    vectors = first + tl.arange(0, LANES) * VECTOR
    at = tl.min(tl.where(best == top, vectors, VOCAB), axis=0) + tl.arange(0, VECTOR)
    return tl.min(tl.where(_load(row, at, VOCAB, "evict_last") == top, at, VOCAB), axis=0)


@triton.jit
def _lprobs(logits, top, log_total, inverse_temperature, TEMPERED: tl.constexpr):  # type: ignore[no-untyped-def]
    centred = logits - top
    if TEMPERED:
        centred *= inverse_temperature
    return centred - log_total


@triton.jit
def _divergence(z_lprobs, t_lprobs, parameter, DIVERGENCE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each entry's share of the divergence, and the slope with respect to log p, as in divergences.py.

    Where a probability is 0 its logarithm may be infinite. No comparison or maximum may hide a NaN.
    """
    p, q = _exp(z_lprobs), _exp(t_lprobs)
    if DIVERGENCE == "forward_kl":
        value = tl.where(q == 0, 0.0, q * (t_lprobs - z_lprobs))
        slope = -q
    elif DIVERGENCE == "reverse_kl":
        t_lprobs = tl.where(t_lprobs == -float("inf"), MASKED_LPROB, t_lprobs)
        value = tl.where(p == 0, 0.0, p * (z_lprobs - t_lprobs))
        slope = value
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
def _row_kernel(  # type: ignore[no-untyped-def]
    student,  # (all, vocab)
    teacher,  # (any, vocab) or None
    target,  # (tokens,)
    rows,  # (tokens,) or None
    teacher_rows,  # (tokens,) or None
    gradient,  # (all, vocab) or None; may be the student
    scales,  # (all,) fp32 or None
    terms,  # (tokens, N_TERMS), zeros
    ce_weight,  # alpha
    kd_weight,  # (1 - alpha) temperature
    inverse_temperature,
    nll_weight,  # 1 - eps - eps_i
    eps_i,
    parameter,  # of the divergence
    bound,  # of the gradient's entries, but for what the reverse KL adds to it
    VOCAB: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    TEACHER_STRIDE: tl.constexpr,
    GRADIENT_STRIDE: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    TEMPERED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row, teacher_row = token, token
    if rows is not None:
        row = tl.load(rows + token).to(tl.int64)
    if teacher_rows is not None:
        teacher_row = tl.load(teacher_rows + token).to(tl.int64)
    label = tl.load(target + token).to(tl.int32)
    offsets = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    zero, no_index = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.int32)

    z_row = student + row * STUDENT_STRIDE
    z_label = tl.load(z_row + label).to(tl.float32)
    # logits are summed as differences to one of them: the sum of large ones would be inexact
    origin = tl.where(z_label == -float("inf"), 0.0, z_label)
    z_best, z_first, z_total, z_tempered, z_sum = zero + LOWEST, no_index, zero, zero, zero
    if teacher is not None:
        t_row = teacher + teacher_row * TEACHER_STRIDE
        t_best, t_first, t_total, t_tempered = zero + LOWEST, no_index, zero, zero
    for start in range(0, VOCAB, LANES * VECTOR):
        z = _load(z_row, start + offsets, VOCAB, "evict_last")
        if teacher is not None:
            t = _load(t_row, start + offsets, VOCAB, "evict_last")
            t_best, t_first, t_total, t_tempered = _extend(
                t, start, t_best, t_first, t_total, t_tempered, inverse_temperature, TEMPERED
            )
        z_best, z_first, z_total, z_tempered = _extend(
            z, start, z_best, z_first, z_total, z_tempered, inverse_temperature, TEMPERED
        )
        if SMOOTHED:
            z_sum += tl.sum(tl.where(start + offsets < VOCAB, z - origin, 0.0), axis=1)

    out = terms + token * N_TERMS
    z_top, z_log, z_log_tempered = _merge(z_best, z_total, z_tempered, inverse_temperature, TEMPERED)
    nll = z_log - (z_label - z_top)
    ce = nll
    if SMOOTHED:
        ce = nll_weight * nll + eps_i * (VOCAB * (z_log - (origin - z_top)) - tl.sum(z_sum, axis=0))
    tl.store(out + CE, ce)
    tl.store(out + NLL, nll)

    kd, slope_total = zero, -1.0  # the forward KL's slope is -q; its value is summed on the way to the gradient
    if teacher is not None:
        t_top, t_log, t_log_tempered = _merge(t_best, t_total, t_tempered, inverse_temperature, TEMPERED)
        tl.store(out + TEACHER_NLL, t_log - (tl.load(t_row + label).to(tl.float32) - t_top))
        z_argmax = _argmax(z_row, z_top, z_best, z_first, VOCAB, LANES, VECTOR)
        t_argmax = _argmax(t_row, t_top, t_best, t_first, VOCAB, LANES, VECTOR)
        tl.store(out + AGREE, (z_argmax == t_argmax).to(tl.float32))
        if gradient is None or DIVERGENCE != "forward_kl":
            slopes = zero
            for start in range(0, VOCAB, LANES * VECTOR):
                z = _load(z_row, start + offsets, VOCAB, "evict_last")
                t = _load(t_row, start + offsets, VOCAB, "evict_last")
                z_lprobs = _lprobs(z, z_top, z_log_tempered, inverse_temperature, TEMPERED)
                t_lprobs = _lprobs(t, t_top, t_log_tempered, inverse_temperature, TEMPERED)
                value, slope = _divergence(z_lprobs, t_lprobs, parameter, DIVERGENCE)
                kd += tl.sum(value, axis=1)
                slopes += tl.sum(slope, axis=1)
            slope_total = tl.sum(slopes, axis=0)

    if gradient is not None:
        tl.debug_barrier()  # above, threads read entries that in place others overwrite below
        g_row = gradient + row * GRADIENT_STRIDE
        if scales is not None:  # as storage.scale_for
            if DIVERGENCE == "reverse_kl":
                # a divergence that does not count may be infinite
                bound += tl.where(kd_weight > 0.0, kd_weight * tl.maximum(tl.sum(kd, axis=0), 0.0), 0.0)
            scale = FP16_STEP * tl.exp2(-tl.maximum(tl.ceil(tl.log2(bound / FP16_SMALL)), 0.0))
            tl.store(scales + row, scale)
            ce_weight *= scale
            kd_weight *= scale
        for start in range(0, VOCAB, LANES * VECTOR):
            at = start + offsets
            z = _load(z_row, at, VOCAB, "evict_first")
            z_lprobs = _lprobs(z, z_top, z_log_tempered, inverse_temperature, TEMPERED)
            p_tempered = _exp(z_lprobs)
            p = _exp(z - z_top - z_log) if TEMPERED else p_tempered
            g = ce_weight * (p - tl.where(at == label, nll_weight + eps_i, eps_i))
            if teacher is not None:
                t = _load(t_row, at, VOCAB, "evict_first")
                t_lprobs = _lprobs(t, t_top, t_log_tempered, inverse_temperature, TEMPERED)
                value, slope = _divergence(z_lprobs, t_lprobs, parameter, DIVERGENCE)
                g += kd_weight * (slope - p_tempered * slope_total)
                if DIVERGENCE == "forward_kl":
                    kd += tl.sum(value, axis=1)
            # no cache holds the gradient until its next reader comes
            tl.store(g_row + at, g.to(gradient.dtype.element_ty), mask=at < VOCAB, eviction_policy="evict_first")

    if teacher is not None:
        kd_row = tl.sum(kd, axis=0)
        tl.store(out + KD, tl.where(kd_row < 0, 0.0, kd_row))  # a hair below 0 is rounding; NaN stays NaN
