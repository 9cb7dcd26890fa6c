"""The features of a fairseq transformer, frozen or in training, without computing on padding.

fairseq computes every layer on a (length, batch) rectangle; on Multi30k, 14 % of the target positions are padding with
4,096 tokens per batch, 4 % with 1,024. Here the tokens of all sentences are packed into one (tokens, dimension) tensor,
to which fairseq's own modules are applied. Only the attention's queries, keys and values are unpacked into rectangles,
for PyTorch's attention.
"""

import contextlib
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase, TransformerModelBase
from fairseq.modules import FairseqDropout, MultiheadAttention
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor
from torch.nn import functional as F

from kd_plugin.compat import TORCH_VERSION

Mask = Dict[str, Any]  # keyword arguments for scaled_dot_product_attention
# 1.13 has no scaled_dot_product_attention; on GPUs, 2.1's is wrong for masked, non-contiguous fp32 inputs
# (https://github.com/pytorch/pytorch/issues/112577)
AVAILABLE = TORCH_VERSION >= (2, 2)
INPUTS = {"src_tokens", "src_lengths", "prev_output_tokens"}
FORWARDS = {
    TransformerModelBase: ["forward"],
    TransformerEncoderBase: ["forward", "forward_scriptable"],
    TransformerDecoderBase: ["forward", "extract_features", "extract_features_scriptable", "buffered_future_mask"],
    TransformerEncoderLayerBase: ["forward", "residual_connection"],
    TransformerDecoderLayerBase: ["forward", "residual_connection"],
    MultiheadAttention: ["forward", "apply_sparse_mask"],
}
DROPOUTS = ("dropout_module", "activation_dropout_module")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def can_pack(model: Any) -> bool:
    """Whether packed_features supports this model, and this torch is recent enough.

    True for fairseq's transformers, in all their architectures, with fairseq's own forward methods and without hooks.
    """
    if not AVAILABLE or not _is_stock(model, TransformerModelBase) or (model.training and has_hooks(model)):
        return False
    encoder: Any = getattr(model, "encoder", None)
    decoder: Any = getattr(model, "decoder", None)
    return (
        _is_stock(encoder, TransformerEncoderBase)
        and _is_stock(decoder, TransformerDecoderBase)
        and not decoder.cross_self_attention
        # children(), because iterating over a LayerDropModuleList draws the layers to drop
        and all(_is_stock_layer(layer, TransformerEncoderLayerBase) for layer in encoder.layers.children())
        and all(_is_stock_layer(layer, TransformerDecoderLayerBase) for layer in decoder.layers.children())
    )


def has_hooks(model: torch.nn.Module) -> bool:
    """Whether any submodule has hooks. Quantisation noise is a hook on linear layers, which fairseq's attention never
    calls, because it reads their weights."""
    return any(getattr(module, name, None) for module in model.modules() for name in HOOKS)


def _is_stock(module: Any, base: Any) -> bool:
    """Whether it computes what `base` does: no subclass, instance attribute or hook has changed it."""
    return (
        isinstance(module, base)
        and all(
            getattr(type(module), name) is getattr(base, name) and name not in vars(module) for name in FORWARDS[base]
        )
        and not any(getattr(module, name, None) for name in HOOKS)
        and all(_is_plain_dropout(getattr(module, name, None)) for name in DROPOUTS)
    )


def _is_plain_dropout(dropout: Any) -> bool:
    """Whether it is fairseq's dropout or None; adapters sometimes take the place of a dropout module."""
    return dropout is None or (type(dropout) is FairseqDropout and not dropout.apply_during_inference)


def _is_stock_layer(layer: Any, base: Any) -> bool:
    attentions = ["self_attn", "encoder_attn"] if base is TransformerDecoderLayerBase else ["self_attn"]
    # the scales of NormFormer (Shleifer et al. 2021)
    scales = ("c_attn", "attn_ln", "ffn_layernorm", "w_resid")
    return (
        _is_stock(layer, base)
        and all(getattr(layer, name, None) is None for name in scales)
        and all(_is_plain_attention(getattr(layer, name)) for name in attentions)
    )


def _is_plain_attention(attention: Any) -> bool:
    return (
        _is_stock(attention, MultiheadAttention)
        and attention.bias_k is None
        and not attention.add_zero_attn
        and not getattr(attention, "use_xformers", False)
        # fairseq reads their weights, we call them: an adapter, say, would have an effect only here
        and all(type(getattr(attention, name)) is torch.nn.Linear for name in PROJECTIONS)
    )


def unwrapped(model: Any) -> Any:
    """The model without fairseq's and PyTorch's wrappers (DistributedDataParallel and others)."""
    while isinstance(getattr(model, "module", None), torch.nn.Module):
        model = model.module
    return model


class Layout:
    """Maps between a (batch, length) rectangle of tokens and the packed tokens.

    Args:
        tokens: (batch, length) symbols
        padding_idx: the symbol to leave out
        rows: positions in the flattened rectangle to pack even if they hold padding
    """

    def __init__(self, tokens: Tensor, padding_idx: int, rows: Optional[Tensor] = None):
        self.shape = tokens.shape
        real = tokens.ne(padding_idx)
        kept = real.flatten() if rows is None else real.flatten().index_fill(0, rows, True)
        self._from = kept.nonzero().squeeze(1)  # (packed,) position in the rectangle
        self._to = (kept.cumsum(0) - 1).clamp_(min=0)  # (batch * length,) packed position; arbitrary for padding
        self._full = self._from.numel() == kept.numel()
        self._keys = real[:, None, None, :]
        # whether all padding is at the end, so that no token comes after it
        self._ends_padded = bool((real[:, 1:] <= real[:, :-1]).all() & (kept == real.flatten()).all())

    def mask(self) -> Mask:
        """The mask for attention to these tokens: hides padding."""
        return {} if self._full and self._ends_padded else {"attn_mask": self._keys}

    def causal_mask(self) -> Mask:
        """The same, and hides later tokens."""
        if self._ends_padded:
            return {"is_causal": True}
        past = torch.ones(self.shape[1], self.shape[1], dtype=torch.bool, device=self._to.device).tril()
        seen = self._keys & past
        # a padding position that sees nothing would give NaN, also in every gradient: let it see itself
        itself = torch.eye(self.shape[1], dtype=torch.bool, device=self._to.device)
        return {"attn_mask": seen | (itself & ~seen.any(dim=-1, keepdim=True))}

    def pack(self, values: Tensor) -> Tensor:
        """From (batch, length, ...) to (packed, ...)."""
        values = values.flatten(0, 1)
        return values if self._full else values.index_select(0, self._from)

    def spread(self, values: Tensor) -> Tensor:
        """From (packed, dimension) to (batch, length, dimension), with arbitrary values for padding."""
        values = values if self._full else values.index_select(0, self._to)
        return values.view(*self.shape, -1)

    def places(self, rows: Tensor) -> Tensor:
        """Packed positions of positions in the flattened rectangle."""
        return rows if self._full else self._to[rows]


def packed_features(model: Any, net_input: Dict[str, Tensor], rows: Tensor) -> Tensor:
    """`model(**net_input, features_only=True)` at some target positions.

    Sums have the same terms as in fairseq, in an order that depends on the tensors' shapes: fp32 features differ in
    the last bits. In training, dropout is fairseq's, but all modules except the encoder's first draw numbers for tokens
    only, so the random numbers differ.

    Args:
        model: one that `can_pack` accepts
        net_input: fairseq's {src_tokens, src_lengths, prev_output_tokens}
        rows: (tokens,) int64, positions in the flattened (batch * target length)

    Returns:
        (tokens, dimension) features, which the output projection turns into logits
    """
    encoder, decoder = model.encoder, model.decoder
    source = Layout(net_input["src_tokens"], encoder.padding_idx)
    target = Layout(net_input["prev_output_tokens"], decoder.padding_idx, rows)
    memory = _encode(encoder, net_input["src_tokens"], source)
    features = _decode(decoder, net_input["prev_output_tokens"], target, memory, source)
    return features.index_select(0, target.places(rows))


@contextlib.contextmanager
def packed_forward(model: Any, rows: Tensor) -> Iterator[None]:
    """Within this context, `model(**net_input)` answers for these target positions alone, packed.

    You call the model as usual, so its wrappers (DistributedDataParallel, say) keep working.

    Args:
        model: one that `can_pack` accepts; it returns a pair of (tokens, vocab) logits, or (tokens, dimension) features
            with `features_only`, and None
        rows: (tokens,) as for `packed_features`
    """

    def forward(features_only: bool = False, **net_input: Tensor) -> Tuple[Tensor, None]:
        features = packed_features(model, net_input, rows)
        return (features if features_only else model.decoder.output_layer(features)), None

    model.forward = forward
    try:
        yield
    finally:
        del model.forward


def _encode(encoder: Any, tokens: Tensor, layout: Layout) -> Tensor:
    x = layout.pack(encoder.forward_embedding(tokens)[0])
    for layer in encoder.layers:
        x = _self_attention(layer, x, layout, layout.mask())
        x = _feed_forward(layer, x)
    return x if encoder.layer_norm is None else encoder.layer_norm(x)


def _decode(decoder: Any, tokens: Tensor, layout: Layout, memory: Tensor, source: Layout) -> Tensor:
    x = decoder.embed_scale * decoder.embed_tokens(tokens)
    for embedding_layer in (decoder.quant_noise, decoder.project_in_dim):
        x = x if embedding_layer is None else embedding_layer(x)
    if decoder.embed_positions is not None:
        x = x + decoder.embed_positions(tokens)
    x = layout.pack(x)
    if decoder.layernorm_embedding is not None:
        x = decoder.layernorm_embedding(x)
    x = decoder.dropout_module(x)
    past = layout.causal_mask()
    for layer in decoder.layers:
        x = _self_attention(layer, x, layout, past)
        x = _source_attention(layer, x, layout, memory, source)
        x = _feed_forward(layer, x)
    for last_layer in (decoder.layer_norm, decoder.project_out_dim):
        x = x if last_layer is None else last_layer(x)
    return x


def _self_attention(layer: Any, x: Tensor, layout: Layout, mask: Mask) -> Tensor:
    def attend(x: Tensor) -> Tensor:
        return _attend(layer.self_attn, x, layout, x, layout, mask)

    return _with_residual(attend, x, layer, layer.self_attn_layer_norm)


def _source_attention(layer: Any, x: Tensor, layout: Layout, memory: Tensor, source: Layout) -> Tensor:
    def attend(x: Tensor) -> Tensor:
        return _attend(layer.encoder_attn, x, layout, memory, source, source.mask())

    return _with_residual(attend, x, layer, layer.encoder_attn_layer_norm)


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    def feed(x: Tensor) -> Tensor:
        hidden = layer.fc1(x)
        hidden = hidden.relu_() if layer.activation_fn is F.relu else layer.activation_fn(hidden)
        return layer.fc2(layer.activation_dropout_module(hidden))

    return _with_residual(feed, x, layer, layer.final_layer_norm)


def _with_residual(compute: Callable[[Tensor], Tensor], x: Tensor, layer: Any, norm: Any) -> Tensor:
    """The sum of (packed, dimension) x and compute(x), with the layer norm before or after."""
    y = layer.dropout_module(compute(norm(x) if layer.normalize_before else x))
    # under autocast, the sum may have a wider dtype than y
    y = y.add_(x) if y.dtype == x.dtype and not y.requires_grad else y + x
    return y if layer.normalize_before else norm(y)


def _attend(attention: Any, x: Tensor, layout: Layout, memory: Tensor, source: Layout, mask: Mask) -> Tensor:
    """Multi-head attention from packed x to packed memory."""

    def heads(projected: Tensor, where: Layout) -> Tensor:
        spread = where.spread(projected)
        return spread.view(*where.shape, attention.num_heads, attention.head_dim).transpose(1, 2)

    query, key = heads(attention.q_proj(x), layout), heads(attention.k_proj(memory), source)
    dropout = attention.dropout_module.p if attention.training else 0.0
    value = heads(attention.v_proj(memory), source)
    attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, **mask)
    return attention.out_proj(layout.pack(attended.transpose(1, 2).flatten(2)))
