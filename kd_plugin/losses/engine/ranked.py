"""The ranking term, for kernels that compute only divergences.

Only the 2 k best entries of a row have a slope h with respect to log p, and the sum of h is the term itself, because it
is proportional to p. So a kernel that adds the term to its own sum of slopes covers d/d(logits / temperature) =
h - p sum h except for the entries' own h, which are added afterwards. Nothing waits for the device.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from kd_plugin.losses.best import top_indices
from kd_plugin.losses.definition import Objective, accumulation_dtype
from kd_plugin.losses.engine.one_pass import rows_per_chunk
from kd_plugin.losses.ranking import rank_of_probs


class Ranking(NamedTuple):
    """The ranking term of some tokens, (tokens,), and its (tokens, 2 k) slopes at (tokens, 2 k) ids.

    If an id occurs twice, both occurrences hold its whole slope.
    """

    values: Tensor
    ids: Tensor
    slopes: Tensor

    def chunk(self, start: int, stop: int) -> "Ranking":
        return Ranking(*(column[start:stop] for column in self))

    def add_to(self, gradient: Tensor, rows: Tensor, weight: float) -> None:
        """Adds weight * slopes to a gradient in fp32 or float64; in half precision it would already be rounded."""
        at = rows.unsqueeze(-1)
        gradient[at, self.ids] = gradient[at, self.ids] + weight * self.slopes


@torch.no_grad()
def ranking(
    student_logits: Tensor,
    teacher_logits: Tensor,
    rows: Optional[Tensor],
    teacher_rows: Optional[Tensor],
    tokens: int,
    objective: Objective,
) -> Ranking:
    """The ranking term of the rows for `one_pass`; to be called before `one_pass` overwrites them."""
    dtype = accumulation_dtype(student_logits, teacher_logits)
    k = min(objective.top1_rank, student_logits.size(1))
    step = min(rows_per_chunk(student_logits.size(1), dtype, student_logits.device), max(1, 2**22 // k**2))
    chunks = []
    for start in range(0, max(1, tokens), step):
        part = slice(start, min(start + step, tokens))
        p, q = (
            torch.softmax(logits[part if at is None else at[part]].to(dtype) / objective.temperature, dim=-1)
            for logits, at in ((student_logits, rows), (teacher_logits, teacher_rows))
        )
        ids = torch.cat([top_indices(q, k), top_indices(p, k)], dim=-1)
        p, q = p.gather(-1, ids), q.gather(-1, ids)
        with torch.enable_grad():
            leaf = p.requires_grad_()
            values = rank_of_probs(leaf[:, :k], leaf[:, k:], q[:, :k], q[:, k:])
            (slopes,) = torch.autograd.grad(values.sum(), leaf)
        same = ids.unsqueeze(-1) == ids.unsqueeze(-2)
        chunks.append(Ranking(values.detach(), ids, (same * (slopes * p.detach()).unsqueeze(-2)).sum(dim=-1)))
    return Ranking(*(torch.cat(column) for column in zip(*chunks)))
