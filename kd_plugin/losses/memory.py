"""Memory for large tensors."""

import math
from typing import Optional, Sequence

import numpy as np
import torch
from torch import Tensor


def new_buffer(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.empty; on a CPU numpy's memory, for which it asks the kernel for huge pages.

    The first touch of ordinary pages took a third of the whole loss.
    """
    size = math.prod(shape)
    if device.type != "cpu" or size == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = np.empty(size * torch.empty(0, dtype=dtype).element_size(), dtype=np.uint8)
    return torch.from_numpy(memory).view(dtype).view(*shape)


def linear(features: Tensor, weight: Tensor, bias: Optional[Tensor] = None, out: Optional[Tensor] = None) -> Tensor:
    """torch.nn.functional.linear of (rows, dimension) features without gradient, into `out` or a new_buffer."""
    if out is None:
        out = new_buffer((features.size(0), weight.size(0)), features.dtype, features.device)
    if bias is None:
        return torch.mm(features, weight.t(), out=out)
    return torch.addmm(bias, features, weight.t(), out=out)
