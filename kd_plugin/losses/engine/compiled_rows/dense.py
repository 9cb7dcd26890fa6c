"""The loss of rows for which the teacher's logits are known."""

import math

import numpy as np

from kd_plugin.losses.engine.compiled_rows.divergences import (
    adaptive_kl_of_row,
    head_weight,
    js_of_row,
    reverse_kl_of_row,
    skew_forward_kl_of_row,
    skew_reverse_kl_of_row,
    tvd_of_row,
)
from kd_plugin.losses.engine.compiled_rows.functions import (
    ADAPTIVE_KL,
    AGREE,
    FORWARD_KL,
    JS,
    KD,
    ONE,
    RANK,
    REVERSE_KL,
    SKEW_FORWARD_KL,
    SKEW_REVERSE_KL,
    TEACHER_NLL,
    TVD,
    entry_point,
)
from kd_plugin.losses.engine.compiled_rows.passes import (
    best_index,
    cross_entropy,
    cross_softmax,
    softmax,
    write_gradient,
)


@entry_point
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
        z_argmax, plain_total = cross_entropy(z, label, nll_weight, eps_i, plain_exps, out)
        z_best = z[z_argmax]
        plain_part = (plain_exps, real(ce_weight / plain_total))
        parts = plain_part, (plain_exps, real(0.0)), plain_part
        if distilled:
            t = teacher[teacher_rows[token]]
            t_argmax = best_index(t)
            t_best = t[t_argmax]
            total, cross = plain_total, 0.0
            if tempered or divergence != FORWARD_KL:
                t_total = softmax(t, t_best, real(1.0), slope)[0]
            else:
                t_total, cross = cross_softmax(t, t_best, z, z_best, real(1.0), slope)
            out[TEACHER_NLL] = math.log(t_total) - np.float64(t[label] - t_best)
            out[AGREE] = z_argmax == t_argmax
            if tempered:
                total = softmax(z, z_best, inverse_temperature, exps)[0]
                if divergence != FORWARD_KL:
                    t_total = softmax(t, t_best, inverse_temperature, slope)[0]
                else:
                    t_total, cross = cross_softmax(t, t_best, z, z_best, inverse_temperature, slope)
            log_total, t_log = math.log(total), math.log(t_total)
            weight = parameter
            if divergence == ADAPTIVE_KL:
                weight = real(head_weight(exps, real(1.0 / total), slope, 1.0 / t_total, parameter))
            student_side = (z, exps, z_best, real(1.0 / total), real(log_total))
            teacher_side = (t, slope, t_best, real(1.0 / t_total), real(t_log))
            shape = (inverse_temperature, weight, ONE - weight)
            slope_weight = kd_weight
            if divergence == FORWARD_KL:
                kd, slope_sum = cross / t_total + log_total - t_log, -1.0
                slope_weight = real(-kd_weight / t_total)  # `slope` still holds the teacher's exponentials
            elif divergence == REVERSE_KL:
                kd, slope_sum = reverse_kl_of_row(student_side, teacher_side, shape)
            elif divergence == JS:
                kd, slope_sum = js_of_row(student_side, teacher_side, shape)
            elif divergence == SKEW_FORWARD_KL:
                kd, slope_sum = skew_forward_kl_of_row(student_side, teacher_side, shape)
            elif divergence == SKEW_REVERSE_KL:
                kd, slope_sum = skew_reverse_kl_of_row(student_side, teacher_side, shape)
            elif divergence == TVD:
                kd, slope_sum = tvd_of_row(student_side, teacher_side, shape)
            else:
                kd, slope_sum = adaptive_kl_of_row(student_side, teacher_side, shape)
            out[KD] = 0.0 if kd < 0.0 else kd  # a hair below 0 is rounding; NaN stays NaN
            # d/d(logits / temperature) = slope - p sum(slope), plus the cross-entropy's softmax. The ranking term's
            # slopes sum to the term itself, because it is proportional to p
            norm = real(-kd_weight * (slope_sum + out[RANK]) / total)
            if not tempered:
                norm += plain_part[1]
            parts = (slope, slope_weight), (exps, norm), plain_part
        if want_gradient:
            of_three = distilled and tempered
            write_gradient(gradient[rows[token]], label, parts, of_three, ce_weight, nll_weight, eps_i)
