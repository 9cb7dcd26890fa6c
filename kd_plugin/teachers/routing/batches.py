"""Some sentences of a batch as their teacher reads them: without the language tags that it does not know."""

from typing import Any, Dict, List, NamedTuple

from torch import Tensor


class Drop(NamedTuple):
    """What to take off sentences.

    source, target: the number of tokens at the beginning of each
    replaced_source, replaced_target: whether a tag stands for an end of sentence there, which to put back
    """

    source: int = 0
    target: int = 0
    replaced_source: bool = False
    replaced_target: bool = False


class Sides(NamedTuple):
    """The student's padding, end of sentence, and on which side sentences are padded; each as (source, target)."""

    pad: List[int]
    eos: List[int]
    left: List[bool]


def without_tags(net_input: Dict[str, Any], sentences: Tensor, drop: Drop, sides: Sides) -> Dict[str, Any]:
    """The input of some sentences, in their order, no longer than necessary.

    Args:
        net_input: fairseq's {src_tokens, src_lengths, prev_output_tokens}; other entries are left out
        sentences: (sentences,) int64
    """
    source = net_input["src_tokens"].index_select(0, sentences)
    order = _order(source, sides.pad[0])
    if drop.replaced_source:
        last = order.eq(order.max(dim=1, keepdim=True).values) & source.ne(sides.pad[0])
        source = source.masked_fill(last, sides.eos[0])
    source = source.masked_fill(order.le(drop.source), sides.pad[0])
    lengths = net_input["src_lengths"].index_select(0, sentences) - drop.source

    previous = net_input["prev_output_tokens"].index_select(0, sentences)
    order = _order(previous, sides.pad[1])
    # the end of sentence before the first token moves to where the last tag was
    previous = previous.masked_fill(order.le(drop.target), sides.pad[1])
    if drop.target or drop.replaced_target:
        previous = previous.masked_fill(order.eq(1 + drop.target) & previous.ne(sides.pad[1]), sides.eos[1])
    width = int(order.max()) - drop.target
    return {
        "src_tokens": _cut(source, int(lengths.max()), drop.source, sides.left[0]),
        "src_lengths": lengths,
        "prev_output_tokens": _cut(previous, width, drop.target, sides.left[1]),
    }


def moved_columns(columns: Tensor, length: int, width: int, drop: Drop, sides: Sides) -> Tensor:
    """Positions in targets of a batch -> positions in those of `without_tags`.

    Args:
        length: of the batch's targets
        width: of the others
    """
    return columns - (length - width if sides.left[1] else drop.target)


def _order(tokens: Tensor, pad: int) -> Tensor:
    """(sentences, length) the number of tokens up to each position, padding not counted."""
    return tokens.ne(pad).cumsum(dim=1)


def _cut(tokens: Tensor, width: int, dropped: int, left: bool) -> Tensor:
    """Cuts off columns that hold nothing but padding."""
    return tokens[:, tokens.size(1) - width :] if left else tokens[:, dropped : dropped + width]
