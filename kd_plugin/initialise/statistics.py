"""What a model's hidden states are like on sample text: which directions, heads and units it uses."""

import contextlib
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from kd_plugin.initialise.heads import HeadStatistics
from kd_plugin.initialise.units import UnitStatistics
from kd_plugin.initialise.whole import SIDES


class Statistics(NamedTuple):
    """Means over the real positions of a sample, by the names of modules.

    Args:
        norms: of each layer norm, the second moments (width, width) of its input after normalisation, before its gain
        embeddings: of each side, those of what enters its first layer, before any layer norm
        heads: of each attention
        units: of each layer
    """

    norms: Dict[str, Tensor]
    embeddings: Dict[str, Tensor]
    heads: Dict[str, HeadStatistics]
    units: Dict[str, UnitStatistics]


class _Mean:
    """A running mean of sums over positions."""

    def __init__(self) -> None:
        self.sums: List[Any] = []
        self.number = 0

    def add(self, number: int, *sums: Tensor) -> None:
        self.number += number
        self.sums = [old + new for old, new in zip(self.sums, sums)] if self.sums else list(sums)

    def means(self) -> List[Tensor]:
        return [total / self.number for total in self.sums]


class _Watch:
    """Collects from a fairseq transformer's modules while it computes."""

    def __init__(self, model: Any, whole_heads: Dict[str, int]):
        self.model, self.heads = model, whole_heads
        self.means: Dict[str, _Mean] = {}
        self.real: Dict[str, Tensor] = {}  # (length, batch) bool of each side, for the present batch

    def norm(self, name: str, module: Any) -> Any:
        own = module.forward

        def forward(x: Tensor) -> Tensor:
            n = self._real(name, F.layer_norm(x, x.shape[-1:]))
            self._mean("norm", name).add(n.size(0), n.T @ n)
            answer: Tensor = own(x)
            return answer

        return forward

    def entering(self, side: str, x: Tensor) -> None:
        """x: (batch, length, width)"""
        rows = self._real(side, x.transpose(0, 1))
        self._mean("embedding", side).add(rows.size(0), rows.T @ rows)

    def units(self, name: str, module: Any, activation: Any) -> Any:
        own = module.forward

        def forward(x: Tensor) -> Tensor:
            before = own(x)
            h = self._real(name, activation(before))
            self._mean("units", name.rpartition(".")[0]).add(h.size(0), h.square().sum(0), h.sum(0))
            answer: Tensor = before
            return answer

        return forward

    def attention(self, name: str, module: Any) -> Any:
        own = module.forward

        def forward(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Any:
            for_each = self._written(name, module, query, key, value, more)
            written = self._real(name, for_each)  # (positions, heads, width)
            sums = written.square().sum((0, 2)), written.sum(0)
            self._mean("heads", name).add(written.size(0), *sums)
            return own(query=query, key=key, value=value, **more)

        return forward

    def _written(self, name: str, module: Any, query: Tensor, key: Tensor, value: Tensor, more: Any) -> Tensor:
        """(length, batch, heads, width): what each head adds to the output."""
        heads = module.num_heads

        def split(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], heads, -1).permute(1, 2, 0, 3)

        q, k, v = split(module.q_proj(query)), split(module.k_proj(key)), split(module.v_proj(value))
        scores = q @ k.transpose(2, 3) * module.scaling
        if more.get("attn_mask") is not None:
            scores = scores + more["attn_mask"]
        if more.get("key_padding_mask") is not None:
            scores = scores.masked_fill(more["key_padding_mask"][:, None, None].bool(), float("-inf"))
        taken = scores.softmax(-1) @ v  # (batch, heads, length, size)
        columns = module.out_proj.weight.view(module.embed_dim, heads, -1)
        return torch.einsum("bhls,dhs->lbhd", taken, columns)

    def _mean(self, kind: str, name: str) -> _Mean:
        return self.means.setdefault(f"{kind} {name}", _Mean())

    def _real(self, name: str, values: Tensor) -> Tensor:
        """The real positions of (length, batch, …), as float64; (batch, length, …) is recognised by its shape."""
        real = self.real[name.partition(".")[0]]
        if values.shape[:2] != real.shape:
            values = values.transpose(0, 1)
        return values[real].double()

    def of(self, kind: str) -> Dict[str, List[Tensor]]:
        return {name.partition(" ")[2]: mean.means() for name, mean in self.means.items() if name.startswith(kind)}


@contextlib.contextmanager
def _watching(model: Any) -> Iterator[_Watch]:
    watch = _Watch(model, {})
    changed = []

    def replace(module: Any, forward: Any) -> None:
        module.forward = forward
        changed.append(module)

    for side in SIDES:
        half = getattr(model, side)
        for name, module in half.named_modules(prefix=side):
            if isinstance(module, torch.nn.LayerNorm):
                replace(module, watch.norm(name, module))
            elif name.endswith((".self_attn", ".encoder_attn")):
                replace(module, watch.attention(name, module))
            elif name.endswith(".fc1"):
                layer = dict(half.named_modules(prefix=side))[name.rpartition(".")[0]]
                replace(module, watch.units(name, module, layer.activation_fn))
    try:
        yield watch
    finally:
        for module in changed:
            del module.forward


@torch.no_grad()
def statistics_of(model: Any, batches: Any) -> Optional[Statistics]:
    """Statistics of a model on batches of a fairseq dataset ({net_input: …}); None without a batch."""
    with _watching(model) as watch:
        for batch in batches:
            tokens = batch["net_input"]["src_tokens"], batch["net_input"]["prev_output_tokens"]
            for side, symbols in zip(SIDES, tokens):
                half = getattr(model, side)
                watch.real[side] = symbols.ne(half.padding_idx).T
                x = half.embed_scale * half.embed_tokens(symbols)
                if half.embed_positions is not None:
                    x = x + half.embed_positions(symbols)
                watch.entering(side, x)
            model(**batch["net_input"])
    if not watch.means:
        return None
    return Statistics(
        {name: moments[0] for name, moments in watch.of("norm").items()},
        {name: moments[0] for name, moments in watch.of("embedding").items()},
        {name: HeadStatistics(size.sqrt(), mean) for name, (size, mean) in watch.of("heads").items()},
        {name: UnitStatistics(size.sqrt(), mean) for name, (size, mean) in watch.of("units").items()},
    )
