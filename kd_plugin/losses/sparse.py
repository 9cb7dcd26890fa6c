"""The loss for a teacher that gives k symbols of each distribution: over those entries and one bucket for all others.

The bucket matters: without it the teacher is biased towards its best symbols (Anshumann et al. 2025,
https://arxiv.org/abs/2503.16870). Merging symbols into a bucket only loses information, so this loss is a lower bound
of the loss over all entries (data processing inequality), and equals it if k is the vocabulary size.

Alternatively, the k symbols are draws from the teacher's distribution (the same paper's random sampling): the mean of
log q - log p over them is an unbiased estimate of the forward KL, and its gradient of the KL's gradient.
"""

import math
from typing import NamedTuple, Tuple, Union

import torch
from torch import Tensor

from kd_plugin.losses.answer import TeacherAnswer
from kd_plugin.losses.divergences import DIVERGENCES

# the f-divergences, for which the above holds; for the others, the bucket's effect is not known
BUCKET_DIVERGENCES = ("forward_kl", "reverse_kl", "js", "tvd")
SAMPLED_DIVERGENCES = ("forward_kl",)
# If the bucket's mass, relative to the row's best entry, is below this, it is summed relative to the bucket's own best
# entry instead. The limit is 2^24 times what 2^32 symbols can lose to underflow.
SMALL_MASS = 2.0**-70


class SparseAnswer(TeacherAnswer):
    """A teacher's answer for some target tokens as k entries each, at the temperature of the distillation.

    Args:
        ids: (tokens, k) int64, in the student's order of symbols; distinct unless sampled
        lprobs: (tokens, k) the teacher's log-probabilities of the ids, not renormalised; unless sampled, best first
        log_rest: (tokens,) logarithm of the mass of all other symbols; -inf: none
        sampled: the ids are independent draws from the teacher's distribution
    """

    knows_target = False

    def __init__(self, ids: Tensor, lprobs: Tensor, log_rest: Tensor, sampled: bool = False):
        self.ids, self.lprobs, self.log_rest, self.sampled = ids, lprobs, log_rest, sampled
        self.dtype = lprobs.dtype
        self.knows_best = not sampled

    @property
    def everything(self) -> "SparseAnswer":  # type: ignore[override]
        return self

    def chunk(  # type: ignore[override]
        self, start: int, stop: int, reuse: bool = False, apart: bool = False
    ) -> "SparseAnswer":
        part = slice(start, stop)
        return SparseAnswer(self.ids[part], self.lprobs[part], self.log_rest[part], self.sampled)

    def take(self, rows: Tensor) -> "SparseAnswer":
        """The answer for some of the tokens."""
        return SparseAnswer(self.ids[rows], self.lprobs[rows], self.log_rest[rows], self.sampled)


# the engine's teacher input: logits, a sparse answer, or None for rows that are not distilled
Knowledge = Union[Tensor, SparseAnswer, None]


class SparseSlope(NamedTuple):
    """Derivatives with respect to log p: for the k entries, (tokens, k), and for the bucket, (tokens, 1)."""

    entries: Tensor
    rest: Tensor

    @property
    def total(self) -> Tensor:
        return self.entries.sum(dim=-1, keepdim=True) + self.rest


def sparse_slope(
    lprobs: Tensor, log_rest: Tensor, answer: SparseAnswer, divergence: str, **parameters: float
) -> Tuple[Tensor, SparseSlope]:
    """The divergence and its slope, given the student's side.

    Args:
        lprobs: (tokens, k) log p of the answer's ids
        log_rest: (tokens, 1) log p of all other symbols together, -inf if there are none

    Returns:
        ((tokens,) the divergence, its slope)
    """
    dtype = lprobs.dtype
    if answer.sampled:
        value = (answer.lprobs.to(dtype) - lprobs).mean(dim=-1)
        return value, SparseSlope(torch.full_like(lprobs, -1.0 / lprobs.size(-1)), torch.zeros_like(log_rest))
    teacher = torch.cat([answer.lprobs, answer.log_rest.unsqueeze(-1)], dim=-1).to(dtype)
    student = torch.cat([lprobs, log_rest], dim=-1).detach().requires_grad_()
    with torch.enable_grad():
        value = DIVERGENCES[divergence].definition(student, teacher, **parameters)
        (slope,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), SparseSlope(slope[:, :-1], slope[:, -1:])


def sparse_divergence(student_lprobs: Tensor, answer: SparseAnswer, divergence: str, **parameters: float) -> Tensor:
    """(tokens,) the divergence for (tokens, vocab) student_lprobs, differentiable in them."""
    lprobs = student_lprobs.gather(-1, answer.ids)
    teacher_lprobs = answer.lprobs.to(lprobs.dtype)
    if answer.sampled:
        return (teacher_lprobs - lprobs).mean(dim=-1)
    again = torch.zeros_like(answer.ids, dtype=torch.bool)  # cache.compress.unknown repeats one symbol k times
    again[:, 1:] = answer.ids[:, 1:] == answer.ids[:, :1]
    others = student_lprobs.scatter(-1, answer.ids, -math.inf)
    none = torch.isneginf(others).all(dim=-1, keepdim=True)  # autograd's derivative would be NaN there
    log_rest = others.masked_fill(none, 0.0).logsumexp(dim=-1, keepdim=True).masked_fill(none, -math.inf)
    student = torch.cat([lprobs.masked_fill(again, -math.inf), log_rest], dim=-1)
    teacher = torch.cat([teacher_lprobs, answer.log_rest.to(lprobs.dtype).unsqueeze(-1)], dim=-1)
    return DIVERGENCES[divergence].definition(student, teacher, **parameters)
