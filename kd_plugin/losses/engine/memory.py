"""Memory for large tensors."""

import math
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

# bytes of logits to compute at a time: large enough for matrix products at full speed, and because the fused head reads
# and writes the projection's whole gradient for each chunk
CHUNK_BYTES = {"cpu": 64 * 1024 * 1024, "cuda": 256 * 1024 * 1024}
# rows of our logits begin at a multiple of this many bytes. GPU threads and matrix products load 16 aligned bytes at
# once. On a CPU, compiled code needs rows that lie back to back
VECTOR_BYTES = {"cpu": 1, "cuda": 16}

Allocate = Callable[[Sequence[int], torch.dtype, torch.device], Tensor]  # like new_buffer


def new_buffer(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.empty, but on a CPU in numpy's memory, for which numpy requests huge pages.

    With ordinary pages, the first touch took a third of the loss's time.
    """
    size = math.prod(shape)
    if device.type != "cpu" or size == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = np.empty(size * torch.empty(0, dtype=dtype).element_size(), dtype=np.uint8)
    return torch.from_numpy(memory).view(dtype).view(*shape)


_scratch: Dict[Tuple[str, torch.dtype], Tensor] = {}


def scratch(name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As new_buffer, but on a CPU reuses the memory of the last call with this name, which must no longer be in use.

    The memory is kept until the process ends: even huge pages take about a hundredth of a projection's time to map and
    clear. On a GPU, PyTorch caches memory itself.
    """
    size = math.prod(shape)
    if device.type != "cpu":
        return new_buffer(shape, dtype, device)
    kept = _scratch.get((name, dtype))
    if kept is None or kept.numel() < size:
        kept = _scratch[name, dtype] = new_buffer((size,), dtype, device)
    return kept[:size].view(*shape)


def aligned(allocate: Allocate) -> Allocate:
    """As `allocate`, for (rows, vocab), with each row aligned to VECTOR_BYTES: there may be gaps between rows."""

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
        # so that a chunk's rows have the same alignment as rows of all logits that lie back to back
        rows = rows // VECTOR_BYTES["cuda"] * VECTOR_BYTES["cuda"] or rows
    return max(1, rows)


class LinearHead:
    """A decoder's output projection, from features to logits.

    Args:
        weight: (vocab, dimension)
        bias: (vocab,) or None
    """

    def __init__(self, weight: Tensor, bias: Optional[Tensor] = None):
        self.weight, self.bias = weight, bias

    def __call__(self, features: Tensor, allocate: Allocate = new_buffer) -> Tensor:
        """(rows, vocab) logits of (rows, dimension) features, without gradient, in memory from `allocate`."""
        out = allocate((features.size(0), self.weight.size(0)), features.dtype, features.device)
        if self.bias is None:
            return torch.mm(features, self.weight.t(), out=out)
        return torch.addmm(self.bias, features, self.weight.t(), out=out)

    def columns(self, start: int, stop: int) -> "LinearHead":
        """The projection onto some symbols of the vocabulary."""
        return LinearHead(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])


class ChunkBuffers:
    """One chunk's buffers, allocated once per call and reused by every chunk."""

    def __init__(self, shape: Tuple[int, int], dtype: torch.dtype, device: torch.device):
        self._new = lambda: torch.empty(shape, dtype=dtype, device=device)
        self._made: List[Tensor] = []
        self.start(shape[0])

    def start(self, n_rows: int) -> None:
        """Marks all buffers as free."""
        self._n_rows, self._taken = n_rows, 0

    def take(self) -> Tensor:
        if self._taken == len(self._made):
            self._made.append(self._new())
        self._taken += 1
        buffer = self._made[self._taken - 1]
        return buffer if buffer.size(0) == self._n_rows else buffer[: self._n_rows]
