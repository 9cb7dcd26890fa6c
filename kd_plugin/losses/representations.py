"""Distances between a student's and a teacher's inner states, one value per position, in fp32 (float64 of float64).

N positions that are not padding; student (N, d_s), teacher (N, d_t). The values are means over dimensions or heads, so
they do not grow with the model. The caller sums them over positions, as a cross-entropy. All are >= 0, and 0 for equal
states.
"""

from typing import Tuple

import torch
from torch import Tensor
from torch.nn import functional as F


def wide(values: Tensor) -> Tensor:
    """In fp32, unless in float64: sums over dimensions are inexact in fp16, and may overflow."""
    return values if values.dtype == torch.float64 else values.float()


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """(N,) 1/d sum (s - t)^2 (FitNets, Romero et al. 2015, https://arxiv.org/abs/1412.6550).

    Args:
        student: (N, d), already projected to the teacher's width
    """
    return (wide(student) - wide(teacher)).square().mean(dim=-1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """(N,) 1 - cos(s, t), for the same shapes."""
    return 1.0 - F.cosine_similarity(wide(student), wide(teacher), dim=-1)


def factor_distance(student: Tensor, code: Tensor) -> Tensor:
    """(N,) |c/|c| - s/|s||_1 of (N, k) codes (factor transfer, Kim et al. 2018, https://arxiv.org/abs/1802.04977)."""
    return (F.normalize(wide(student), dim=-1) - F.normalize(wide(code), dim=-1)).abs().sum(dim=-1)


def relation_distance(student: Tensor, teacher: Tensor, heads: int, places: Tensor, shape: Tuple[int, int]) -> Tensor:
    """(N,) KL(R_T || R_S), the mean over relation heads, R = softmax(A A^T / sqrt(d_r)) over the real positions of the
    sentence (MiniLMv2, Wang et al. 2021, https://arxiv.org/abs/2012.15828).

    Args:
        student, teacher: (N, width) queries, keys or values, of any two widths
        heads: the number of relation heads; divides both widths
        places: (N,) ascending positions in the flattened (batch * length)
        shape: (batch, length)
    """
    real = torch.zeros(shape[0] * shape[1], dtype=torch.bool, device=places.device).index_fill_(0, places, True)
    hidden = ~real.view(shape)[:, None, None, :]

    def relations(states: Tensor) -> Tensor:
        states = wide(states)
        rectangle = states.new_zeros(shape[0] * shape[1], states.size(-1)).index_copy(0, places, states)
        split = rectangle.view(*shape, heads, -1).transpose(1, 2)
        scores = split @ split.transpose(2, 3) * split.size(-1) ** -0.5
        # finite, because -inf in all entries of a sentence without positions would be NaN
        lprobs = torch.log_softmax(scores.masked_fill(hidden, torch.finfo(scores.dtype).min), dim=-1)
        return lprobs.transpose(1, 2).reshape(-1, heads, shape[1]).index_select(0, places)

    student_lprobs, teacher_lprobs = relations(student), relations(teacher)
    return kl_over_keys(teacher_lprobs.exp(), teacher_lprobs, student_lprobs).mean(dim=-1)


def attention_distance(student: Tensor, teacher: Tensor, mixing: Tensor) -> Tensor:
    """(N,) KL(A_T || C A_S), the mean over the teacher's heads.

    Each of the teacher's heads is compared with a convex combination of the student's, so the numbers of heads may
    differ; mixing the teacher's heads instead would let the combination choose the easiest of them as the target. Taken
    on probabilities, over real keys (Align-to-Distill, Jin et al. 2024, https://arxiv.org/abs/2403.01479).

    Args:
        student: (N, student's heads, keys) probabilities; 0 for keys that are padding or later
        teacher: (N, teacher's heads, keys), likewise
        mixing: (teacher's heads, student's heads), rows that sum to 1
    """
    mixed = wide(torch.einsum("ts,nsk->ntk", mixing.to(student.dtype), student))
    teacher = wide(teacher)
    smallest = torch.finfo(mixed.dtype).tiny
    return kl_over_keys(teacher, teacher.clamp(min=smallest).log(), mixed.clamp(min=smallest).log()).mean(dim=-1)


def kl_over_keys(teacher: Tensor, teacher_lprobs: Tensor, student_lprobs: Tensor) -> Tensor:
    """(N, heads) sum over keys of q (log q - log p), where q is not 0."""
    return (teacher * (teacher_lprobs - student_lprobs).masked_fill(teacher == 0, 0.0)).sum(dim=-1)


def normalised(features: Tensor) -> Tensor:
    """(N, d) features with mean 0 and variance 1 in each position, so that a squared error is a relative one. A layer
    norm: a batch norm would mix positions with padding."""
    return F.layer_norm(wide(features), features.shape[-1:])
