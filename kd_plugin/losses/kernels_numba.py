"""The one-pass engine on CPUs: `one_pass` compiled by Numba, where that is installed (extra "cpu").

One thread takes one row at a time and runs over the vocabulary five or six times: the best entries, the softmaxes,
the divergence and its slope, the gradient. All that it works on (both rows, the exponentials, the slope) stays in the
core's own cache: 0.6 MB at a vocabulary of 32k in fp32.

What was chosen, and why:
* Small functions over small blocks of a row, indexed from 0: LLVM turns their loops into vector instructions. It does
  not where an index might be negative (numpy's wrap-around), where a sum mixes fp32 and float64, or in a reduction by
  maximum (a NaN might be lost); so maxima are kept in lanes.
* Sums may be reordered within a block (fastmath "reassoc"), blocks are added up in float64. The best entries, whose
  exponential is 1, are counted and not summed: small terms would lose their last bits beside them.
* exp and log are polynomials (Cephes, Moshier 1989), exact to 2 units in the last place, since LLVM has no vector
  form of its own; they must not be reordered. In float64, which only tests use, they are the C library's.
* Python threads, as many as PyTorch has, because the compiled code releases the interpreter's lock: unlike Numba's
  own pools they survive a fork and get along with PyTorch's OpenMP.
* Compiled code is kept on disk by Numba (`__pycache__` or NUMBA_CACHE_DIR), so that only a first run waits for it.
"""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Optional, Tuple

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

from kd_plugin.losses import definition, divergences
from kd_plugin.losses.sparse import BUCKET_DIVERGENCES, Knowledge, SparseAnswer

logging.getLogger("numba").setLevel(logging.WARNING)  # it tells the compiler's steps to whoever logs at DEBUG

CE, NLL, KD, TEACHER_NLL, AGREE = (getattr(definition, name) for name in ("CE", "NLL", "KD", "TEACHER_NLL", "AGREE"))
DIVERGENCES = ("forward_kl", "reverse_kl", "js", "skew_forward_kl", "skew_reverse_kl", "tvd", "adaptive_kl")
FORWARD_KL, REVERSE_KL, JS, SKEW_FORWARD_KL, SKEW_REVERSE_KL, TVD, ADAPTIVE_KL = range(len(DIVERGENCES))
BLOCK, LANES = 2048, 64  # entries of a row
MIN_ENTRIES = 2**20  # of a thread; PyTorch's own threads, which wait busily, slow down what is shorter

# typed constants: with Python's own, fp32 would become float64
ZERO, QUARTER, HALF, ONE = (np.float32(x) for x in (0.0, 0.25, 0.5, 1.0))
MASKED_LPROB, TINY = np.float32(divergences.MASKED_LPROB), np.finfo(np.float32).tiny
LOWEST_EXP = np.float32(-87.3)  # exp of anything below is no normal number, and counts as 0

exact = numba.njit(fastmath={"contract"}, cache=True)
reordered = numba.njit(
    fastmath={"reassoc", "nsz"}, cache=True
)  # not "contract": p - q has to be 0 where they are equal


def supports(student_logits: Tensor, teacher_logits: Knowledge, objective: definition.Objective) -> bool:
    """Whether `one_pass` here takes such logits and knows the objective."""
    if numba.config.DISABLE_JIT:
        return False
    if teacher_logits is not None and (objective.divergence not in DIVERGENCES or objective.top1_rank > 0):
        return False
    if isinstance(teacher_logits, SparseAnswer):
        if objective.divergence not in BUCKET_DIVERGENCES:
            return False
        teacher_logits = None if teacher_logits.dtype == torch.float32 else teacher_logits.lprobs
    dtypes = {logits.dtype for logits in (student_logits, teacher_logits) if logits is not None}
    # half precision is left to PyTorch, which converts and computes faster than it could be converted for this
    return (dtypes == {torch.float32} or dtypes == {torch.float64}) and all(
        logits.device.type == "cpu" and logits.dim() == 2 and logits.is_contiguous()
        for logits in (student_logits, teacher_logits)
        if logits is not None
    )


def one_pass(
    student_logits: Tensor,
    teacher_logits: Knowledge,
    target: Tensor,
    objective: definition.Objective,
    *,
    rows: Optional[Tensor] = None,
    teacher_rows: Optional[Tensor] = None,
    gradient: Optional[Tensor] = None,
) -> Tensor:
    """As kd_plugin.losses.one_pass.one_pass, for what `supports` agrees to.

    gradient: contiguous too, of the student's dtype
    """
    student_logits = student_logits.detach()
    dtype = definition.accumulation_dtype(student_logits, teacher_logits)
    n_rows, vocab = target.numel(), student_logits.size(1)
    terms = torch.zeros(n_rows, definition.N_TERMS, dtype=dtype)
    if rows is None:
        rows = torch.arange(n_rows)
    if teacher_rows is None:
        teacher_rows = torch.arange(n_rows)

    def share(start: int, stop: int) -> None:
        part = slice(start, stop)
        teacher, teacher_part = teacher_logits, teacher_rows[part]
        if isinstance(teacher, SparseAnswer):
            teacher, teacher_part = teacher.chunk(start, stop), teacher_rows[: stop - start]
        _run(student_logits, rows[part], teacher, teacher_part, target[part], objective, gradient, terms[part])

    _in_threads(share, n_rows, vocab)
    return terms


def top_entries(logits: Tensor, k: int, temperature: float = 1.0) -> Tuple[Tensor, Tensor, Tensor]:
    """The k best entries of softmax(logits / temperature), best first, and the rest.

    Args:
        logits: (tokens, vocab) fp32 or float64 on a CPU, contiguous; vocab >= 2 k

    Returns:
        (tokens, k) int64 ids; (tokens, k) their log-probabilities; (tokens,) the logarithm of all others' mass
    """
    n_rows, vocab = logits.shape
    ids = torch.empty(n_rows, k, dtype=torch.long)
    lprobs, log_rest = torch.empty(n_rows, k, dtype=logits.dtype), torch.empty(n_rows, dtype=logits.dtype)
    arrays = [tensor.detach().numpy() for tensor in (logits, ids, lprobs, log_rest)]
    inverse_temperature = arrays[0].dtype.type(1.0 / temperature)
    # the best k lie in the k groups with the best maxima; group i has every n_groups-th entry, from the i-th on
    n_groups = max(k, min(vocab // 2, 1024))

    def share(start: int, stop: int) -> None:
        _top_rows(*(array[start:stop] for array in arrays), inverse_temperature, n_groups)

    _in_threads(share, n_rows, vocab)
    return ids, lprobs, log_rest


def _in_threads(share: Callable[[int, int], None], n_rows: int, vocab: int) -> None:
    """share(start, stop) of all rows, as many at the same time as pay."""
    threads = max(1, min(torch.get_num_threads(), n_rows * vocab // MIN_ENTRIES, n_rows))
    bounds = [n_rows * i // threads for i in range(threads + 1)]
    if threads == 1:
        share(0, n_rows)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, bounds[:-1], bounds[1:]))


def _run(
    student: Tensor,
    rows: Tensor,
    teacher: Knowledge,
    teacher_rows: Tensor,
    target: Tensor,
    objective: definition.Objective,
    gradient: Optional[Tensor],
    terms: Tensor,
) -> None:
    """The compiled code on some rows."""
    vocab = student.size(1)
    alpha, temperature, eps = objective.alpha, objective.temperature, objective.label_smoothing
    eps_i = eps / (vocab - 1) if eps > 0 else 0.0
    divergence, parameter = 0, 0.0
    if teacher is not None:
        divergence = DIVERGENCES.index(objective.divergence)
        parameter = float(next(iter(objective.divergence_parameters().values()), 0.0))
    real = student.numpy().dtype.type
    student_side = (student.numpy(), rows.contiguous().numpy())
    outcome = (
        target.contiguous().numpy(),
        (student if gradient is None else gradient.detach()).numpy(),
        terms.numpy(),
        gradient is not None,
        divergence,
        *(real(x) for x in (alpha, (1.0 - alpha) * temperature, 1.0 / temperature)),
        *(real(x) for x in (1.0 - eps - eps_i, eps_i, parameter)),
    )
    if isinstance(teacher, SparseAnswer):
        answer = teacher.take(teacher_rows)
        floats = (x.to(student.dtype).contiguous().numpy() for x in (answer.lprobs, answer.log_rest))
        _sparse_rows(*student_side, answer.ids.contiguous().numpy(), *floats, answer.sampled, *outcome)
    else:
        logits = student if teacher is None else teacher.detach()
        teacher_side = (logits.numpy(), teacher_rows.contiguous().numpy(), teacher is not None)
        _rows(*student_side, *teacher_side, *outcome)


def _exp(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0."""
    raise NotImplementedError


def _log(x):  # type: ignore[no-untyped-def]
    """log(x) for a normal x > 0."""
    raise NotImplementedError


def _exp32(x):  # type: ignore[no-untyped-def]
    n = np.floor(x * np.float32(1.44269504) + HALF)
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # log 2 in two parts
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * (r * r) + r + ONE
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return ZERO if x < LOWEST_EXP else y * power


def _log32(x):  # type: ignore[no-untyped-def]
    bits = np.float32(x).view(np.int32)
    n = np.float32(np.int32((bits >> np.int32(23)) - np.int32(126)))
    mantissa = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F000000)).view(np.float32)
    small = mantissa < np.float32(0.70710678)
    n = n - ONE if small else n
    r = (mantissa + mantissa if small else mantissa) - ONE
    y = np.float32(7.0376836292e-2)
    y = y * r + np.float32(-1.1514610310e-1)
    y = y * r + np.float32(1.1676998740e-1)
    y = y * r + np.float32(-1.2420140846e-1)
    y = y * r + np.float32(1.4249322787e-1)
    y = y * r + np.float32(-1.6668057665e-1)
    y = y * r + np.float32(2.0000714765e-1)
    y = y * r + np.float32(-2.4999993993e-1)
    y = y * r + np.float32(3.3333331174e-1)
    square = r * r
    y = y * r * square + n * np.float32(-2.12194440e-4) - HALF * square
    return ZERO * x + (r + y + n * np.float32(0.693359375))  # a NaN stays one


@overload(_exp, jit_options={"fastmath": {"contract"}})
def _exp_of(x):  # type: ignore[no-untyped-def]
    return _exp32 if x == numba.types.float32 else lambda x: math.exp(x)


@overload(_log, jit_options={"fastmath": {"contract"}})
def _log_of(x):  # type: ignore[no-untyped-def]
    return _log32 if x == numba.types.float32 else lambda x: math.log(x)


# Each entry's share of the divergence, and its slope with respect to log p, as in divergences.py. Where a probability
# is 0 its logarithm may be infinite. `== 0` and not `> 0`, so that a NaN stays seen. rest is 1 - weight.


@exact
def _forward_kl(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    return (ZERO if q == ZERO else q * (log_q - log_p)), -q


@exact
def _reverse_kl(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    floor = MASKED_LPROB if log_q == -np.inf else log_q
    value = ZERO if p == ZERO else p * (log_p - floor)
    return value, value


@exact
def _against_mixture(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    """q log(q / m), p log(p / m) and m = weight q + rest p, above 0 so that its logarithm is finite."""
    mixture = weight * q + rest * p
    mixture = TINY if mixture < TINY else mixture
    log_mixture = _log(mixture)
    of_teacher = ZERO if q == ZERO else q * (log_q - log_mixture)
    of_student = ZERO if p == ZERO else p * (log_p - log_mixture)
    return of_teacher, of_student, mixture


@exact
def _js(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    of_teacher, of_student, _ = _against_mixture(p, q, log_p, log_q, weight, rest)
    slope = rest * of_student
    return weight * of_teacher + slope, slope


@exact
def _skew_forward_kl(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    of_teacher, _, mixture = _against_mixture(p, q, log_p, log_q, weight, rest)
    return of_teacher, -rest * q * (p / mixture)


@exact
def _skew_reverse_kl(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    _, of_student, mixture = _against_mixture(p, q, log_p, log_q, rest, weight)
    return of_student, of_student - weight * p * (p / mixture)


@exact
def _tvd(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    gap = p - q
    half = HALF * p
    return HALF * abs(gap), (half if gap > ZERO else (-half if gap < ZERO else ZERO * gap))


@exact
def _adaptive_kl(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    forward, slope = _forward_kl(p, q, log_p, log_q, weight, rest)
    reverse, reverse_slope = _reverse_kl(p, q, log_p, log_q, weight, rest)
    return weight * forward + rest * reverse, weight * slope + rest * reverse_slope


# Passes over a row. Those named `_block_…` see one block, so that a sum is short.


@reordered
def _block_maxima(block, lanes):  # type: ignore[no-untyped-def]
    for i in range(lanes.size):
        lanes[i] = block[i] if block[i] > lanes[i] else lanes[i]


@reordered
def _block_has(block, value):  # type: ignore[no-untyped-def]
    found = False
    for entry in block:
        found |= entry == value
    return found


@exact
def _argmax(row, lanes):  # type: ignore[no-untyped-def]
    """The first index of the maximum; any index where there is a NaN."""
    whole = row.size - row.size % LANES
    best = row[0]
    if whole > 0:
        for i in range(lanes.size):
            lanes[i] = row[i]
        for start in range(LANES, whole, LANES):
            _block_maxima(row[start : start + LANES], lanes)
        for entry in lanes:
            best = entry if entry > best else best
    for entry in row[whole:]:
        best = entry if entry > best else best
    start = 0
    while start < whole and not _block_has(row[start : start + LANES], best):
        start += LANES
    for index in range(start, row.size):
        if row[index] == best:
            return index
    return 0


@reordered
def _block_softmax(block, best, inverse_temperature, exps):  # type: ignore[no-untyped-def]
    total, ties, centred_sum = ZERO * best, ZERO * best, ZERO * best
    for i in range(exps.size):
        centred = (block[i] - best) * inverse_temperature
        entry = _exp(centred)
        exps[i] = entry
        tie = ONE if centred == ZERO else ZERO  # entry is then 1; two conditions would be one branch, and no vector
        total += entry - tie
        ties += tie
        centred_sum += centred
    return total, ties, centred_sum


@exact
def _softmax(row, best, inverse_temperature, exps):  # type: ignore[no-untyped-def]
    """exps = exp(centred), with centred = (row - best) / temperature; their sum and the sum of centred, in float64."""
    total, centred_sum = 0.0, 0.0
    for start in range(0, row.size, BLOCK):
        stop = start + BLOCK
        small, ties, centred = _block_softmax(row[start:stop], best, inverse_temperature, exps[start:stop])
        total += np.float64(small) + np.float64(ties)
        centred_sum += np.float64(centred)
    return total, centred_sum


def _summed(share):  # type: ignore[no-untyped-def]
    """A row's divergence from each entry's share of it.

    Compiled for each of them, since Numba cannot keep code on disk that is given functions as arguments.
    """

    @reordered
    def block_divergence(student, exps, z_scalars, teacher, slope, t_scalars, shape):  # type: ignore[no-untyped-def]
        z_best, z_norm, z_log = z_scalars
        t_best, t_norm, t_log = t_scalars
        inverse_temperature, weight, rest = shape
        value, slope_sum = ZERO * weight, ZERO * weight
        for i in range(slope.size):
            p, q = exps[i] * z_norm, slope[i] * t_norm
            log_p = (student[i] - z_best) * inverse_temperature - z_log
            log_q = (teacher[i] - t_best) * inverse_temperature - t_log
            of_entry, slope_of_entry = share(p, q, log_p, log_q, weight, rest)
            slope[i] = slope_of_entry
            value += of_entry
            slope_sum += slope_of_entry
        return value, slope_sum

    @exact
    def divergence(student_side, teacher_side, shape):  # type: ignore[no-untyped-def]
        """The divergence and the sum of its slope, in float64.

        Of either side: logits, exponentials, best logit, 1 / total, log total. The slope replaces the teacher's
        exponentials.
        """
        z, exps, z_best, z_norm, z_log = student_side
        t, slope, t_best, t_norm, t_log = teacher_side
        z_scalars, t_scalars = (z_best, z_norm, z_log), (t_best, t_norm, t_log)
        value, slope_sum = 0.0, 0.0
        for start in range(0, z.size, BLOCK):
            part = slice(start, start + BLOCK)
            of_block, slope_of_block = block_divergence(
                z[part], exps[part], z_scalars, t[part], slope[part], t_scalars, shape
            )
            value += np.float64(of_block)
            slope_sum += np.float64(slope_of_block)
        return value, slope_sum

    return divergence


_forward_kl_of_row, _reverse_kl_of_row, _js_of_row = _summed(_forward_kl), _summed(_reverse_kl), _summed(_js)
_skew_forward_kl_of_row, _skew_reverse_kl_of_row = _summed(_skew_forward_kl), _summed(_skew_reverse_kl)
_tvd_of_row, _adaptive_kl_of_row = _summed(_tvd), _summed(_adaptive_kl)


@reordered
def _block_mass(exps, cut):  # type: ignore[no-untyped-def]
    mass = ZERO * cut
    for i in range(exps.size):
        mass += exps[i] if exps[i] >= cut else ZERO
    return mass


@reordered
def _block_gap(exps, z_norm, teacher_exps, t_norm, threshold):  # type: ignore[no-untyped-def]
    head, total = ZERO * threshold, ZERO * threshold
    for i in range(exps.size):
        gap = abs(teacher_exps[i] * t_norm - exps[i] * z_norm)
        total += gap
        head += gap if teacher_exps[i] >= threshold else ZERO
    return head, total


@exact
def _mass(exps, cut):  # type: ignore[no-untyped-def]
    """Sum of the entries from cut on, in float64."""
    mass = 0.0
    for start in range(0, exps.size, BLOCK):
        mass += np.float64(_block_mass(exps[start : start + BLOCK], cut))
    return mass


@exact
def _head_weight(exps, z_norm, teacher_exps, t_norm, adaptive_mu):  # type: ignore[no-untyped-def]
    """As divergences.head_weight, for one row."""
    # a cut where what lies above fits into mu, and one where it does not, until there is no number between them
    fits = lower = adaptive_mu * ZERO + ONE
    above, mass = 0.0, _mass(teacher_exps, lower)
    while mass * t_norm <= adaptive_mu and lower > ZERO:
        above, fits, lower = mass, lower, lower * QUARTER
        mass = _mass(teacher_exps, lower)
    middle = HALF * (lower + fits)
    while ZERO < lower < middle < fits:
        mass = _mass(teacher_exps, middle)
        if mass * t_norm <= adaptive_mu:
            above, fits = mass, middle
        else:
            lower = middle
        middle = HALF * (lower + fits)
    # entries that equal `lower` all belong to the head if one of them still fits
    threshold = lower if (above + lower) * t_norm <= adaptive_mu else fits
    head, total = 0.0, 0.0
    for start in range(0, exps.size, BLOCK):
        stop = start + BLOCK
        head_of_block, of_block = _block_gap(exps[start:stop], z_norm, teacher_exps[start:stop], t_norm, threshold)
        head += np.float64(head_of_block)
        total += np.float64(of_block)
    return 0.5 if total == 0.0 else head / total


@reordered
def _block_gradient(slope_part, part, plain_part, constant, gradient):  # type: ignore[no-untyped-def]
    """gradient = the sum of (entries, factor) less a constant."""
    slope, slope_weight = slope_part
    exps, norm = part
    plain_exps, plain_norm = plain_part
    for i in range(gradient.size):
        gradient[i] = slope_weight * slope[i] + norm * exps[i] + plain_norm * plain_exps[i] - constant


@exact
def _cross_entropy(z, label, nll_weight, eps_i, lanes, exps, out):  # type: ignore[no-untyped-def]
    """Two terms of a row, and its softmax: index of the best entry, exps = exp(z - best), their sum in float64."""
    argmax = _argmax(z, lanes)
    best = z[argmax]
    total, centred_sum = _softmax(z, best, nll_weight * ZERO + ONE, exps)
    log_total = math.log(total)
    nll = log_total - np.float64(z[label] - best)
    out[NLL] = nll
    out[CE] = nll
    if eps_i > ZERO:
        out[CE] = nll_weight * nll + eps_i * (z.size * log_total - centred_sum)
    return argmax, total


@exact
def _write_gradient(gradient, label, slope_part, part, plain_part, ce_weight, nll_weight, eps_i):  # type: ignore[no-untyped-def]
    """gradient = the sum of (entries, factor), less the smoothed one-hot target's share."""
    slope, slope_weight = slope_part
    exps, norm = part
    plain_exps, plain_norm = plain_part
    for start in range(0, gradient.size, BLOCK):
        stop = start + BLOCK
        _block_gradient(
            (slope[start:stop], slope_weight),
            (exps[start:stop], norm),
            (plain_exps[start:stop], plain_norm),
            ce_weight * eps_i,
            gradient[start:stop],
        )
    gradient[label] -= ce_weight * nll_weight


@numba.njit(nogil=True, cache=True)
def _rows(  # type: ignore[no-untyped-def]
    student,  # (all, vocab)
    rows,  # (tokens,)
    teacher,  # (any, vocab)
    teacher_rows,  # (tokens,)
    distilled,  # whether teacher counts
    target,  # (tokens,)
    gradient,  # (all, vocab); may be the student
    terms,  # (tokens, N_TERMS), zeros
    want_gradient,  # whether gradient counts
    divergence,  # its number
    ce_weight,  # alpha
    kd_weight,  # (1 - alpha) temperature
    inverse_temperature,
    nll_weight,  # 1 - eps - eps_i
    eps_i,
    parameter,  # of the divergence
):
    vocab = student.shape[1]
    real = student.dtype.type  # sums are float64, what vectors are made with must not be
    lanes = np.empty(LANES, student.dtype)
    plain_exps = np.empty(vocab, student.dtype)
    slope = np.empty(vocab, student.dtype)
    tempered = distilled and inverse_temperature != ONE
    exps = np.empty(vocab, student.dtype) if tempered else plain_exps
    for token in range(rows.size):
        z, out, label = student[rows[token]], terms[token], target[token]
        z_argmax, plain_total = _cross_entropy(z, label, nll_weight, eps_i, lanes, plain_exps, out)
        z_best = z[z_argmax]
        slope_weight, norm = real(0.0), real(0.0)
        if distilled:
            t = teacher[teacher_rows[token]]
            t_argmax = _argmax(t, lanes)
            t_best = t[t_argmax]
            total, t_total = plain_total, _softmax(t, t_best, real(1.0), slope)[0]
            out[TEACHER_NLL] = math.log(t_total) - np.float64(t[label] - t_best)
            out[AGREE] = z_argmax == t_argmax
            if tempered:
                total = _softmax(z, z_best, inverse_temperature, exps)[0]
                t_total = _softmax(t, t_best, inverse_temperature, slope)[0]
            weight = parameter
            if divergence == ADAPTIVE_KL:
                weight = real(_head_weight(exps, real(1.0 / total), slope, 1.0 / t_total, parameter))
            student_side = (z, exps, z_best, real(1.0 / total), real(math.log(total)))
            teacher_side = (t, slope, t_best, real(1.0 / t_total), real(math.log(t_total)))
            shape = (inverse_temperature, weight, ONE - weight)
            if divergence == FORWARD_KL:
                kd, slope_sum = _forward_kl_of_row(student_side, teacher_side, shape)
            elif divergence == REVERSE_KL:
                kd, slope_sum = _reverse_kl_of_row(student_side, teacher_side, shape)
            elif divergence == JS:
                kd, slope_sum = _js_of_row(student_side, teacher_side, shape)
            elif divergence == SKEW_FORWARD_KL:
                kd, slope_sum = _skew_forward_kl_of_row(student_side, teacher_side, shape)
            elif divergence == SKEW_REVERSE_KL:
                kd, slope_sum = _skew_reverse_kl_of_row(student_side, teacher_side, shape)
            elif divergence == TVD:
                kd, slope_sum = _tvd_of_row(student_side, teacher_side, shape)
            else:
                kd, slope_sum = _adaptive_kl_of_row(student_side, teacher_side, shape)
            out[KD] = 0.0 if kd < 0.0 else kd  # a hair below 0 is rounding; NaN stays NaN
            slope_weight, norm = kd_weight, real(-kd_weight * slope_sum / total)
        if want_gradient:
            # d/d(logits / temperature) = slope - p sum(slope), and the softmax of the cross-entropy
            parts = (slope, slope_weight), (exps, norm), (plain_exps, real(ce_weight / plain_total))
            _write_gradient(gradient[rows[token]], label, *parts, ce_weight, nll_weight, eps_i)


@reordered
def _block_sum(entries):  # type: ignore[no-untyped-def]
    total = ZERO * entries[0]
    for i in range(entries.size):
        total += entries[i]
    return total


@exact
def _sparse_share(divergence, p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    if divergence == FORWARD_KL:
        return _forward_kl(p, q, log_p, log_q, weight, rest)
    if divergence == REVERSE_KL:
        return _reverse_kl(p, q, log_p, log_q, weight, rest)
    if divergence == JS:
        return _js(p, q, log_p, log_q, weight, rest)
    return _tvd(p, q, log_p, log_q, weight, rest)


@numba.njit(nogil=True, cache=True)
def _sparse_rows(  # type: ignore[no-untyped-def]
    student,  # (all, vocab)
    rows,  # (tokens,)
    ids,  # (tokens, k)
    lprobs,  # (tokens, k)
    log_rest,  # (tokens,)
    sampled,  # whether they are draws
    target,  # and so on, as in _rows
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
    """As one_pass._sparse, whose comments hold here too."""
    vocab, k = student.shape[1], ids.shape[1]
    real = student.dtype.type
    lanes = np.empty(LANES, student.dtype)
    plain_exps = np.empty(vocab, student.dtype)
    tempered = inverse_temperature != ONE
    exps = np.empty(vocab, student.dtype) if tempered else plain_exps
    slopes, entries = np.empty(k, student.dtype), np.empty(k, student.dtype)
    other = ONE - parameter
    for token in range(rows.size):
        z, out, label = student[rows[token]], terms[token], target[token]
        argmax, plain_total = _cross_entropy(z, label, nll_weight, eps_i, lanes, plain_exps, out)
        best, total = z[argmax], plain_total
        if tempered:
            total = _softmax(z, best, inverse_temperature, exps)[0]
        norm, log_total = real(1.0 / total), real(math.log(total))
        kd, slope_sum, of_rest = 0.0, 0.0, real(0.0)
        for i in range(k):
            entries[i] = exps[ids[token, i]]
        if sampled:
            for i in range(k):
                log_p = (z[ids[token, i]] - best) * inverse_temperature - log_total
                kd += np.float64(lprobs[token, i] - log_p) / k
                slopes[i] = real(-1.0 / k)
            slope_sum = -1.0
        else:
            for i in range(k):
                log_p = (z[ids[token, i]] - best) * inverse_temperature - log_total
                log_q = lprobs[token, i]
                value, slope = _sparse_share(divergence, entries[i] * norm, _exp(log_q), log_p, log_q, parameter, other)
                slopes[i] = slope
                kd += np.float64(value)
                slope_sum += np.float64(slope)
            for i in range(k):
                exps[ids[token, i]] = real(0.0)
            mass = 0.0
            for start in range(0, vocab, BLOCK):
                mass += np.float64(_block_sum(exps[start : start + BLOCK]))
            log_p = MASKED_LPROB + real(0.0)
            if mass != 0.0:
                log_p = real(math.log(mass)) - log_total
                log_p = MASKED_LPROB if log_p < MASKED_LPROB else log_p
            log_q = log_rest[token]
            value, slope = _sparse_share(divergence, real(mass / total), _exp(log_q), log_p, log_q, parameter, other)
            kd += np.float64(value)
            slope_sum += np.float64(slope)
            of_rest = real(slope / mass) if mass != 0.0 else of_rest
            kd = 0.0 if kd < 0.0 else kd
        out[KD] = kd
        out[AGREE] = argmax == ids[token, 0]
        if want_gradient:
            g = gradient[rows[token]]
            factor = real(kd_weight * (of_rest - slope_sum / total))
            parts = (exps, real(0.0)), (exps, factor), (plain_exps, real(ce_weight / plain_total))
            _write_gradient(g, label, *parts, ce_weight, nll_weight, eps_i)
            for i in range(k):
                share = kd_weight * slopes[i]
                if not sampled:
                    share -= real(kd_weight * slope_sum) * entries[i] * norm
                    if not tempered:
                        share += ce_weight * entries[i] * norm
                g[ids[token, i]] += share


@exact
def _insert(value, index, values, indices, count):  # type: ignore[no-untyped-def]
    """Into the first `count` of descending values, the last of which falls out where all places are taken."""
    at = min(count, values.size - 1)
    while at > 0 and values[at - 1] < value:
        values[at] = values[at - 1]
        indices[at] = indices[at - 1]
        at -= 1
    values[at] = value
    indices[at] = index


@numba.njit(nogil=True, cache=True)
def _top_rows(logits, ids, lprobs, log_rest, inverse_temperature, n_groups):  # type: ignore[no-untyped-def]
    vocab, k = logits.shape[1], ids.shape[1]
    maxima = np.empty(n_groups, logits.dtype)
    exps = np.empty(vocab, logits.dtype)
    values, groups = np.empty(k, logits.dtype), np.empty(k, np.int64)
    whole = vocab - vocab % n_groups
    for token in range(logits.shape[0]):
        row = logits[token]
        for i in range(n_groups):
            maxima[i] = row[i]
        for start in range(n_groups, whole, n_groups):
            _block_maxima(row[start : start + n_groups], maxima)
        for i in range(whole, vocab):
            maxima[i - whole] = max(maxima[i - whole], row[i])
        for i in range(n_groups):
            if i < k or maxima[i] > values[k - 1]:
                _insert(maxima[i], i, values, groups, i)
        chosen = np.sort(groups)
        count = 0
        for start in range(0, vocab, n_groups):
            for group in chosen:
                i = start + group
                if i < vocab and (count < k or row[i] > values[k - 1]):
                    _insert(row[i], i, values, ids[token], count)
                    count += 1
        total, _ = _softmax(row, values[0], inverse_temperature, exps)
        for i in range(k):
            exps[ids[token, i]] = 0
        rest = 0.0
        for start in range(0, vocab, BLOCK):
            rest += np.float64(_block_sum(exps[start : start + BLOCK]))
        log_total = math.log(total)
        for i in range(k):
            lprobs[token, i] = (values[i] - values[0]) * inverse_temperature - log_total
        log_rest[token] = math.log(rest) - log_total if rest > 0.0 else -np.inf
