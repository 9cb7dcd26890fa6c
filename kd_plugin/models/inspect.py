"""Tests for what a model's output can be."""

from typing import Any

import torch
from fairseq.models.transformer import TransformerDecoderBase, TransformerModelBase


def gives_features(model: Any) -> bool:
    """Whether the model can compute the decoder's features without their projection to logits.

    True for fairseq's transformers, in all their architectures, unless a subclass overrides forward.
    """
    decoder = getattr(model, "decoder", None)
    return (
        isinstance(model, TransformerModelBase)
        and type(model).forward is TransformerModelBase.forward
        and isinstance(decoder, TransformerDecoderBase)
        and type(decoder).forward is TransformerDecoderBase.forward
        and not has_adaptive_softmax(model)
    )


def has_adaptive_softmax(model: torch.nn.Module) -> bool:
    """Whether the decoder returns features for an adaptive softmax instead of logits."""
    return getattr(getattr(model, "decoder", None), "adaptive_softmax", None) is not None
