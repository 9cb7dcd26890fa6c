"""Inner states of a fairseq transformer: what its layers put out, and what their attention computes.

A layer's output is what the layer returns; the last layer's is what the next part of the model reads, after the final
layer norm if there is one. Layers count from 0, without the embedding.
"""

from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Tuple

import torch
from fairseq.models import FairseqEncoderModel
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase, TransformerModelBase
from fairseq.modules import MultiheadAttention
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor

from kd_plugin.errors import KDPluginError

SIDES = ("encoder", "decoder")
OF_ATTENTION = ("query", "key", "value", "self", "cross")


class StateKey(NamedTuple):
    """Names one inner state.

    what: output: (positions, width) of the layer
          query, key, value: (positions, width) of its self-attention, all heads side by side
          self, cross: (positions, heads, length) attention probabilities without dropout; 0 for hidden keys
    side: encoder (positions: the source tokens) or decoder (positions: the target tokens that count)
    """

    what: str
    side: str
    layer: int


States = Dict[StateKey, Tensor]


class Inner(NamedTuple):
    """A question about inner states.

    keys: which
    rows: (tokens,) positions in the flattened (batch * target length), for the decoder's states. The encoder's are at
          all source positions that are not padding, in the order of the flattened (batch * source length).
    """

    keys: FrozenSet[StateKey]
    rows: Tensor


class Side(NamedTuple):
    """The sizes of an encoder or a decoder."""

    layers: int
    width: int
    heads: int


NO_SIDE = Side(0, 0, 0)  # the decoder of a model that has none


class Shape(NamedTuple):
    """The sizes of a transformer, whose decoder may be NO_SIDE, and why its attention cannot be read ('' if it can)."""

    encoder: Side
    decoder: Side
    attention_hidden: str = ""

    def side(self, name: str) -> Side:
        """By its name in SIDES."""
        side: Side = getattr(self, name)
        return side


def part_of(model: Any, side: str) -> Any:
    """A transformer's encoder or decoder; None: it has none. RoBERTa's encoder has fairseq's inside."""
    part = getattr(model, side, None)
    return getattr(part, "sentence_encoder", part)


def layers_of(model: Any, side: str) -> List[Any]:
    """The layers of the encoder or decoder; children(), because iterating a LayerDropModuleList drops some."""
    part = part_of(model, side)
    return [] if part is None else list(part.layers.children())


def _size_of(layers: List[Any]) -> Side:
    return Side(len(layers), int(layers[0].embed_dim), int(layers[0].self_attn.num_heads))


def _shape_of_encoder(model: Any) -> Optional[Shape]:
    """As shape_of, for RoBERTa and its like."""
    encoder = getattr(getattr(model, "encoder", None), "sentence_encoder", None)
    if not isinstance(encoder, TransformerEncoderBase):
        return None
    layers = layers_of(model, "encoder")
    if not layers or not all(isinstance(layer, TransformerEncoderLayerBase) for layer in layers):
        return None
    return Shape(_size_of(layers), NO_SIDE, _why_attention_is_hidden(model))


def shape_of(model: Any) -> Optional[Shape]:
    """The sizes of a fairseq transformer, or of an encoder like RoBERTa's; None for any other model, whose states
    cannot be read."""
    if isinstance(model, FairseqEncoderModel):
        return _shape_of_encoder(model)
    encoder, decoder = getattr(model, "encoder", None), getattr(model, "decoder", None)
    if not (
        isinstance(model, TransformerModelBase)
        and isinstance(encoder, TransformerEncoderBase)
        and isinstance(decoder, TransformerDecoderBase)
        and not getattr(decoder, "cross_self_attention", False)
    ):
        return None
    sides = []
    for name, kind in zip(SIDES, (TransformerEncoderLayerBase, TransformerDecoderLayerBase)):
        layers = layers_of(model, name)
        if not layers or not all(isinstance(layer, kind) for layer in layers):
            return None
        sides.append(_size_of(layers))
    return Shape(sides[0], sides[1], _why_attention_is_hidden(model))


def _why_attention_is_hidden(model: Any) -> str:
    for side in SIDES:
        for layer in layers_of(model, side):
            if "forward" in vars(layer):  # checkpointing runs the layer without gradient first
                return "--checkpoint-activations keeps it from being read"
            for name in ("self_attn", "encoder_attn")[: 1 if side == "encoder" else 2]:
                attention = getattr(layer, name, None)
                if (
                    not isinstance(attention, MultiheadAttention)
                    or attention.bias_k is not None
                    or attention.add_zero_attn
                    or getattr(attention, "use_xformers", False)
                ):
                    return f"its {side} has an attention other than fairseq's"
    return ""


class Recorder:
    """Collects the states of one forward pass. hooks.py fills it from fairseq's own forward, packed.py
    directly.

    Args:
        model: without wrappers, one with a `shape_of`
        net_input: fairseq's, in the model's own symbols
    """

    def __init__(self, model: Any, net_input: Dict[str, Tensor], inner: Inner):
        self._model, self._keys = model, inner.keys
        self._real = {"encoder": net_input["src_tokens"].ne(part_of(model, "encoder").padding_idx)}
        if part_of(model, "decoder") is not None:
            self._real["decoder"] = net_input["prev_output_tokens"].ne(model.decoder.padding_idx)
        self.rows = {"encoder": self._real["encoder"].flatten().nonzero().squeeze(1), "decoder": inner.rows}
        self.side_of: Dict[Any, str] = {}  # the layers to record
        self.attentions: Dict[Any, Optional[Tuple[Tensor, Tensor, Tensor]]] = {}  # (batch, heads, length, head width)
        self._outputs: Dict[Any, Tensor] = {}
        for key in inner.keys:
            layer = layers_of(model, key.side)[key.layer]
            self.side_of[layer] = key.side
            if key.what in OF_ATTENTION:
                self.attentions[layer.encoder_attn if key.what == "cross" else layer.self_attn] = None

    def last(self, side: str) -> Any:
        """The side's last layer."""
        return layers_of(self._model, side)[-1]

    def output(self, layer: Any, at_rows: Tensor) -> None:
        """Notes a layer's output at the rows of its side."""
        if layer in self.side_of:
            self._outputs[layer] = at_rows

    def final_output(self, side: str, at_rows: Tensor) -> None:
        """Replaces the last layer's output by what its side returns, if the layer has run (see --decoder-layerdrop)."""
        if self.last(side) in self._outputs:
            self._outputs[self.last(side)] = at_rows

    def attention(self, attention: Any, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Notes the projections in an attention, (batch, heads, length, head width) each."""
        if attention in self.attentions:
            self.attentions[attention] = (query, key, value)

    def states(self) -> States:
        """What was asked for, except for layers that LayerDrop has left out of this pass.

        Raises:
            KDPluginError: a layer has run, but its attention could not be read
        """
        found: States = {}
        for key in self._keys:
            layer = layers_of(self._model, key.side)[key.layer]
            if layer not in self._outputs:
                continue
            if key.what == "output":
                found[key] = self._outputs[layer]
                continue
            parts = self.attentions[layer.encoder_attn if key.what == "cross" else layer.self_attn]
            if parts is None:
                raise KDPluginError(
                    f"the attention of {key.side} layer {key.layer} of {type(self._model).__name__} cannot be read, "
                    "because its code calls the layer in its own way. Remedy: --kd-hidden mse or cosine, without "
                    "--kd-attention"
                )
            found[key] = self._of_attention(key, *parts)
        return found

    def _of_attention(self, key: StateKey, query: Tensor, keys: Tensor, value: Tensor) -> Tensor:
        rows = self.rows[key.side]
        if key.what in ("self", "cross"):
            values = attention_probabilities(query, keys, self._visible(key))
        else:
            values = {"query": query, "key": keys, "value": value}[key.what]
        values = values.transpose(1, 2)  # (batch, length, heads, …)
        values = values.reshape(-1, *values.shape[2:]).index_select(0, rows)
        return values if key.what in ("self", "cross") else values.flatten(1)

    def _visible(self, key: StateKey) -> Tensor:
        """(batch, 1, 1 or length, keys) bool: which keys a position sees."""
        real = self._real["encoder" if key.what == "cross" else key.side]
        seen = real[:, None, None, :]
        if key.what == "cross" or key.side == "encoder":
            return seen
        length = real.size(1)
        seen = seen & torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
        # padding may see nothing: it would give NaN, also in every gradient
        itself = torch.eye(length, dtype=torch.bool, device=real.device)
        return seen | (itself & ~seen.any(dim=-1, keepdim=True))


def attention_probabilities(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    """(batch, heads, queries, keys) in fp32 (float64 of float64), of (batch, heads, length, head width) projections."""
    scores = (query * query.size(-1) ** -0.5) @ key.transpose(2, 3)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
