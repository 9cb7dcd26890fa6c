"""Each divergence between teacher and student as a short reference definition: the place to see the maths.

Notation: z student logits, t teacher logits, p = softmax(z / temperature), q = softmax(t / temperature).
A divergence takes log p and log q, both (tokens, vocab) in nats, and gives one value a token, (tokens,), >= 0 and
0 only where p = q. Where q is 0 (a masked vocabulary entry, logit -inf) the limit q log q = 0 is taken.

To add one: write its function and put it into DIVERGENCES; flag, checks and tests read that table.
"""

from typing import Callable, Dict

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]


def forward_kl(student_lprobs: Tensor, teacher_lprobs: Tensor) -> Tensor:
    """KL(q || p) = sum_v q (log q - log p): word-level distillation (Hinton et al. 2015, Kim & Rush 2016).

    The teacher's entropy is part of it, so that equal distributions give exactly 0.
    """
    teacher_probs = teacher_lprobs.exp()
    terms = teacher_probs * (teacher_lprobs - student_lprobs)
    # 0 * -inf must leave neither value nor gradient as NaN; `== 0` and not `> 0`, so that a NaN teacher stays seen
    return torch.where(teacher_probs == 0, torch.zeros_like(terms), terms).sum(dim=-1)


DIVERGENCES: Dict[str, Divergence] = {
    "forward_kl": forward_kl,
}
