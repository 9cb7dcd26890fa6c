"""What turns a simple student's features into the logits of classes: one per sentence or one per subword."""

from typing import Any

import torch
from torch import Tensor, nn


class SentenceHead(nn.Module):
    """Classes of a sentence: features pooled over the sentence, dropout, a linear layer.

    Args:
        input_dim: width of the features
        num_classes: width of the logits; for regression, the number of targets
        dropout: between pooling and the linear layer
        pooling: "max" (Kim 2014, https://aclanthology.org/D14-1181) or "mean" (Joulin et al. 2017,
            https://aclanthology.org/E17-2068), over the positions that are not padding
    """

    def __init__(self, input_dim: int, num_classes: int, dropout: float, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.out_proj = _linear(input_dim, num_classes)

    def forward(self, features: Tensor, padding_mask: Tensor, **_: Any) -> Tensor:
        """Logits, B × classes.

        Args:
            features: B × T × input_dim
            padding_mask: B × T, True where there is padding
        """
        mask = padding_mask.unsqueeze(-1)
        if self.pooling == "max":
            # the lowest finite number, since a sentence without any token would otherwise give infinite logits
            pooled = features.masked_fill(mask, torch.finfo(features.dtype).min).amax(dim=1)
            pooled = pooled.masked_fill(mask.all(dim=1), 0.0)
        else:
            lengths = (~mask).sum(dim=1).clamp(min=1).type_as(features)
            pooled = features.masked_fill(mask, 0.0).sum(dim=1) / lengths
        return self.out_proj(self.dropout(pooled))


class TokenHead(nn.Module):
    """Labels of subwords: dropout and a linear layer.

    Args:
        input_dim: width of the features
        num_classes: number of labels
        dropout: before the linear layer
    """

    def __init__(self, input_dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out_proj = _linear(input_dim, num_classes)

    def forward(self, features: Tensor, **_: Any) -> Tensor:
        """Logits, B × T × labels, of features, B × T × input_dim."""
        return self.out_proj(self.dropout(features))


def _linear(input_dim: int, output_dim: int) -> nn.Linear:
    layer = nn.Linear(input_dim, output_dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
