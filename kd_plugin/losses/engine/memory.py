"""Memory for large tensors."""

import math
from typing import Callable, Dict, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

# bytes of logits that are made at a time where all of them are not wanted at once: large enough for matrix products at
# full speed, and since the fused head reads and writes its projection's whole gradient with each such chunk
CHUNK_BYTES = {"cpu": 64 * 1024 * 1024, "cuda": 256 * 1024 * 1024}
# rows of logits that we make begin at a multiple of so many bytes. A GPU's threads load 16 at once, and only from
# there; so do matrix products. On a CPU compiled code takes rows that lie back to back
VECTOR_BYTES = {"cpu": 1, "cuda": 16}

Allocate = Callable[[Sequence[int], torch.dtype, torch.device], Tensor]  # as new_buffer


def new_buffer(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.empty; on a CPU numpy's memory, for which it asks the kernel for huge pages.

    The first touch of ordinary pages took a third of the whole loss.
    """
    size = math.prod(shape)
    if device.type != "cpu" or size == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = np.empty(size * torch.empty(0, dtype=dtype).element_size(), dtype=np.uint8)
    return torch.from_numpy(memory).view(dtype).view(*shape)


_scratch: Dict[Tuple[str, torch.dtype], Tensor] = {}


def scratch(name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As new_buffer, but on a CPU the memory of the last call of this name, which must no longer be in use.

    It is kept until the process ends: even huge pages cost some hundredth of a projection to find and to clear. On a
    GPU PyTorch keeps memory itself.
    """
    size = math.prod(shape)
    if device.type != "cpu":
        return new_buffer(shape, dtype, device)
    kept = _scratch.get((name, dtype))
    if kept is None or kept.numel() < size:
        kept = _scratch[name, dtype] = new_buffer((size,), dtype, device)
    return kept[:size].view(*shape)


def aligned(allocate: Allocate) -> Allocate:
    """The same for (rows, vocab), but each row begins at VECTOR_BYTES: where the vocabulary is odd, rows lie apart."""

    def rows(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        size = torch.empty(0, dtype=dtype).element_size()
        width = _row_bytes(shape[-1], size, device) // size
        return allocate((*shape[:-1], width), dtype, device)[..., : shape[-1]]

    return rows


def _row_bytes(vocab: int, element_size: int, device: torch.device) -> int:
    vector = VECTOR_BYTES.get(device.type, VECTOR_BYTES["cuda"])
    return -(-vocab * element_size // vector) * vector


def projected_rows(vocab: int, element_size: int, device: torch.device) -> int:
    """How many rows of logits fill a chunk."""
    width = _row_bytes(vocab, element_size, device)
    rows = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // width
    if width != vocab * element_size:
        # a chunk's rows begin in a vector where the rows of all logits do, if these lie back to back
        rows = rows // VECTOR_BYTES["cuda"] * VECTOR_BYTES["cuda"] or rows
    return max(1, rows)


class LinearHead:
    """A decoder's output projection: from features to logits.

    Args:
        weight: (vocab, dimension)
        bias: (vocab,) or None
    """

    def __init__(self, weight: Tensor, bias: Optional[Tensor] = None):
        self.weight, self.bias = weight, bias

    def __call__(self, features: Tensor, allocate: Allocate = new_buffer) -> Tensor:
        """(rows, vocab) logits of (rows, dimension) features, without gradient, in what allocate gives."""
        out = allocate((features.size(0), self.weight.size(0)), features.dtype, features.device)
        if self.bias is None:
            return torch.mm(features, self.weight.t(), out=out)
        return torch.addmm(self.bias, features, self.weight.t(), out=out)

    def columns(self, start: int, stop: int) -> "LinearHead":
        """The projection to some symbols of the vocabulary."""
        return LinearHead(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])
