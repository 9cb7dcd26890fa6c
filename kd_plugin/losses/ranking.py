"""TIE-KD's ranking term, added to a divergence: the teacher's best word should also be the student's.

Zhang et al. 2023, "Towards Understanding and Improving Knowledge Distillation for Neural Machine Translation"
(https://aclanthology.org/2023.acl-long.448), hierarchical ranking loss. With T the teacher's and S the student's k
most probable entries and v* the teacher's best,

    rank = sum_{i in T} max(0, p_i - p_v*)  +  sum_{i in T, j in S, q_i > q_j} max(0, p_j - p_i)

It depends on probabilities alone, and is 0 if the student's top k are the teacher's, with the same best one.
"""

from typing import Tuple

import torch
from torch import Tensor

from kd_plugin.losses.best import top_indices


def top1_rank(student_lprobs: Tensor, teacher_lprobs: Tensor, k: int) -> Tensor:
    """(tokens,) the ranking term of (tokens, vocab) log-probabilities, differentiable in the student's."""
    k = min(k, student_lprobs.size(-1))
    student_probs, teacher_probs = student_lprobs.exp(), teacher_lprobs.exp()
    of_teacher = teacher_probs.topk(k, dim=-1).indices
    of_student = student_probs.detach().topk(k, dim=-1).indices
    return rank_of_probs(
        student_probs.gather(-1, of_teacher),
        student_probs.gather(-1, of_student),
        teacher_probs.gather(-1, of_teacher),
        teacher_probs.gather(-1, of_student),
    )


def rank_of_probs(p_teachers: Tensor, p_students: Tensor, q_teachers: Tensor, q_students: Tensor) -> Tensor:
    """(tokens,) the term from (tokens, k) student and teacher probabilities p and q at each side's k best entries."""
    best_first = (p_teachers - p_teachers[:, :1]).clamp(min=0).sum(dim=-1)
    ahead = (p_students.unsqueeze(-2) - p_teachers.unsqueeze(-1)).clamp(min=0)  # (tokens, teacher's k, student's k)
    wrongly = q_teachers.unsqueeze(-1) > q_students.unsqueeze(-2)
    return best_first + (ahead * wrongly).sum(dim=(-2, -1))


def top1_rank_slope(student_probs: Tensor, teacher_probs: Tensor, k: int) -> Tuple[Tensor, Tensor, Tensor]:
    """The term and its derivative with respect to log p, which is non-zero for at most 2 k entries of a row.

    Returns: (tokens,) values; (tokens, 2 k) indices into the vocabulary; (tokens, 2 k) derivatives, to be summed for
        indices that occur twice
    """
    k = min(k, student_probs.size(-1))
    of_teacher, of_student = top_indices(teacher_probs, k), top_indices(student_probs, k)
    indices = torch.cat([of_teacher, of_student], dim=-1)
    p = student_probs.gather(-1, indices)
    q = teacher_probs.gather(-1, indices)
    with torch.enable_grad():
        leaf = p.detach().requires_grad_()
        values = rank_of_probs(leaf[:, :k], leaf[:, k:], q[:, :k], q[:, k:])
        (slope,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), indices, slope * p
