"""A layer norm in a narrower basis.

Let n be the teacher's normalised hidden state and u = Pᵀ n its part in the basis P. The student's norm gives u / s,
where s restores the mean square that its coordinates lose. The teacher's output is g n + b. Its gain g acts on
coordinates, which the basis mixes, so no gain of the student gives Pᵀ (g n) exactly: it gets the nearest one. Whatever
reads the norm's output gets the best map back to the teacher's, so only residual connections and tied output
projections keep that error.
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from kd_plugin.initialise.basis import Basis

RIDGE = 1e-6  # of the mean variance: keeps a map from directions that the sample hardly has
SMALLEST = 0.05  # of the mean gain: readers divide by gains


class Read(NamedTuple):
    """The teacher's hidden states from the student's: y_T = map y_S + shift.

    map: (teacher's width, student's width). shift: (teacher's width,)
    """

    map: Tensor
    shift: Tensor

    def weight(self, weight: Tensor) -> Tensor:
        return weight @ self.map

    def bias(self, weight: Tensor, bias: Tensor) -> Tensor:
        return bias + weight @ self.shift


class Norm(NamedTuple):
    """A student's layer norm. error: of its output, relative to the teacher's in the basis"""

    gain: Tensor
    bias: Tensor
    read: Read
    error: float


def narrow_norm(pair: Tuple[Tensor, Tensor], basis: Basis, moments: Optional[Tensor], divisor: float) -> Norm:
    """The student's norm for a teacher's.

    Args:
        pair: the teacher's gain and bias, float64
        moments: (width, width) second moments of n on sample text; None: n is equally large in all directions
        divisor: the student's output is divided by it
    """
    gain, bias = pair
    if basis.is_whole:
        return Norm(gain / divisor, bias / divisor, Read(basis.map * divisor, torch.zeros_like(bias)), 0.0)
    p, (width, dim) = basis.map, basis.map.shape
    share = basis.kept if moments is None else float((p.T @ moments @ p).trace() / moments.trace())
    if moments is None:
        moments = torch.eye(width, dtype=torch.float64)
    scale = (share * width / dim) ** 0.5
    inner = p.T @ moments @ p  # of u uᵀ
    gained = p.T @ (gain.unsqueeze(1) * moments) @ p  # of Pᵀ(g n) uᵀ
    wanted = ((p.T * gain) @ moments @ (p.T * gain).T).diagonal()  # of (Pᵀ(g n))²
    nearest = gained.diagonal() / inner.diagonal()
    least = nearest.abs().mean() * SMALLEST
    nearest = torch.where(nearest.abs() < least, least, nearest)
    error = (nearest.square() * inner.diagonal() - 2 * nearest * gained.diagonal() + wanted).clamp(min=0).sum()
    new_bias = p.T @ bias
    # n = M u with M the regression on the sample; u = (y - new_bias) / nearest
    steady = inner + torch.eye(dim, dtype=torch.float64) * (RIDGE * inner.trace() / dim)
    mapped = gain.unsqueeze(1) * torch.linalg.solve(steady, p.T @ moments).T / nearest
    read = Read(mapped * divisor, bias - mapped @ new_bias)
    return Norm(nearest * scale / divisor, new_bias / divisor, read, float((error / wanted.sum()).sqrt()))
