"""A chunk of target tokens as the one-pass forms see it: both distributions at the temperature, each computed once."""

from typing import Callable, Optional, Tuple

import numpy as np
import torch
from torch import Tensor


def top_indices(values: Tensor, k: int, block: int = 64) -> Tensor:
    """(tokens, k) indices of the largest of (tokens, vocab) entries, largest first.

    Several times faster than torch.topk on a CPU: the k largest lie in the k blocks whose maxima are largest.
    """
    tokens, vocab = values.shape
    n_blocks = vocab // block
    if n_blocks <= 2 * k or values.is_cuda:
        return values.topk(k, dim=-1).indices
    maxima = values[:, : n_blocks * block].unflatten(-1, (n_blocks, block)).amax(dim=-1)
    chosen = maxima.topk(k, dim=-1).indices
    candidates = (chosen.unsqueeze(-1) * block + torch.arange(block, device=values.device)).flatten(1)
    rest = torch.arange(n_blocks * block, vocab, device=values.device).expand(tokens, -1)
    candidates = torch.cat([candidates, rest], dim=-1)
    return candidates.gather(-1, values.gather(-1, candidates).topk(k, dim=-1).indices)


def largest(values: Tensor, k: int) -> Tensor:
    """(tokens, k) the largest of (tokens, vocab) entries, largest first."""
    if values.is_cuda:
        return values.topk(k, dim=-1).values
    # numpy's vectorised partition and sort take a twentieth of torch's time
    below = values.size(-1) - k
    parted = np.partition(values.numpy(), below, axis=-1)[:, below:] if below > 0 else values.numpy()
    return torch.from_numpy(np.sort(parted, axis=-1)[:, ::-1].copy())


class Side:
    """One distribution, softmax(logits / temperature), in what a softmax passes through.

    centred: (tokens, vocab) c = (logits - max) / temperature, 0 at the best entry
    exp:     (tokens, vocab) e = exp(c); after `probs` was called it holds the probabilities
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
        """(values, factor (tokens, 1)) whose product are the probabilities, without a pass over them."""
        return self.exp, torch.ones_like(self.total) if self._normalised else self.total.reciprocal()

    def log_total(self) -> Tensor:
        """(tokens,) log s."""
        return self.total.log().squeeze(-1)


class Rows:
    """The student's and the teacher's side of some target tokens, and working memory for them."""

    def __init__(self, student: Side, teacher: Side, new_buffer: Optional[Callable[[], Tensor]] = None):
        self.student, self.teacher = student, teacher
        self.buffer = new_buffer or (lambda: torch.empty_like(student.exp))

    def mixture(self, teacher_weight: float) -> Tensor:
        """teacher_weight * q + (1 - teacher_weight) * p in a buffer of its own, above 0: its logarithm is finite."""
        mixture = torch.mul(self.student.probs(), 1.0 - teacher_weight, out=self.buffer())
        mixture.add_(self.teacher.probs(), alpha=teacher_weight)
        return mixture.clamp_(min=torch.finfo(mixture.dtype).tiny)
