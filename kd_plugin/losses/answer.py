"""What a teacher answers about the target tokens of a batch."""

import functools
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple

import torch
from torch import Tensor

from kd_plugin.losses.engine.memory import Allocate, LinearHead, aligned, new_buffer, projected_rows, scratch

# Allocate and LinearHead: for teachers, who import nothing from the engine
__all__ = ["Allocate", "LinearHead", "Project", "ProjectedAnswer", "TeacherAnswer", "new_buffer", "projected_rows"]

Project = Callable[[Tensor, Allocate], Tensor]


class TeacherAnswer:
    """What a teacher says about some target tokens; an object, so that other kinds of answer can join.

    Logits are unnormalised log-probabilities at temperature 1, in the student's order of symbols.
    """

    knows_target = True  # the probability of every target
    knows_best = True  # which symbol it ranks first

    def __init__(self, logits: Tensor):
        self.logits = logits  # (tokens, vocab)

    @property
    def everything(self) -> Tensor:
        """What the engine takes as a teacher, for all of the tokens."""
        return self.logits

    def pieces(self, tokens: int, vocab: int) -> Iterator[Tuple[slice, Any]]:
        """All of it, in pieces of some of the tokens: which of them, and what the engine takes as a teacher for them.

        A piece is gone when the next one is asked for.
        """
        yield slice(0, tokens), self.everything

    @property
    def product(self) -> Optional[Tuple[LinearHead, Tensor]]:
        """The output projection and the (tokens, dimension) features whose product the logits are, if there are such"""
        return None

    def chunk(self, start: int, stop: int, reuse: bool = False, apart: bool = False) -> Tensor:
        """(stop - start, vocab) logits of some of the tokens.

        Args:
            reuse: allows that the next chunk is written over this one
            apart: allows rows that do not lie back to back, where that makes them quicker to read
        """
        return self.logits[start:stop]


class ProjectedAnswer(TeacherAnswer):
    """Logits that are made only where they are asked for: a decoder's features and its output projection.

    Args:
        members: of each teacher its (tokens, dimension) features and what makes (rows, vocab) logits of rows of them,
            in memory that it gets from its second argument if it can
        log_weights: of each teacher in the mixture of their probabilities
    """

    def __init__(self, members: Sequence[Tuple[Tensor, Project]], log_weights: Sequence[float]):
        self._members, self._log_weights = members, log_weights

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        return self.chunk(0, self._members[0][0].size(0))

    @property
    def product(self) -> Optional[Tuple[LinearHead, Tensor]]:
        (features, project), *others = self._members
        return (project, features) if not others and isinstance(project, LinearHead) else None

    def pieces(self, tokens: int, vocab: int) -> Iterator[Tuple[slice, Any]]:
        features = self._members[0][0]
        step = projected_rows(vocab, features.element_size(), features.device)
        for start in range(0, max(1, tokens), step):
            stop = min(start + step, tokens)
            yield slice(start, stop), self.chunk(start, stop, reuse=True)

    @torch.no_grad()
    def chunk(self, start: int, stop: int, reuse: bool = False, apart: bool = False) -> Tensor:
        allocate: Allocate = functools.partial(scratch, "teacher") if reuse else new_buffer
        if apart and len(self._members) == 1:  # softmax would copy them
            allocate = aligned(allocate)
        logits = (self._projected(i, slice(start, stop), allocate) for i in range(len(self._members)))
        if len(self._members) == 1:
            return next(logits)
        lprobs = (torch.log_softmax(z.float(), dim=-1).add_(w) for z, w in zip(logits, self._log_weights))
        mixture = next(lprobs)
        for other in lprobs:
            torch.logaddexp(mixture, other, out=mixture)
            del other  # before the next teacher's are made
        return mixture

    def _projected(self, member: int, rows: slice, allocate: Allocate) -> Tensor:
        """A teacher's own logits of some rows, in its own dtype, which the student's autocast must not change."""
        features, project = self._members[member]
        with torch.autocast(device_type=features.device.type, enabled=False):
            return project(features[rows], allocate)
