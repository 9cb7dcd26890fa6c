"""Inner states of transformers' encoder–decoders, at fairseq's positions. What each one is: kd_plugin.models.states."""

from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from kd_plugin.errors import KDPluginError
from kd_plugin.models.states import SIDES, Shape, Side, StateKey, States
from kd_plugin.teachers.member import at_rows


class Positions(NamedTuple):
    """Where fairseq's positions of one side are in the model's.

    places:  (positions,) in the flattened (batch * length), of the positions that count
    columns: (batch, fairseq's length) within the sentence; arbitrary for padding
    real:    (batch, fairseq's length) bool, what is not padding
    """

    places: Tensor
    columns: Tensor
    real: Tensor


class _Modules(NamedTuple):
    """The parts of a layer."""

    layer: Any
    self_attention: Any
    cross_attention: Any
    projections: Dict[str, Any]


def _modules(model: Any, side: str) -> List[_Modules]:
    stack = model.get_encoder() if side == "encoder" else model.get_decoder()
    found = []
    for layer in getattr(stack, "block", None) or getattr(stack, "layers", None) or []:
        if hasattr(layer, "layer"):  # T5
            parts = layer.layer
            own, cross = parts[0].SelfAttention, getattr(parts[1], "EncDecAttention", None)
            projections = {"query": own.q, "key": own.k, "value": own.v}
        else:
            own, cross = layer.self_attn, getattr(layer, "encoder_attn", None)
            projections = {"query": own.q_proj, "key": own.k_proj, "value": own.v_proj}
        found.append(_Modules(layer, own, cross, projections))
    return found


def shape_of(model: Any) -> Optional[Shape]:
    """Its sizes; None if its layers are not built as those of Marian, M2M100, mBART or T5 are."""
    config, sides = model.config, []
    try:
        for side in SIDES:
            layers = _modules(model, side)
            heads = getattr(config, f"{side}_attention_heads", None) or config.num_heads
            sides.append(Side(len(layers), int(config.d_model), int(heads)))
    except AttributeError:
        return None
    return Shape(sides[0], sides[1]) if all(side.layers for side in sides) else None


class StatesRecorder:
    """Collects states while the model computes: use it as a context.

    Args:
        model: of transformers
        keys: the states
    """

    def __init__(self, model: Any, keys: FrozenSet[StateKey]):
        self._model, self._keys = model, keys
        self._modules = {side: _modules(model, side) for side in SIDES}
        self._found: Dict[StateKey, Tensor] = {}
        self._handles: List[Any] = []
        self._implementations: List[Tuple[Any, Any]] = []

    @property
    def wants_attention(self) -> bool:
        """Whether the attention's probabilities are needed, which the fast implementations do not give."""
        return any(key.what in ("self", "cross") for key in self._keys)

    def __enter__(self) -> "StatesRecorder":
        if self.wants_attention:
            configs = {
                id(module.config): module.config for module in self._model.modules() if hasattr(module, "config")
            }
            for config in configs.values():
                self._implementations.append((config, config._attn_implementation))
                config._attn_implementation = "eager"
        for key in self._keys:
            self._watch(key)
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        for config, implementation in self._implementations:
            config._attn_implementation = implementation

    def _watch(self, key: StateKey) -> None:
        parts = self._modules[key.side][key.layer]
        if key.what == "output":
            watched = parts.layer
            if key.layer == len(self._modules[key.side]) - 1:  # after the final layer norm
                watched = self._model.get_encoder() if key.side == "encoder" else self._model.get_decoder()
        elif key.what in ("self", "cross"):
            watched = parts.self_attention if key.what == "self" else parts.cross_attention
        else:
            watched = parts.projections[key.what]

        def note(module: Any, args: Any, output: Any) -> None:
            if key.what in ("self", "cross"):
                self._found[key] = _probabilities(output)
            else:
                self._found[key] = output if isinstance(output, Tensor) else output[0]

        self._handles.append(watched.register_forward_hook(note))

    def states(self, positions: Dict[str, Positions]) -> States:
        """The states at fairseq's positions; attention to symbols that fairseq does not have is left out, and the rest
        renormalised.

        Args:
            positions: of each side
        """
        found = {}
        for key in self._keys:
            value, rows = self._found[key], positions[key.side].places
            if key.what in ("self", "cross"):
                keys = positions["encoder" if key.what == "cross" else key.side]
                columns = keys.columns[:, None, None, :].expand(*value.shape[:3], -1)
                value = value.float().gather(3, columns) * keys.real[:, None, None, :]
                value = value.transpose(1, 2)
                value = value.reshape(-1, *value.shape[2:]).index_select(0, rows)
                value = value / value.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(value.dtype).tiny)
                found[key] = value
            else:
                found[key] = at_rows(rows, value)
        return found


def _probabilities(output: Any) -> Tensor:
    """The attention's probabilities among the outputs of its module; T5 also returns its position bias, before them."""
    tensors = [part for part in output if isinstance(part, Tensor) and part.dim() == 4]
    if not tensors:
        raise KDPluginError(
            "--kd-attention: this version of transformers does not give this teacher's attention. Remedy: another "
            "version of transformers, or train without --kd-attention"
        )
    return tensors[-1]
