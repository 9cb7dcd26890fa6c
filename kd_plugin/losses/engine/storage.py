"""How a gradient is kept in fp16, whose numbers end at 65,504 and lose digits below 6e-5.

A row is stored multiplied by a power of two of its own, chosen from its largest entry or, where it is written before
that is known, from a bound that no entry exceeds: nothing overflows, and entries down to a 2^26th of the bound keep
their digits. Nothing waits for the device. Most rows have the same factor, STEP.
"""

import math
from typing import Union

import torch
from torch import Tensor

from kd_plugin.losses.definition import Objective
from kd_plugin.losses.divergences import DIVERGENCES

STEP = 1024.0  # the factor of rows whose gradient stays below SMALL
SMALL = 4.0  # so no stored entry is above 4,096: sums of them, in matrix products, have room


def new_scales(gradient: Tensor) -> Union[Tensor, None]:
    """(rows,) fp32 ones, for the factors of a (rows, vocab) gradient; None where its dtype needs none."""
    if gradient.dtype != torch.float16:
        return None
    return torch.ones(gradient.size(0), dtype=torch.float32, device=gradient.device)


def gradient_bound(objective: Objective, kd: Union[Tensor, float]) -> Union[Tensor, float]:
    """What no entry of a row's gradient exceeds, given the row's divergence.

    The cross-entropy's share is alpha (p - smoothed one-hot), which is at most alpha. The divergence's is
    (1 - alpha) temperature (h - p sum h), and each divergence knows the bound of h - p sum h.

    So a finite loss has a finite gradient: the bound is a constant, or with T = temperature and w = 1 - alpha
    alpha + w T (kd + 1/2), which is at most alpha + loss / T + w T / 2 for T >= 1 and alpha + kd + 1/2 below.
    """
    steepest = DIVERGENCES[objective.divergence].steepest
    assert steepest is not None
    weight = (1.0 - objective.alpha) * objective.temperature
    if weight == 0.0:  # a divergence that does not count may be infinite
        return torch.full_like(kd, objective.alpha) if isinstance(kd, Tensor) else objective.alpha
    # of the ranking term: h is p times a number from -2 k to 2 k, and sum h, the term, at most k + 1
    rank = 3 * objective.top1_rank + 1 if objective.top1_rank > 0 else 0
    return objective.alpha + weight * (steepest(kd, **objective.divergence_parameters()) + rank)


def scaled_(gradient: Tensor) -> Tensor:
    """Multiplies the rows of a (rows, vocab) gradient by what their largest entries allow in fp16: (rows,) factors."""
    scales = scale_for(torch.linalg.vector_norm(gradient, ord=math.inf, dim=-1, keepdim=True))
    gradient.mul_(scales)
    return scales.squeeze(-1)


def scale_for(bound: Tensor) -> Tensor:
    """The factor for rows whose gradient stays below a bound, a power of two."""
    _, exponent = torch.frexp(bound / SMALL)  # bound / SMALL <= 2^exponent
    return torch.ldexp(torch.full_like(bound, STEP), -exponent.clamp(min=0))
