"""Fewer units of a feed-forward layer."""

from typing import List, NamedTuple, Optional, Tuple

from torch import Tensor


class UnitStatistics(NamedTuple):
    """Of each unit on sample text, (units,): root mean square and mean of its activation."""

    size: Tensor
    mean: Tensor


def strongest_units(first: Tensor, second: Tensor, number: int, statistics: Optional[UnitStatistics]) -> List[int]:
    """The units that write most, in their order.

    Args:
        first, second: the weights of fc1 (units, width) and fc2 (width, units)
        number: how many to keep
        statistics: without them, the size of an activation is that of the unit's input weights
    """
    size = statistics.size if statistics is not None else first.norm(dim=1)
    return sorted((size * second.norm(dim=0)).argsort(descending=True)[:number].tolist())


def bias_without(second: Tuple[Tensor, Tensor], kept: List[int], statistics: Optional[UnitStatistics]) -> Tensor:
    """fc2's bias, with what the other units write on average on sample text."""
    weight, bias = second
    if statistics is None:
        return bias
    mean = statistics.mean.clone()
    mean[kept] = 0
    return bias + weight @ mean
