"""Where the tokens of a batch are: in fairseq's (batch, length) rectangle, and packed without padding."""

from typing import Any, Dict, Optional

import torch
from torch import Tensor

Mask = Dict[str, Any]  # keyword arguments for scaled_dot_product_attention


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
