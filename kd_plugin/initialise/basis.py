"""The narrower space of a student's hidden states: an orthonormal basis in the teacher's.

A layer norm subtracts the mean of the coordinates, so the basis maps the teacher's direction (1, …, 1) to the
student's: the student's layer norms then subtract what the teacher's do. The other directions are those in which the
teacher's embeddings (and, on sample text, its hidden states) vary most: their right singular vectors. The basis is then
turned within its space so that the teacher's sinusoidal positions come as near as possible to the student's, which
fairseq computes for its own width.
"""

from typing import NamedTuple, Tuple

import torch
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor

POSITIONS = 128  # the first of them matter most: few sentences are longer


class Basis(NamedTuple):
    """map: (teacher's width, student's width), orthonormal columns. kept: share of the energy within it"""

    map: Tensor
    kept: float

    @property
    def is_whole(self) -> bool:
        return self.map.size(0) == self.map.size(1)


def identity(dim: int) -> Basis:
    return Basis(torch.eye(dim, dtype=torch.float64), 1.0)


def basis_of(moments: Tensor, dim: int, sinusoidal: bool) -> Basis:
    """A basis for hidden states with these second moments.

    Args:
        moments: (width, width) float64, the mean of x xᵀ over what the stream holds
        dim: the student's width
        sinusoidal: whether the side has sinusoidal positions
    """
    width = moments.size(0)
    mean = torch.full((width, 1), width**-0.5, dtype=torch.float64)
    others = moments - mean @ (mean.T @ moments)
    others = others - (others @ mean) @ mean.T
    values, vectors = torch.linalg.eigh(others)
    chosen = vectors[:, -(dim - 1) :] if dim > 1 else vectors[:, :0]
    chosen = chosen - mean @ (mean.T @ chosen)
    chosen = torch.linalg.qr(chosen)[0]
    kept = float(values[values.numel() - (dim - 1) :].sum() / values.clamp(min=0).sum())
    target_mean, rest = _complement(dim)
    if sinusoidal:
        theirs, ours = sinusoids(width) @ chosen, sinusoids(dim) @ rest
        left, _, right = torch.linalg.svd(theirs.T @ ours)
        chosen = chosen @ (left @ right)
    return Basis(mean @ target_mean.T + chosen @ rest.T, kept)


def sinusoids(dim: int, number: int = POSITIONS) -> Tensor:
    """(number, dim) float64: fairseq's positions; a sentence's first is padding_idx + 1 = 2."""
    table: Tensor = SinusoidalPositionalEmbedding.get_embedding(number + 2, dim, None)
    return table[2:].double()


def second_moments(rows: Tensor) -> Tensor:
    """(width, width) float64: the mean of x xᵀ."""
    rows = rows.double()
    return rows.T @ rows / max(1, rows.size(0))


def _complement(dim: int) -> Tuple[Tensor, Tensor]:
    """The unit vector along (1, …, 1), and an orthonormal basis of what is orthogonal to it."""
    mean = torch.full((dim, 1), dim**-0.5, dtype=torch.float64)
    start = torch.cat([mean, torch.eye(dim, dtype=torch.float64)[:, : dim - 1]], dim=1)
    turned = torch.linalg.qr(start)[0]
    return mean, turned[:, 1:]
