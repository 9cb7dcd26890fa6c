"""Each divergence's value and slope: of an entry, and summed over a row."""

import numpy as np

from kd_plugin.losses.engine.compiled_rows.functions import (
    BLOCK,
    HALF,
    MASKED_LPROB,
    ONE,
    QUARTER,
    TINY,
    ZERO,
    exact,
    log,
    reordered,
)

# Each entry's share of the divergence, and its slope with respect to log p, as in losses/divergences.py. If a
# probability is 0, its logarithm may be infinite. Conditions use `== 0`, not `> 0`, so that NaN is not hidden. rest is
# 1 - weight.


@exact
def forward_kl(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    return (ZERO if q == ZERO else q * (log_q - log_p)), -q


@exact
def reverse_kl(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    floor = MASKED_LPROB if log_q == -np.inf else log_q
    value = ZERO if p == ZERO else p * (log_p - floor)
    return value, value


@exact
def _against_mixture(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    """q log(q / m), p log(p / m) and m = weight q + rest p, above 0 so that its logarithm is finite."""
    mixture = weight * q + rest * p
    mixture = TINY if mixture < TINY else mixture
    log_mixture = log(mixture)
    of_teacher = ZERO if q == ZERO else q * (log_q - log_mixture)
    of_student = ZERO if p == ZERO else p * (log_p - log_mixture)
    return of_teacher, of_student, mixture


@exact
def js(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
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
def tvd(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    gap = p - q
    half = HALF * p
    return HALF * abs(gap), (half if gap > ZERO else (-half if gap < ZERO else ZERO * gap))


@exact
def _adaptive_kl(p, q, log_p, log_q, weight, rest):  # type: ignore[no-untyped-def]
    forward, slope = forward_kl(p, q, log_p, log_q, weight, rest)
    reverse, reverse_slope = reverse_kl(p, q, log_p, log_q, weight, rest)
    return weight * forward + rest * reverse, weight * slope + rest * reverse_slope


def summed(share):  # type: ignore[no-untyped-def]
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


reverse_kl_of_row, js_of_row = summed(reverse_kl), summed(js)
skew_forward_kl_of_row, skew_reverse_kl_of_row = summed(_skew_forward_kl), summed(_skew_reverse_kl)
tvd_of_row, adaptive_kl_of_row = summed(tvd), summed(_adaptive_kl)


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
def head_weight(exps, z_norm, teacher_exps, t_norm, adaptive_mu):  # type: ignore[no-untyped-def]
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
