"""The divergences between teacher and student: each has a short reference definition that shows the maths.

Notation: z student logits, t teacher logits, p = softmax(z / temperature), q = softmax(t / temperature).
A divergence takes log p and log q, both (tokens, vocab) in nats, and returns one value per token, (tokens,), which is
>= 0 and is 0 only for p = q. Where q is 0 (a masked vocabulary entry, logit -inf), q log q takes its limit, 0.

A definition may come with a one-pass form, which training runs instead: value and gradient from probabilities already
computed, without autograd. To add a divergence, write its definition and add a row to DIVERGENCES; the flag, the checks
and the tests read that table. Without a one-pass form, autograd differentiates the definition, chunk by chunk.
"""

import math
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor

from kd_plugin.losses.best import largest
from kd_plugin.losses.engine.rows import Rows

# the reverse KL's stand-in for log 0; e^-100 is below every normal fp32 number
MASKED_LPROB = -100.0


class Slope(NamedTuple):
    """A divergence's derivative with respect to log p, treating every entry as free: `scale * values`.

    Adding a multiple of p (one factor per token) makes no difference: log p is normalised, so the gradient with respect
    to the logits stays the same.

    values: (tokens, vocab)
    total:  (tokens, 1) or a number, the sum of scale * values over the vocabulary
    scale:  (tokens, 1) or a number
    """

    values: Tensor
    total: Union[Tensor, float]
    scale: Union[Tensor, float] = 1.0


class Divergence(NamedTuple):
    """A row of DIVERGENCES; calling it calls the definition.

    definition: (log p, log q, **parameters) -> (tokens,), differentiable in log p
    one_pass:   (Rows, **parameters) -> ((tokens,), Slope); may overwrite the teacher's side, and the student's only
                by calling its probs(); None: autograd differentiates the definition
    parameters: names and defaults of the divergence's own parameters
    steepest:   (value, **parameters) -> an upper bound of every entry of |h - p sum h|, where h is the derivative with
                respect to log p; None: unknown, so each gradient stored in fp16 is searched for its maximum
    """

    definition: Callable[..., Tensor]
    one_pass: Optional[Callable[..., Tuple[Tensor, Slope]]] = None
    parameters: Dict[str, float] = {}
    steepest: Optional[Callable[..., Any]] = None

    def __call__(self, student_lprobs: Tensor, teacher_lprobs: Tensor, **parameters: float) -> Tensor:
        return self.definition(student_lprobs, teacher_lprobs, **parameters)


def expectation(probs: Tensor, values: Tensor) -> Tensor:
    """sum_v probs * values, where 0 * inf is 0 in value and gradient.

    Masks the values, not the product: autograd would multiply an infinite value by 0, which is NaN.
    Tests `== 0`, not `> 0`, so that a NaN is not hidden.
    """
    return (probs * values.masked_fill(probs == 0, 0.0)).sum(dim=-1)


def log_mixture(first_lprobs: Tensor, second_lprobs: Tensor, weight: float) -> Tensor:
    """log(weight * first + (1 - weight) * second), also where both underflow."""
    if not 0.0 < weight < 1.0:
        return first_lprobs if weight == 1.0 else second_lprobs
    # entries with probability 0 on both sides: autograd's derivative of their logaddexp is NaN
    nowhere = torch.isneginf(first_lprobs) & torch.isneginf(second_lprobs)
    first, second = (lprobs.masked_fill(nowhere, 0.0) for lprobs in (first_lprobs, second_lprobs))
    mixture = torch.logaddexp(first + math.log(weight), second + math.log(1.0 - weight))
    return mixture.masked_fill(nowhere, -math.inf)


def forward_kl(student_lprobs: Tensor, teacher_lprobs: Tensor) -> Tensor:
    """KL(q || p) = sum_v q (log q - log p): word-level distillation (Hinton et al. 2015, Kim & Rush 2016).

    The teacher's entropy is part of it, so that equal distributions give exactly 0.
    """
    return expectation(teacher_lprobs.exp(), teacher_lprobs - student_lprobs)


def forward_kl_one_pass(rows: Rows) -> Tuple[Tensor, Slope]:
    values, scale = rows.teacher.unscaled_probs()
    log_ratio = torch.sub(rows.teacher.centred, rows.student.centred, out=rows.teacher.centred)
    value = log_ratio.mul_(values).sum(dim=-1) * scale.squeeze(-1)
    return value + (rows.student.log_total() - rows.teacher.log_total()), Slope(values, total=-1.0, scale=-scale)


def reverse_kl(student_lprobs: Tensor, teacher_lprobs: Tensor) -> Tensor:
    """KL(p || q): punishes the student for mass where the teacher has none (MiniLLM, Gu et al. 2024).

    An entry that the teacher masks (logit -inf) would make it infinite; it counts with a log-probability of
    MASKED_LPROB instead.
    """
    teacher_lprobs = teacher_lprobs.masked_fill(torch.isneginf(teacher_lprobs), MASKED_LPROB)
    return expectation(student_lprobs.exp(), student_lprobs - teacher_lprobs)


def reverse_kl_one_pass(rows: Rows) -> Tuple[Tensor, Slope]:
    slope = torch.sub(rows.student.centred, rows.teacher.centred, out=rows.buffer()).mul_(rows.student.probs())
    total = slope.sum(dim=-1, keepdim=True)
    return total.squeeze(-1) + (rows.teacher.log_total() - rows.student.log_total()), Slope(slope, total)


def js(student_lprobs: Tensor, teacher_lprobs: Tensor, js_beta: float = 0.5) -> Tensor:
    """beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p: the generalised Jensen-Shannon divergence,
    symmetric at beta = 0.5 (GKD, Agarwal et al. 2024)."""
    mixture = log_mixture(teacher_lprobs, student_lprobs, js_beta)
    teacher_side = expectation(teacher_lprobs.exp(), teacher_lprobs - mixture)
    return js_beta * teacher_side + (1.0 - js_beta) * expectation(student_lprobs.exp(), student_lprobs - mixture)


def js_one_pass(rows: Rows, js_beta: float = 0.5) -> Tuple[Tensor, Slope]:
    log_m = rows.mixture(teacher_weight=js_beta).log_()
    from_teacher = rows.teacher.centred.sub_(log_m).mul_(rows.teacher.probs()).sum(dim=-1) - rows.teacher.log_total()
    slope = torch.sub(rows.student.centred, log_m, out=log_m).mul_(rows.student.probs())
    total = slope.sum(dim=-1, keepdim=True)
    from_student = total.squeeze(-1) - rows.student.log_total()
    value = js_beta * from_teacher + (1.0 - js_beta) * from_student
    return value, Slope(slope, (1.0 - js_beta) * total, scale=1.0 - js_beta)


def skew_forward_kl(student_lprobs: Tensor, teacher_lprobs: Tensor, skew_lambda: float = 0.1) -> Tensor:
    """KL(q || lambda q + (1 - lambda) p): never infinite (DistiLLM, Ko et al. 2024)."""
    mixture = log_mixture(teacher_lprobs, student_lprobs, skew_lambda)
    return expectation(teacher_lprobs.exp(), teacher_lprobs - mixture)


def skew_forward_kl_one_pass(rows: Rows, skew_lambda: float = 0.1) -> Tuple[Tensor, Slope]:
    mixture = rows.mixture(teacher_weight=skew_lambda)
    slope = torch.div(rows.student.probs(), mixture, out=rows.buffer()).mul_(rows.teacher.probs())
    log_ratio = rows.teacher.centred.sub_(mixture.log_())
    value = log_ratio.mul_(rows.teacher.probs()).sum(dim=-1) - rows.teacher.log_total()
    scale = -(1.0 - skew_lambda)
    return value, Slope(slope, scale * slope.sum(dim=-1, keepdim=True), scale)


def skew_reverse_kl(student_lprobs: Tensor, teacher_lprobs: Tensor, skew_lambda: float = 0.1) -> Tensor:
    """KL(p || (1 - lambda) q + lambda p) (DistiLLM, Ko et al. 2024)."""
    mixture = log_mixture(student_lprobs, teacher_lprobs, skew_lambda)
    return expectation(student_lprobs.exp(), student_lprobs - mixture)


def skew_reverse_kl_one_pass(rows: Rows, skew_lambda: float = 0.1) -> Tuple[Tensor, Slope]:
    # d/d log p = p (log p - log m - lambda p / m)
    p = rows.student.probs()
    mixture = rows.mixture(teacher_weight=1.0 - skew_lambda)
    from_mixture = torch.div(p, mixture, out=rows.buffer()).mul_(p)
    slope = torch.sub(rows.student.centred, mixture.log_(), out=mixture).mul_(p)
    value = slope.sum(dim=-1) - rows.student.log_total()
    slope.sub_(from_mixture, alpha=skew_lambda)
    return value, Slope(slope, slope.sum(dim=-1, keepdim=True))


def tvd(student_lprobs: Tensor, teacher_lprobs: Tensor) -> Tensor:
    """1/2 sum_v |q - p|: the total variation distance (f-DISTILL, Wen et al. 2023)."""
    return 0.5 * (teacher_lprobs.exp() - student_lprobs.exp()).abs().sum(dim=-1)


def tvd_one_pass(rows: Rows) -> Tuple[Tensor, Slope]:
    difference = torch.sub(rows.student.probs(), rows.teacher.probs(), out=rows.buffer())
    value = 0.5 * torch.linalg.vector_norm(difference, ord=1, dim=-1)
    slope = difference.sign_().mul_(rows.student.probs())
    return value, Slope(slope, 0.5 * slope.sum(dim=-1, keepdim=True), scale=0.5)


def adaptive_kl(student_lprobs: Tensor, teacher_lprobs: Tensor, adaptive_mu: float = 0.5) -> Tensor:
    """Forward and reverse KL, weighted by where the two sides differ (AKL, Wu et al. 2024).

    The head is the teacher's most probable entries up to a mass of mu, at least one, plus all that tie with the last
    of them. The forward KL's weight is the head's share of sum_v |q - p|, the reverse KL's is the tail's. The gradient
    treats the weights as constants.
    """
    teacher_probs = teacher_lprobs.exp()
    weight = head_weight(student_lprobs.detach().exp(), teacher_probs.detach(), adaptive_mu)
    return weight * forward_kl(student_lprobs, teacher_lprobs) + (1.0 - weight) * reverse_kl(
        student_lprobs, teacher_lprobs
    )


def head_weight(student_probs: Tensor, teacher_probs: Tensor, adaptive_mu: float) -> Tensor:
    """(tokens,) the share of the gap |q - p| that lies in the teacher's head."""
    vocab = teacher_probs.size(-1)
    for k in sorted({min(k, vocab) for k in (128, 2048, vocab)}):  # a trained teacher's head has few words
        ranked = largest(teacher_probs, k)
        mass = ranked.cumsum(dim=-1)
        if bool((mass[:, -1] > adaptive_mu).all()):
            break
    n_head = (mass <= adaptive_mu).sum(dim=-1, keepdim=True).clamp_(1, ranked.size(-1))
    threshold = ranked.gather(-1, n_head - 1)
    gap = (teacher_probs - student_probs).abs_()
    total = gap.sum(dim=-1)
    # 0 or 1 as a number: torch's masks cost more than all the rest
    head = (teacher_probs - threshold).ge_(0).mul_(gap).sum(dim=-1)
    # equal distributions have no gap: both KLs are 0, and any weight will do
    return torch.where(total == 0, torch.full_like(total, 0.5), head / total)


def adaptive_kl_one_pass(rows: Rows, adaptive_mu: float = 0.5) -> Tuple[Tensor, Slope]:
    p, q = rows.student.probs(), rows.teacher.probs()
    weight = head_weight(p, q, adaptive_mu)
    offset = rows.student.log_total() - rows.teacher.log_total()
    log_ratio = torch.sub(rows.teacher.centred, rows.student.centred, out=rows.buffer())  # log q - log p - offset
    forward = torch.mul(log_ratio, q, out=rows.buffer()).sum(dim=-1) + offset
    reverse = log_ratio.mul_(p).sum(dim=-1, keepdim=True)
    w = weight.unsqueeze(-1)
    slope = log_ratio.mul_(w - 1.0).addcmul_(q, w, value=-1.0)
    value = weight * forward - (1.0 - weight) * (reverse.squeeze(-1) + offset)
    return value, Slope(slope, (w - 1.0) * reverse - w)


# Upper bounds of the entries of h - p sum h. They need only x log x >= -1/e for x in [0, 1].


def at_most_one(value: Any, **_: float) -> float:
    """forward_kl: |p - q|. tvd: |h| <= p / 2 and |sum h| <= 1/2. skew_forward_kl: |h| <= q, since (1 - lambda) p <= m.
    js: with r = log p/m and L = log 1/(1 - beta), p r >= -1/e, r <= L and 0 <= sum p r <= L, so it is at most
    (1 - beta) (L + 1/e) <= 2/e."""
    return 1.0


def skew_reverse_steepest(value: Any, skew_lambda: float) -> float:
    """h = p (r - s) with r = log p/m, p r >= -1/e, r <= L = log 1/lambda, 0 <= sum p r <= L and s = lambda p/m in
    [0, 1]: at most L + 1 + 1/e."""
    return math.log(1.0 / skew_lambda) + 1.5


def reverse_steepest(value: Any, **_: float) -> Any:
    """Reverse KL: h - p sum h = p (r - R) with r = log p/q and R = sum p r, the KL. p r >= p log p >= -1/e. The other
    entries' share of R is at least (1 - p) log (1 - p) >= -1/e, so p r <= R + 1/e. Both ways the bound is R + 1/e. The
    adaptive KL mixes this derivative and forward_kl's with weights 1 - w and w, and its value likewise."""
    return value + 0.5


DIVERGENCES: Dict[str, Divergence] = {
    "forward_kl": Divergence(forward_kl, forward_kl_one_pass, steepest=at_most_one),
    "reverse_kl": Divergence(reverse_kl, reverse_kl_one_pass, steepest=reverse_steepest),
    "js": Divergence(js, js_one_pass, {"js_beta": 0.5}, at_most_one),
    "skew_forward_kl": Divergence(skew_forward_kl, skew_forward_kl_one_pass, {"skew_lambda": 0.1}, at_most_one),
    "skew_reverse_kl": Divergence(
        skew_reverse_kl, skew_reverse_kl_one_pass, {"skew_lambda": 0.1}, skew_reverse_steepest
    ),
    "tvd": Divergence(tvd, tvd_one_pass, steepest=at_most_one),
    "adaptive_kl": Divergence(adaptive_kl, adaptive_kl_one_pass, {"adaptive_mu": 0.5}, reverse_steepest),
}
# those with compiled kernels: engine/compiled_rows/divergences.py (CPU), engine/triton/rows.py (GPU)
COMPILED_DIVERGENCES = ("forward_kl", "reverse_kl", "js", "skew_forward_kl", "skew_reverse_kl", "tvd", "adaptive_kl")
