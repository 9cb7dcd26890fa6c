"""Fewer or narrower attention heads.

A head uses two products of its matrices: W_qᵀ W_k for how much a position attends to another, W_o W_v for what it
takes from there. A narrower head gets, for each, the nearest pair of matrices of its width (truncated SVD, biases
included). A wider one keeps its teacher's and fills the rest so that it changes nothing, but can learn. Of more heads
than wanted, those that write most stay.
"""

from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor


class Attention(NamedTuple):
    """Weights (out, in) and biases (out,) of an attention's projections, float64. heads: how many share them"""

    query: Tuple[Tensor, Tensor]
    key: Tuple[Tensor, Tensor]
    value: Tuple[Tensor, Tensor]
    out: Tuple[Tensor, Tensor]
    heads: int


class HeadStatistics(NamedTuple):
    """Of each head on sample text. size: (heads,) root mean square of what it writes; mean: (heads, width)"""

    size: Tensor
    mean: Tensor


def strongest_heads(attention: Attention, number: int, statistics: Optional[HeadStatistics]) -> List[int]:
    """The heads that write most, in their order: on sample text, or else by |W_o W_v|."""
    if number == attention.heads:
        return list(range(number))
    if statistics is not None:
        sizes = statistics.size
    else:
        pairs = zip(_of_heads(attention.value, attention.heads), _columns(attention.out[0], attention.heads))
        sizes = torch.stack([(out @ weight).norm() for (weight, _), out in pairs])
    return sorted(sizes.argsort(descending=True)[:number].tolist())


def narrower(
    attention: Attention, kept: List[int], width: int, statistics: Optional[HeadStatistics]
) -> Tuple[Attention, float]:
    """The attention with these heads, which together have `width` dimensions; the largest relative error of a product.

    What the others write on average, or their value's bias without sample text, goes into the bias of the output.
    """
    size = width // len(kept)
    query, key, value = (_of_heads(pair, attention.heads) for pair in (attention.query, attention.key, attention.value))
    out = _columns(attention.out[0], attention.heads)
    parts: Dict[str, List[Tensor]] = {name: [] for name in ("query", "key", "value", "out")}
    largest = 0.0
    for head in kept:
        teacher = query[head][0].size(0)
        q, k, of_scores = _scores(query[head], key[head], size)
        v, o, of_values = _values(value[head], out[head], size)
        largest = max(largest, of_scores, of_values)
        # fairseq divides scores by the root of the head's width
        parts["query"].append(q * (size / teacher) ** 0.5)
        for name, part in (("key", k), ("value", v), ("out", o)):
            parts[name].append(part)
    bias = attention.out[1].clone()
    for head in set(range(attention.heads)) - set(kept):
        bias += statistics.mean[head] if statistics is not None else out[head] @ value[head][1]
    stacked = {name: torch.cat(parts[name]) for name in ("query", "key", "value")}
    pairs = {name: (rows[:, :-1], rows[:, -1]) for name, rows in stacked.items()}
    return Attention(out=(torch.cat(parts["out"], dim=1), bias), heads=len(kept), **pairs), largest


def _of_heads(pair: Tuple[Tensor, Tensor], heads: int) -> List[Tuple[Tensor, Tensor]]:
    return list(zip(pair[0].chunk(heads), pair[1].chunk(heads)))


def _columns(weight: Tensor, heads: int) -> List[Tensor]:
    return list(weight.chunk(heads, dim=1))


def _scores(query: Tuple[Tensor, Tensor], key: Tuple[Tensor, Tensor], size: int) -> Tuple[Tensor, Tensor, float]:
    """(size, in + 1) each: weights with their biases as the last column; the relative error of their product."""
    q, k = (torch.cat([weight, bias.unsqueeze(1)], dim=1) for weight, bias in (query, key))
    if size == q.size(0):
        return q, k, 0.0
    if size > q.size(0):  # new rows of the key score nothing until the query's zeros have learned
        return _below(q, size, _zeros), _below(k, size, _small), 0.0
    # a key's bias adds the same to a query's scores of all positions, which the softmax ignores
    k = torch.cat([key[0], torch.zeros_like(key[1]).unsqueeze(1)], dim=1)
    left, right, error = _truncated(q.T, k, size)
    return left.T, right, error


def _values(value: Tuple[Tensor, Tensor], out: Tensor, size: int) -> Tuple[Tensor, Tensor, float]:
    """(size, in + 1) and (width, size), and the relative error of their product."""
    v = torch.cat([value[0], value[1].unsqueeze(1)], dim=1)
    if size == v.size(0):
        return v, out, 0.0
    if size > v.size(0):
        return _below(v, size, _small), _below(out.T, size, _zeros).T, 0.0
    left, right, error = _truncated(out, v, size)
    return right, left, error


def _truncated(left: Tensor, right: Tensor, rank: int) -> Tuple[Tensor, Tensor, float]:
    """The best approximation of left @ right by a product of this rank, balanced between both factors."""
    ql, rl = torch.linalg.qr(left)
    qr, rr = torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(rl @ rr.T)
    root = s[:rank].sqrt()
    error = float(s[rank:].norm() / s.norm().clamp(min=1e-30))
    return ql @ (u[:, :rank] * root), (root.unsqueeze(1) * v[:rank]) @ qr.T, error


def _below(rows: Tensor, size: int, fill: Callable[[int, int], Tensor]) -> Tensor:
    return torch.cat([rows, fill(size - rows.size(0), rows.size(1))])


def _zeros(rows: int, columns: int) -> Tensor:
    return torch.zeros(rows, columns, dtype=torch.float64)


def _small(rows: int, columns: int) -> Tensor:
    filled = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    filled[:, -1] = 0  # the bias
    return filled * columns**-0.5
