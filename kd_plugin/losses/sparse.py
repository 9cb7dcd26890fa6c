"""A teacher that names k symbols of each distribution: the loss on those entries and one bucket for all the others.

The bucket matters: without it the teacher is biased towards its best symbols (Anshumann et al. 2025,
https://arxiv.org/abs/2503.16870). Merging symbols into a bucket only loses information, so that the loss is a lower
bound of the one on all entries (data processing inequality), equal to it at k = vocabulary.

The second kind are k draws from the teacher's own distribution (the same paper's random sampling): the mean over them
of log q - log p is an unbiased estimate of the forward KL, and so is its gradient.
"""

import math
from typing import NamedTuple, Tuple, Union

import torch
from torch import Tensor

from kd_plugin.losses.answer import TeacherAnswer
from kd_plugin.losses.divergences import DIVERGENCES

# f-divergences, for which the above holds; of the rest nobody has shown what the bucket does to them
BUCKET_DIVERGENCES = ("forward_kl", "reverse_kl", "js", "tvd")
SAMPLED_DIVERGENCES = ("forward_kl",)


class SparseAnswer(TeacherAnswer):
    """What a teacher said about some target tokens in k entries, at the temperature of the distillation.

    Args:
        ids: (tokens, k) int64, in the student's order of symbols; no symbol twice unless they are draws
        lprobs: (tokens, k) the teacher's log-probabilities of them, not renormalised; topk: the best first
        log_rest: (tokens,) logarithm of the mass of all the other symbols; -inf: none
        sampled: they are draws, each as likely as its probability
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
        """The answers at some positions."""
        return SparseAnswer(self.ids[rows], self.lprobs[rows], self.log_rest[rows], self.sampled)


# what an engine takes as a teacher: logits, a sparse answer, or None for rows that are not distilled
Knowledge = Union[Tensor, SparseAnswer, None]


class SparseSlope(NamedTuple):
    """Derivatives with respect to log p of the k entries, (tokens, k), and of the bucket, (tokens, 1)."""

    entries: Tensor
    rest: Tensor

    @property
    def total(self) -> Tensor:
        return self.entries.sum(dim=-1, keepdim=True) + self.rest


def sparse_slope(
    lprobs: Tensor, log_rest: Tensor, answer: SparseAnswer, divergence: str, **parameters: float
) -> Tuple[Tensor, SparseSlope]:
    """The divergence and its slope from the student's side of the entries.

    Args:
        lprobs: (tokens, k) log p of the answer's ids
        log_rest: (tokens, 1) log p of all other symbols together, -inf where it is 0

    Returns:
        ((tokens,), its slope)
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
    """(tokens,) the divergence from (tokens, vocab) log p, differentiable in them."""
    lprobs = student_lprobs.gather(-1, answer.ids)
    teacher_lprobs = answer.lprobs.to(lprobs.dtype)
    if answer.sampled:
        return (teacher_lprobs - lprobs).mean(dim=-1)
    again = torch.zeros_like(answer.ids, dtype=torch.bool)  # cache.compress.unknown has one symbol k times
    again[:, 1:] = answer.ids[:, 1:] == answer.ids[:, :1]
    others = student_lprobs.scatter(-1, answer.ids, -math.inf)
    none = torch.isneginf(others).all(dim=-1, keepdim=True)  # there autograd would find NaN
    log_rest = others.masked_fill(none, 0.0).logsumexp(dim=-1, keepdim=True).masked_fill(none, -math.inf)
    student = torch.cat([lprobs.masked_fill(again, -math.inf), log_rest], dim=-1)
    teacher = torch.cat([teacher_lprobs, answer.log_rest.to(lprobs.dtype).unsqueeze(-1)], dim=-1)
    return DIVERGENCES[divergence].definition(student, teacher, **parameters)
