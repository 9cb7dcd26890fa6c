"""Checks that a model's weights are finite, and stay finite in the dtype that it will compute in."""

from typing import Any, Dict, Mapping, Tuple

import torch
from torch import Tensor

from kd_plugin.compat import BETTER_TRANSFORMER_COPY
from kd_plugin.errors import KDPluginError

# what fairseq stores among the weights but never computes with: one-element markers, of which 0.12.2 leaves
# _float_tensor uninitialised, and lightconv's bias of dynamic convolutions, which is whatever the memory held
MARKERS = ("version", "_float_tensor", ".conv.conv_bias")
PARAMETERS = ("weight", "bias", "weight_g", "weight_v")


def check_finite(state: Mapping[str, Any], path: str) -> None:
    """Refuses NaN or infinite weights, with which a model's results would be NaN or silently wrong.

    Args:
        state: a model's state_dict, or the `model` of a checkpoint
    """
    weights = _weights(state)
    bad = [name for name, weight in weights.items() if not _is_finite(name, weight)]
    if not bad:
        return
    first = weights[bad[0]]
    wrong = first.numel() - int(torch.isfinite(first).sum())
    raise KDPluginError(
        f"{path}: {len(bad)} of its {len(weights)} tensors hold NaN or infinite values; the first is {bad[0]} "
        f"({wrong:,} of {first.numel():,} values). Remedy: if its training diverged, an earlier checkpoint; if the "
        "file is damaged, copy it again"
    )


def check_range(model: Any, dtype: torch.dtype, path: str, remedy: str) -> None:
    """Refuses a dtype in which finite weights would become infinite, as in float16 above 65,504.

    Args:
        model: with finite weights
    """
    largest = {name: _magnitude(weight) for name, weight in _weights(model.state_dict()).items()}
    limit, name = torch.finfo(dtype).max, str(dtype).replace("torch.", "")
    # a value slightly above the limit is rounded down to it
    beyond = [name for name, size in largest.items() if size > limit and torch.tensor(size).to(dtype).isinf()]
    if beyond:
        raise KDPluginError(
            f"{path}: {len(beyond)} of its {len(largest)} tensors hold values that {name} cannot hold (up to "
            f"{limit:,.0f}); the first is {beyond[0]}, up to {largest[beyond[0]]:.4g}. Remedy: {remedy}"
        )


def own_tensors(state: Mapping[str, Any]) -> Dict[str, Tensor]:
    """The tensors of a state_dict that a model computes with; tied ones, which share memory, once."""
    found: Dict[Tuple[int, int], Tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        if torch.is_tensor(tensor) and not name.endswith(MARKERS) and not BETTER_TRANSFORMER_COPY.search(name):
            found.setdefault((tensor.data_ptr(), tensor.numel()), (name, tensor.detach()))
    return dict(found.values())


def _weights(state: Mapping[str, Any]) -> Dict[str, Tensor]:
    return {name: t for name, t in own_tensors(state).items() if t.is_floating_point() and t.numel()}


def _magnitude(weight: Tensor) -> float:
    """The largest absolute value; NaN if the weight contains NaN."""
    smallest, largest = torch.aminmax(weight if weight.dtype in (torch.float32, torch.float64) else weight.float())
    return float(torch.maximum(smallest.abs(), largest.abs()))


def _is_finite(name: str, weight: Tensor) -> bool:
    size = _magnitude(weight)
    # other tensors may contain -inf, such as an attention mask saved with the weights
    return size == size and (size != float("inf") or not name.endswith(PARAMETERS))
