"""The best entries of rows, several times faster than torch.topk on a CPU."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def top_indices(values: Tensor, k: int, block: int = 64) -> Tensor:
    """(tokens, k) indices of the k largest of (tokens, vocab) entries, largest first.

    They lie in the k blocks with the largest maxima.
    """
    tokens, vocab = values.shape
    n_blocks = vocab // block
    if n_blocks <= 2 * k or values.is_cuda:
        return values.topk(k, dim=-1).indices
    maxima = values[:, : n_blocks * block].unflatten(-1, (n_blocks, block)).amax(dim=-1)
    chosen = maxima.topk(k, dim=-1).indices
    candidates = (chosen.unsqueeze(-1) * block + torch.arange(block, device=values.device)).flatten(1)
    rest = torch.arange(n_blocks * block, vocab, device=values.device).expand(tokens, -1)
    candidates = torch.cat([candidates, rest], dim=-1)
    return candidates.gather(-1, values.gather(-1, candidates).topk(k, dim=-1).indices)


def largest(values: Tensor, k: int) -> Tensor:
    """(tokens, k) the k largest of (tokens, vocab) entries, largest first."""
    if values.is_cuda:
        return values.topk(k, dim=-1).values
    # numpy's vectorised partition and sort take a twentieth of torch's time
    below = values.size(-1) - k
    parted = np.partition(values.numpy(), below, axis=-1)[:, below:] if below > 0 else values.numpy()
    return torch.from_numpy(np.sort(parted, axis=-1)[:, ::-1].copy())


def compiled_finder(device: torch.device, vocab: int, k: int) -> Any:
    """The compiled kernels with `top_entries` and `top_of_product` if they support this case, else None."""
    from kd_plugin.losses.engine import dispatch  # here, to break a cycle: it imports divergences.py, which imports us

    kernels = dispatch.kernels_for("cpu") if device.type == "cpu" else None
    return kernels if kernels is not None and kernels.finds_best(vocab, k) else None
