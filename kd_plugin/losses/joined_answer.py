"""The answers of several teachers, each for some of the target tokens of a batch."""

import functools
from typing import Any, Iterator, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from kd_plugin.losses.answer import Allocate, ProjectedAnswer, TeacherAnswer, new_buffer, projected_rows
from kd_plugin.losses.engine.memory import aligned, scratch


class Part(NamedTuple):
    """One teacher's answer.

    answer:    for its tokens, in their order
    positions: (its tokens,) int64, ascending, where these are among all tokens; on the host
    """

    answer: ProjectedAnswer
    positions: np.ndarray


class JoinedAnswer(TeacherAnswer):
    """Every token has the logits of one teacher, computed on demand.

    Args:
        parts: whose positions are together 0, 1, …, tokens - 1
        vocab: the student's number of symbols
        device: of the answers
    """

    def __init__(self, parts: Sequence[Part], vocab: int, device: torch.device):
        self._parts, self._vocab, self._device = list(parts), vocab, device
        dtypes = {part.answer.dtype for part in parts} or {torch.float32}
        self._dtype = functools.reduce(torch.promote_types, dtypes)
        self.knows_target = all(part.answer.knows_target for part in parts)

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        return self.chunk(0, sum(len(part.positions) for part in self._parts))

    def pieces(self, tokens: int, vocab: int) -> Iterator[Tuple[slice, Any]]:
        step = projected_rows(vocab, torch.empty(0, dtype=self._dtype).element_size(), self._device)
        for start in range(0, max(1, tokens), step):
            stop = min(start + step, tokens)
            yield slice(start, stop), self.chunk(start, stop, reuse=True)

    @torch.no_grad()
    def chunk(self, start: int, stop: int, reuse: bool = False, apart: bool = False) -> Tensor:
        allocate: Allocate = functools.partial(scratch, "joined") if reuse else new_buffer
        if apart:
            allocate = aligned(allocate)
        joined = allocate((stop - start, self._vocab), self._dtype, self._device)
        for part in self._parts:
            first, last = np.searchsorted(part.positions, [start, stop]).tolist()
            if first < last:
                rows = torch.from_numpy(part.positions[first:last] - start).to(self._device)
                logits = part.answer.chunk(first, last, reuse=True)
                joined.index_copy_(0, rows, logits.to(self._dtype))
                del logits  # free it before the next teacher's is computed
        return joined
