"""What a model can give."""

from typing import Any

import torch
from fairseq.models.transformer import TransformerDecoderBase, TransformerModelBase


def gives_features(model: Any) -> bool:
    """Whether the decoder's features and their projection to logits can be had one after the other.

    True of fairseq's transformers, with their architectures and decoders that leave forward and output_layer alone.
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
    """Whether the decoder's output is features for an adaptive softmax instead of logits."""
    return getattr(getattr(model, "decoder", None), "adaptive_softmax", None) is not None
