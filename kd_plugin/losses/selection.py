"""Which target tokens to distil: those on which the student is worst (Wang et al. 2021, "Selective Knowledge
Distillation for Neural Machine Translation", https://aclanthology.org/2021.acl-long.504).

Tokens are ordered by the student's cross-entropy. Tokens that are not selected keep their cross-entropy term. A rule
sees the cross-entropies of all ranks' batches, without padding, so it uses the same threshold everywhere.

To add a rule, write its class and add it to SELECTIONS.
"""

import math
from typing import Any, Callable, Dict, Optional, Type

import torch
from torch import Tensor


class SelectAll:
    """Every token: plain word-level distillation."""

    def __init__(self, ratio: float = 1.0, queue_size: int = 0):
        pass

    def __call__(self, nll: Tensor, nll_of_all_ranks: Tensor) -> Optional[Tensor]:
        """Which tokens to distil.

        Args:
            nll: (tokens,) the student's cross-entropy of each token of this rank's batch
            nll_of_all_ranks: (all tokens,) the same for every rank's batch, in the order of the ranks

        Returns:
            (tokens,) bool, or None for all tokens
        """
        return None

    def state_dict(self) -> Dict[str, Any]:
        """The state that a resumed run needs."""
        return {}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        pass


class SelectInBatch(SelectAll):
    """The fraction `ratio` of the batch, over all ranks, with the highest cross-entropy."""

    def __init__(self, ratio: float, queue_size: int = 0):
        self.ratio = ratio

    def __call__(self, nll: Tensor, nll_of_all_ranks: Tensor) -> Optional[Tensor]:
        return nll >= top_threshold(nll_of_all_ranks, self.ratio)


class SelectGlobally(SelectAll):
    """Tokens whose cross-entropy is in the highest fraction `ratio` of the last `queue_size` tokens.

    A batch enters the queue before its tokens are selected; the oldest tokens leave it.
    """

    def __init__(self, ratio: float, queue_size: int):
        self.ratio, self.queue_size = ratio, queue_size
        self.queue = torch.empty(0)

    def __call__(self, nll: Tensor, nll_of_all_ranks: Tensor) -> Optional[Tensor]:
        self.queue = torch.cat([self.queue.to(nll_of_all_ranks), nll_of_all_ranks])[-self.queue_size :]
        return nll >= top_threshold(self.queue, self.ratio)

    def state_dict(self) -> Dict[str, Any]:
        return {"queue": self.queue.cpu().clone()}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self.queue = state["queue"][-self.queue_size :].clone()


def top_threshold(values: Tensor, ratio: float) -> Tensor:
    """The value, 0-dim, that ceil(ratio * n) of the n values (with ties, more) reach or exceed."""
    n = values.numel()
    if n == 0:
        return values.new_zeros(())
    n_selected = max(1, math.ceil(ratio * n - 1e-9))  # 0.1 * 30 is a hair above 3
    return values.kthvalue(n - n_selected + 1).values


SELECTIONS: Dict[str, Type[SelectAll]] = {"all": SelectAll, "batch": SelectInBatch, "global": SelectGlobally}


def gather_from_ranks(values: Tensor, world_size: int, all_gather: Callable[[Tensor], Any]) -> Tensor:
    """Concatenates one-dimensional tensors of any length from all ranks.

    Args:
        values: (n,) from this rank; n may differ between ranks, and may be 0
        all_gather: given a tensor of the same shape on every rank, returns the list of all ranks' tensors
    """
    if world_size == 1:
        return values
    counts = [int(count) for count in all_gather(torch.tensor([values.numel()], device=values.device))]
    padded = values.new_zeros(max(counts))
    padded[: values.numel()] = values
    return torch.cat([gathered[:count] for gathered, count in zip(all_gather(padded), counts)])
