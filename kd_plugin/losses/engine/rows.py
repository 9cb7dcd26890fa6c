"""A chunk of target tokens for the one-pass forms: both distributions at the temperature, each computed once."""

from typing import Callable, Optional, Tuple

import torch
from torch import Tensor


class Side:
    """One distribution, softmax(logits / temperature), as the intermediate results of its softmax.

    centred: (tokens, vocab) c = (logits - max) / temperature, 0 at the best entry
    exp:     (tokens, vocab) e = exp(c); after a call of `probs` it holds the probabilities
    total:   (tokens, 1) s = sum_v e; so probabilities are e / s and log-probabilities c - log s
    """

    def __init__(self, centred: Tensor, exp: Tensor, total: Tensor):
        self.centred, self.exp, self.total = centred, exp, total
        self._normalised = False

    def probs(self) -> Tensor:
        """(tokens, vocab), in the buffer of `exp`."""
        if not self._normalised:
            self.exp.mul_(self.total.reciprocal())
            self._normalised = True
        return self.exp

    def unscaled_probs(self) -> Tuple[Tensor, Tensor]:
        """(values, factor (tokens, 1)) whose product gives the probabilities, without a pass over the vocabulary."""
        return self.exp, torch.ones_like(self.total) if self._normalised else self.total.reciprocal()

    def log_total(self) -> Tensor:
        """(tokens,) log s."""
        return self.total.log().squeeze(-1)


class Rows:
    """The student's and the teacher's side of some target tokens, with working memory."""

    def __init__(self, student: Side, teacher: Side, new_buffer: Optional[Callable[[], Tensor]] = None):
        self.student, self.teacher = student, teacher
        self.buffer = new_buffer or (lambda: torch.empty_like(student.exp))

    def mixture(self, teacher_weight: float) -> Tensor:
        """teacher_weight * q + (1 - teacher_weight) * p in a new buffer, clamped above 0 so that its log is finite."""
        mixture = torch.mul(self.student.probs(), 1.0 - teacher_weight, out=self.buffer())
        mixture.add_(self.teacher.probs(), alpha=teacher_weight)
        return mixture.clamp_(min=torch.finfo(mixture.dtype).tiny)
