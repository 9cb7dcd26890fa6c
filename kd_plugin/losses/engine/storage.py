"""How a gradient is kept in fp16, whose numbers end at 65,504 and lose digits below 6e-5.

A row is stored multiplied by a power of two of its own, which is chosen before it is written, from a bound that no
entry of its gradient exceeds: nothing overflows, and entries down to a 2^26th of the bound keep their digits. Nothing
waits for the device. Most rows have the same factor, STEP.
"""

import math
from typing import Optional, Union

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


def bound_is_known(objective: Objective) -> bool:
    """Whether `gradient_bound` has one for the objective: of new divergences it has not."""
    return DIVERGENCES[objective.divergence].steepest is not None


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


def scale_of_all(objective: Objective, distilled: bool) -> Optional[float]:
    """The factor of every row where it does not depend on the row's divergence, else None.

    distilled: there is a teacher; without one only the cross-entropy is left
    """
    if not distilled:
        return STEP
    if not bound_is_known(objective):
        return None
    bound = gradient_bound(objective, math.nan)
    return None if math.isnan(bound) else scale_for(torch.tensor(bound)).item()


def scale_for(bound: Tensor) -> Tensor:
    """The factor for rows whose gradient stays below a bound, a power of two."""
    _, exponent = torch.frexp(bound / SMALL)  # bound / SMALL <= 2^exponent
    return torch.ldexp(torch.full_like(bound, STEP), -exponent.clamp(min=0))
