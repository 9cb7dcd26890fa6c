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
from kd_plugin.models.layout import Layout, Mask
from kd_plugin.models.states import Recorder

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


def packed_features(
    model: Any, net_input: Dict[str, Tensor], rows: Tensor, recorder: Optional[Recorder] = None
) -> Tensor:
    """`model(**net_input, features_only=True)` at some target positions.

    Sums have the same terms as in fairseq, in an order that depends on the tensors' shapes: fp32 features differ in
    the last bits. In training, dropout is fairseq's, but all modules except the encoder's first draw numbers for tokens
    only, so the random numbers differ.

    Args:
        model: one that `can_pack` accepts
        net_input: fairseq's {src_tokens, src_lengths, prev_output_tokens}
        rows: (tokens,) int64, positions in the flattened (batch * target length)
        recorder: receives inner states, of the same rows or some of them

    Returns:
        (tokens, dimension) features, which the output projection turns into logits
    """
    encoder, decoder = model.encoder, model.decoder
    source = Layout(net_input["src_tokens"], encoder.padding_idx)
    target = Layout(net_input["prev_output_tokens"], decoder.padding_idx, _all_rows(rows, recorder))
    memory = _encode(encoder, net_input["src_tokens"], source, recorder)
    features = _decode(decoder, net_input["prev_output_tokens"], target, memory, source, recorder)
    return features.index_select(0, target.places(rows))


@contextlib.contextmanager
def packed_forward(model: Any, rows: Tensor, recorder: Optional[Recorder] = None) -> Iterator[None]:
    """Within this context, `model(**net_input)` answers for these target positions alone, packed.

    You call the model as usual, so its wrappers (DistributedDataParallel, say) keep working.

    Args:
        model: one that `can_pack` accepts; it returns a pair of (tokens, vocab) logits, or (tokens, dimension) features
            with `features_only`, and None
        rows, recorder: as for `packed_features`
    """

    def forward(features_only: bool = False, **net_input: Tensor) -> Tuple[Tensor, None]:
        features = packed_features(model, net_input, rows, recorder)
        return (features if features_only else model.decoder.output_layer(features)), None

    model.forward = forward
    try:
        yield
    finally:
        del model.forward


def _all_rows(rows: Tensor, recorder: Optional[Recorder]) -> Tensor:
    return rows if recorder is None else torch.cat([rows, recorder.rows["decoder"]])


def _encode(encoder: Any, tokens: Tensor, layout: Layout, recorder: Optional[Recorder] = None) -> Tensor:
    x = layout.pack(encoder.forward_embedding(tokens)[0])
    for layer in encoder.layers:
        x = _self_attention(layer, x, layout, layout.mask(), recorder)
        x = _feed_forward(layer, x)
        if recorder is not None and layer in recorder.side_of:
            recorder.output(layer, _at(x, layout, recorder, "encoder"))
    x = x if encoder.layer_norm is None else encoder.layer_norm(x)
    if recorder is not None and recorder.last("encoder") in recorder.side_of:
        recorder.final_output("encoder", _at(x, layout, recorder, "encoder"))
    return x


def _at(x: Tensor, layout: Layout, recorder: Recorder, side: str) -> Tensor:
    return x.index_select(0, layout.places(recorder.rows[side]))


def _decode(
    decoder: Any, tokens: Tensor, layout: Layout, memory: Tensor, source: Layout, recorder: Optional[Recorder] = None
) -> Tensor:
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
        x = _self_attention(layer, x, layout, past, recorder)
        x = _source_attention(layer, x, layout, memory, source, recorder)
        x = _feed_forward(layer, x)
        if recorder is not None and layer in recorder.side_of:
            recorder.output(layer, _at(x, layout, recorder, "decoder"))
    x = x if decoder.layer_norm is None else decoder.layer_norm(x)
    if recorder is not None and recorder.last("decoder") in recorder.side_of:
        recorder.final_output("decoder", _at(x, layout, recorder, "decoder"))
    return x if decoder.project_out_dim is None else decoder.project_out_dim(x)


def _self_attention(layer: Any, x: Tensor, layout: Layout, mask: Mask, recorder: Optional[Recorder]) -> Tensor:
    def attend(x: Tensor) -> Tensor:
        return _attend(layer.self_attn, x, layout, x, layout, mask, recorder)

    return _with_residual(attend, x, layer, layer.self_attn_layer_norm)


def _source_attention(
    layer: Any, x: Tensor, layout: Layout, memory: Tensor, source: Layout, recorder: Optional[Recorder]
) -> Tensor:
    def attend(x: Tensor) -> Tensor:
        return _attend(layer.encoder_attn, x, layout, memory, source, source.mask(), recorder)

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


def _attend(
    attention: Any,
    x: Tensor,
    layout: Layout,
    memory: Tensor,
    source: Layout,
    mask: Mask,
    recorder: Optional[Recorder] = None,
) -> Tensor:
    """Multi-head attention from packed x to packed memory."""

    def heads(projected: Tensor, where: Layout) -> Tensor:
        spread = where.spread(projected)
        return spread.view(*where.shape, attention.num_heads, attention.head_dim).transpose(1, 2)

    query, key = heads(attention.q_proj(x), layout), heads(attention.k_proj(memory), source)
    dropout = attention.dropout_module.p if attention.training else 0.0
    value = heads(attention.v_proj(memory), source)
    if recorder is not None:
        recorder.attention(attention, query, key, value)
    attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, **mask)
    return attention.out_proj(layout.pack(attended.transpose(1, 2).flatten(2)))
