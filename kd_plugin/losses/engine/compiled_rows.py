"""The one-pass engine's work on single rows, compiled by Numba for CPUs; kernels_numba.py is the entry point.

A row's whole working set (its logits, the teacher's, the exponentials, the slope) stays in the core's own cache: 0.6 MB
for a vocabulary of 32k in fp32. It takes five or six passes: best entries, softmaxes, divergence and slope, gradient.

Design decisions:
* Small functions over small blocks of a row, indexed from 0, so that LLVM vectorises their loops. It does not if an
  index might be negative (numpy's wrap-around), if a sum mixes fp32 and float64, if two sums share a condition, or for
  a maximum of floats (which might lose a NaN): maxima therefore compare integers.
* Sums within a block may be reordered (fastmath "reassoc"); blocks are added in float64. The best entries, whose
  exponential is 1, are counted rather than summed: beside them, small terms would lose their last bits.
* exp and log are polynomials (Cephes, Moshier 1989), accurate to 2 units in the last place, because LLVM has no vector
  form of its own; they must not be reordered. In float64, which only tests use, they are the C library's.
* A single file: Numba's cache on disk notices changes to the file that holds the code, not to others.
"""

import math

import numba
import numpy as np
from numba.extending import overload

from kd_plugin.losses import definition, divergences

CE, NLL, KD, RANK, TEACHER_NLL, AGREE = range(definition.N_TERMS)
DIVERGENCES = ("forward_kl", "reverse_kl", "js", "skew_forward_kl", "skew_reverse_kl", "tvd", "adaptive_kl")
FORWARD_KL, REVERSE_KL, JS, SKEW_FORWARD_KL, SKEW_REVERSE_KL, TVD, ADAPTIVE_KL = range(len(DIVERGENCES))
BLOCK = 2048  # entries of a row

# typed constants: Python floats would promote fp32 to float64
ZERO, QUARTER, HALF, ONE = (np.float32(x) for x in (0.0, 0.25, 0.5, 1.0))
MASKED_LPROB, TINY = np.float32(divergences.MASKED_LPROB), np.finfo(np.float32).tiny
ROUNDER = np.float32(12582912.0)
# If a bucket's mass, relative to the row's best entry, is below this, it is summed relative to the bucket's own best
# entry instead. The limit is 2^24 times what 2^32 symbols can lose to underflow.
SMALL_MASS = 2.0**-70
LOWEST_EXP = np.float32(-87.3)  # below it exp is subnormal and counts as 0

exact = numba.njit(fastmath={"contract"}, cache=True)
# without "contract": p - q must be exactly 0 where they are equal
reordered = numba.njit(fastmath={"reassoc", "nsz"}, cache=True)


def _exp(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0. Only a name: Numba compiles what _exp_of returns for the type. So for the next two."""
    raise NotImplementedError


def _log(x):  # type: ignore[no-untyped-def]
    """log(x) for a normal x > 0."""
    raise NotImplementedError


def _key(x):  # type: ignore[no-untyped-def]
    """An integer that orders as x does, because LLVM vectorises a maximum of integers but not of floats.

    -0 sorts before 0. A NaN may sort first or last; it still shows up in the sums.
    """
    raise NotImplementedError


def _exp32(x):  # type: ignore[no-untyped-def]
    # adding 1.5 * 2^23 rounds a float to an integer, which then sits in the last bits
    shifted = x * np.float32(1.44269504) + ROUNDER
    n = shifted - ROUNDER
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # log 2 in two parts
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * (r * r) + r + ONE
    exponent = np.float32(shifted).view(np.int32) << np.int32(23)
    y = np.int32(np.float32(y).view(np.int32) + exponent).view(np.float32)
    return ZERO if x < LOWEST_EXP else y


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


def _key32(x):  # type: ignore[no-untyped-def]
    bits = np.float32(x).view(np.int32)
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@overload(_exp, jit_options={"fastmath": {"contract"}})
def _exp_of(x):  # type: ignore[no-untyped-def]
    return _exp32 if x == numba.types.float32 else lambda x: math.exp(x)


@overload(_log, jit_options={"fastmath": {"contract"}})
def _log_of(x):  # type: ignore[no-untyped-def]
    return _log32 if x == numba.types.float32 else lambda x: math.log(x)


@overload(_key)
def _key_of(x):  # type: ignore[no-untyped-def]
    return _key32 if x == numba.types.float32 else lambda x: x


# Each entry's share of the divergence, and its slope with respect to log p, as in divergences.py. If a probability
# is 0, its logarithm may be infinite. Conditions use `== 0`, not `> 0`, so that NaN is not hidden. rest is 1 - weight.


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


# Passes over a row. Functions named `_block_…` see one block, which keeps their sums short.


@reordered
def _block_maxima(block, lanes):  # type: ignore[no-untyped-def]
    for i in range(lanes.size):
        lanes[i] = block[i] if block[i] > lanes[i] else lanes[i]


@exact
def _block_best(block):  # type: ignore[no-untyped-def]
    best = _key(block[0])
    for i in range(block.size):
        key = _key(block[i])
        best = key if key > best else best
    return best


@exact
def _argmax(row):  # type: ignore[no-untyped-def]
    """The first index of the maximum; any index if there is a NaN."""
    best, best_start = _block_best(row[:BLOCK]), 0
    for start in range(BLOCK, row.size, BLOCK):
        of_block = _block_best(row[start : start + BLOCK])
        if of_block > best:
            best, best_start = of_block, start
    for index in range(best_start, min(best_start + BLOCK, row.size)):
        if _key(row[index]) == best:
            return index
    return 0


@reordered
def _block_softmax(block, best, inverse_temperature, exps):  # type: ignore[no-untyped-def]
    total, ties, centred_sum = ZERO * best, ZERO * best, ZERO * best
    for i in range(exps.size):
        centred = (block[i] - best) * inverse_temperature
        entry = _exp(centred)
        exps[i] = entry
        tie = ONE if centred == ZERO else ZERO  # entry is then 1; a second condition would prevent vectorisation
        total += entry - tie
        ties += tie
        centred_sum += centred
    return total, ties, centred_sum


@exact
def _softmax(row, best, inverse_temperature, exps):  # type: ignore[no-untyped-def]
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
        entry = _exp(centred)
        exps[i] = entry
        tie = ONE if centred == ZERO else ZERO
        total += entry - tie
        ties += tie
        cross += ZERO if entry == ZERO else entry * gap
    return total, ties, cross


@exact
def _cross(t, t_best, z, z_best, inverse_temperature, exps):  # type: ignore[no-untyped-def]
    """_softmax of the teacher's row and, in the same pass, cross = sum exps (its centred - the student's).

    The forward KL is cross / total plus the difference of the two log totals.
    """
    total, cross = 0.0, 0.0
    for start in range(0, t.size, BLOCK):
        part = slice(start, start + BLOCK)
        small, ties, of_block = _block_cross(t[part], t_best, z[part], z_best, inverse_temperature, exps[part])
        total += np.float64(small) + np.float64(ties)
        cross += np.float64(of_block)
    return total, cross


def _summed(share):  # type: ignore[no-untyped-def]
    """A function for a row's divergence, given the function for an entry's share of it.

    Each divergence gets its own compilation: Numba cannot cache code that takes functions as arguments.
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

        A side is (logits, exponentials, best logit, 1 / total, log total). The slope overwrites the teacher's
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


_reverse_kl_of_row, _js_of_row = _summed(_reverse_kl), _summed(_js)
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
    """Sum of the entries >= cut, in float64."""
    mass = 0.0
    for start in range(0, exps.size, BLOCK):
        mass += np.float64(_block_mass(exps[start : start + BLOCK], cut))
    return mass


@exact
def _head_weight(exps, z_norm, teacher_exps, t_norm, adaptive_mu):  # type: ignore[no-untyped-def]
    """As divergences.head_weight, for one row."""
    # bisection between a cut whose mass fits into mu and one whose mass does not, until no number lies between them
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
    # entries equal to `lower` all belong to the head if one of them still fits
    threshold = lower if (above + lower) * t_norm <= adaptive_mu else fits
    head, total = 0.0, 0.0
    for start in range(0, exps.size, BLOCK):
        stop = start + BLOCK
        head_of_block, of_block = _block_gap(exps[start:stop], z_norm, teacher_exps[start:stop], t_norm, threshold)
        head += np.float64(head_of_block)
        total += np.float64(of_block)
    return 0.5 if total == 0.0 else head / total


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
def _cross_entropy(z, label, nll_weight, eps_i, exps, out):  # type: ignore[no-untyped-def]
    """Writes NLL and CE of a row, and exps = exp(z - best). Returns the best entry's index and sum exps in float64."""
    argmax = _argmax(z)
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
def _write_gradient(gradient, label, parts, of_three, ce_weight, nll_weight, eps_i):  # type: ignore[no-untyped-def]
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


@numba.njit(nogil=True, cache=True)
def dense_rows(  # type: ignore[no-untyped-def]
    student,  # (all, vocab)
    rows,  # (tokens,)
    teacher,  # (any, vocab)
    teacher_rows,  # (tokens,)
    distilled,  # whether to use the teacher
    target,  # (tokens,)
    gradient,  # (all, vocab); may be the student
    terms,  # (tokens, N_TERMS), zeros except for the ranking term, which the caller has filled in
    want_gradient,  # whether to write the gradient
    divergence,  # its index in DIVERGENCES
    ce_weight,  # alpha
    kd_weight,  # (1 - alpha) temperature
    inverse_temperature,
    nll_weight,  # 1 - eps - eps_i
    eps_i,
    parameter,  # of the divergence
):
    vocab = student.shape[1]
    real = student.dtype.type  # sums are float64, but factors in vectorised loops must have the row's dtype
    plain_exps = np.empty(vocab, student.dtype)
    slope = np.empty(vocab, student.dtype)
    tempered = distilled and inverse_temperature != ONE
    exps = np.empty(vocab, student.dtype) if tempered else plain_exps
    for token in range(rows.size):
        z, out, label = student[rows[token]], terms[token], target[token]
        z_argmax, plain_total = _cross_entropy(z, label, nll_weight, eps_i, plain_exps, out)
        z_best = z[z_argmax]
        plain_part = (plain_exps, real(ce_weight / plain_total))
        parts = plain_part, (plain_exps, real(0.0)), plain_part
        if distilled:
            t = teacher[teacher_rows[token]]
            t_argmax = _argmax(t)
            t_best = t[t_argmax]
            total, cross = plain_total, 0.0
            if tempered or divergence != FORWARD_KL:
                t_total = _softmax(t, t_best, real(1.0), slope)[0]
            else:
                t_total, cross = _cross(t, t_best, z, z_best, real(1.0), slope)
            out[TEACHER_NLL] = math.log(t_total) - np.float64(t[label] - t_best)
            out[AGREE] = z_argmax == t_argmax
            if tempered:
                total = _softmax(z, z_best, inverse_temperature, exps)[0]
                if divergence != FORWARD_KL:
                    t_total = _softmax(t, t_best, inverse_temperature, slope)[0]
                else:
                    t_total, cross = _cross(t, t_best, z, z_best, inverse_temperature, slope)
            log_total, t_log = math.log(total), math.log(t_total)
            weight = parameter
            if divergence == ADAPTIVE_KL:
                weight = real(_head_weight(exps, real(1.0 / total), slope, 1.0 / t_total, parameter))
            student_side = (z, exps, z_best, real(1.0 / total), real(log_total))
            teacher_side = (t, slope, t_best, real(1.0 / t_total), real(t_log))
            shape = (inverse_temperature, weight, ONE - weight)
            slope_weight = kd_weight
            if divergence == FORWARD_KL:
                kd, slope_sum = cross / t_total + log_total - t_log, -1.0
                slope_weight = real(-kd_weight / t_total)  # `slope` still holds the teacher's exponentials
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
            # d/d(logits / temperature) = slope - p sum(slope), plus the cross-entropy's softmax. The ranking term's
            # slopes sum to the term itself, because it is proportional to p
            norm = real(-kd_weight * (slope_sum + out[RANK]) / total)
            if not tempered:
                norm += plain_part[1]
            parts = (slope, slope_weight), (exps, norm), plain_part
        if want_gradient:
            of_three = distilled and tempered
            _write_gradient(gradient[rows[token]], label, parts, of_three, ce_weight, nll_weight, eps_i)


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
    origin = exps[_argmax(exps)]
    if origin == -np.inf:  # there are no others
        exps[:] = ZERO
        return 0.0, origin
    return _softmax(exps, origin, inverse_temperature * ZERO + ONE, exps)[0], origin


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
        argmax, plain_total = _cross_entropy(z, label, nll_weight, eps_i, plain_exps, out)
        best, total = z[argmax], plain_total
        if tempered:
            total = _softmax(z, best, inverse_temperature, exps)[0]
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
                value, slope = _sparse_share(divergence, entries[i] * norm, _exp(log_q), log_p, log_q, parameter, other)
                slopes[i] = slope
                kd += np.float64(value)
                slope_sum += np.float64(slope)
            mass, origin = 0.0, real(0.0)
            for start in range(0, vocab, BLOCK):
                mass += np.float64(_block_sum(exps[start : start + BLOCK]))
            if mass < SMALL_MASS:
                mass, origin = _mass_of_the_rest(z, ids[token], best, inverse_temperature, exps)
                shrink = _exp(origin)
            log_p = real(-np.inf)
            if mass != 0.0:
                log_p = real(math.log(mass) + np.float64(origin)) - log_total
            log_q = log_rest[token]
            p = real(mass * np.float64(shrink) / total)
            value, slope = _sparse_share(divergence, p, _exp(log_q), log_p, log_q, parameter, other)
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
            _write_gradient(g, label, ((exps, factor), plain_part, plain_part), False, ce_weight, nll_weight, eps_i)
            for i in range(k):
                share = kd_weight * slopes[i]
                if not sampled:
                    share -= real(kd_weight * slope_sum) * entries[i] * norm
                    if not tempered:
                        share += ce_weight * entries[i] * norm
                g[ids[token, i]] += share


@reordered
def _block_exps(block, best, inverse_temperature):  # type: ignore[no-untyped-def]
    total = ZERO * best
    for i in range(block.size):
        total += _exp((block[i] - best) * inverse_temperature)
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
        _block_maxima(maxima[start : start + lanes.size], lanes)
    for i in range(lanes.size):
        if i < k or lanes[i] > values[k - 1]:
            _insert(lanes[i], i, values, groups, i)
    return values[k - 1]


@numba.njit(nogil=True, cache=True)
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
            _block_maxima(row[start : start + n_groups], maxima)
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
                rest *= np.float64(_exp((centre - new_centre) * inverse_temperature))
            centre = new_centre
            # sum without the best entries: a small rest computed as a difference would be inexact
            kept = k
            for i in range(k):
                if ids[token, i] >= first:
                    row[ids[token, i] - first] = -np.inf
                    kept -= 1
            if first > 0:
                for i in range(kept, k):
                    rest += np.float64(_exp((before[i] - centre) * inverse_temperature))
        for start in range(0, width, BLOCK):
            rest += np.float64(_block_exps(row[start : start + BLOCK], centre, inverse_temperature))
        rests[token] = rest
        if n_new > 0:
            for i in range(k):
                if ids[token, i] >= first:
                    row[ids[token, i] - first] = values[token, i]
