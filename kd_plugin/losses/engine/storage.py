"""Storage of a gradient in fp16, whose numbers end at 65,504 and lose digits below 6e-5.

Each row is stored multiplied by its own power of two, chosen beforehand from a bound on the entries of its gradient:
nothing overflows, and entries down to 2^-26 of the bound keep their digits. Nothing waits for the device. Most rows
have the same factor, STEP.
"""

import math
from typing import Optional, Union

import torch
from torch import Tensor

from kd_plugin.losses.definition import Objective
from kd_plugin.losses.divergences import DIVERGENCES

STEP = 1024.0  # the factor of rows whose gradient stays below SMALL
SMALL = 4.0  # so no stored entry exceeds 4,096, which leaves room for sums in matrix products


def new_scales(gradient: Tensor) -> Union[Tensor, None]:
    """(rows,) fp32 ones, for the factors of a (rows, vocab) gradient; None if its dtype needs none."""
    if gradient.dtype != torch.float16:
        return None
    return torch.ones(gradient.size(0), dtype=torch.float32, device=gradient.device)


def bound_is_known(objective: Objective) -> bool:
    """Whether `gradient_bound` works for the objective: a divergence without `steepest` has no bound."""
    return DIVERGENCES[objective.divergence].steepest is not None


def gradient_bound(objective: Objective, kd: Union[Tensor, float]) -> Union[Tensor, float]:
    """An upper bound of the entries of a row's gradient, given the row's divergence.

    The cross-entropy's share is alpha (p - smoothed one-hot), which is at most alpha. The divergence's is
    (1 - alpha) temperature (h - p sum h), and each divergence knows its bound of h - p sum h.

    So a finite loss has a finite gradient: the bound is a constant or, with T = temperature and w = 1 - alpha,
    alpha + w T (kd + 1/2), which is at most alpha + loss / T + w T / 2 for T >= 1, and alpha + kd + 1/2 for T < 1.
    """
    steepest = DIVERGENCES[objective.divergence].steepest
    assert steepest is not None
    weight = (1.0 - objective.alpha) * objective.temperature
    if weight == 0.0:  # a divergence with weight 0 may be infinite
        return torch.full_like(kd, objective.alpha) if isinstance(kd, Tensor) else objective.alpha
    # ranking term: h is p times a number from -2 k to 2 k, and sum h, the term itself, is at most k + 1
    rank = 3 * objective.top1_rank + 1 if objective.top1_rank > 0 else 0
    return objective.alpha + weight * (steepest(kd, **objective.divergence_parameters()) + rank)


def scale_of_all(objective: Objective, distilled: bool) -> Optional[float]:
    """The factor common to all rows if it does not depend on a row's divergence, else None.

    distilled: whether there is a teacher; without one only the cross-entropy counts
    """
    if not distilled:
        return STEP
    if not bound_is_known(objective):
        return None
    bound = gradient_bound(objective, math.nan)
    return None if math.isnan(bound) else scale_for(torch.tensor(bound)).item()


def scale_for(bound: Tensor) -> Tensor:
    """The factor, a power of two, for rows whose gradient stays below a bound."""
    _, exponent = torch.frexp(bound / SMALL)  # bound / SMALL <= 2^exponent
    return torch.ldexp(torch.full_like(bound, STEP), -exponent.clamp(min=0))
