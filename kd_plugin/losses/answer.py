"""A teacher's answer for the target tokens of a batch."""

import functools
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple

import torch
from torch import Tensor

from kd_plugin.losses.engine.memory import Allocate, LinearHead, aligned, new_buffer, projected_rows, scratch

# Allocate and LinearHead are re-exported for teachers, which import nothing from the engine
__all__ = ["Allocate", "LinearHead", "Project", "ProjectedAnswer", "TeacherAnswer", "new_buffer", "projected_rows"]

Project = Callable[[Tensor, Allocate], Tensor]


class TeacherAnswer:
    """A teacher's answer for some target tokens. Subclasses are other kinds of answer.

    Logits are unnormalised log-probabilities at temperature 1, in the student's order of symbols.
    """

    knows_target = True  # gives the probability of every target
    knows_best = True  # says which symbol the teacher ranks first

    def __init__(self, logits: Tensor):
        self.logits = logits  # (tokens, vocab)

    @property
    def everything(self) -> Tensor:
        """The engine's teacher input for all tokens."""
        return self.logits

    def pieces(self, tokens: int, vocab: int) -> Iterator[Tuple[slice, Any]]:
        """Yields the answer in pieces: a slice of the tokens and the engine's teacher input for them.

        Asking for the next piece invalidates the last one.
        """
        yield slice(0, tokens), self.everything

    @property
    def product(self) -> Optional[Tuple[LinearHead, Tensor]]:
        """The output projection and the (tokens, dimension) features whose product gives the logits, or None."""
        return None

    def chunk(self, start: int, stop: int, reuse: bool = False, apart: bool = False) -> Tensor:
        """(stop - start, vocab) logits of some of the tokens.

        Args:
            reuse: the next chunk may overwrite this one
            apart: rows need not lie back to back, where a gap makes them faster to read
        """
        return self.logits[start:stop]

    def take(self, rows: Tensor) -> "TeacherAnswer":
        """The answer for some of the tokens. rows: (tokens,) bool, or indices"""
        return TeacherAnswer(self.logits[rows])


class ProjectedAnswer(TeacherAnswer):
    """Logits computed on demand from a decoder's features and its output projection.

    Args:
        members: for each teacher, its (tokens, dimension) features and a function that turns rows of them into
            (rows, vocab) logits, in memory from its second argument if possible
        log_weights: each teacher's log weight in the mixture of probabilities
    """

    def __init__(self, members: Sequence[Tuple[Tensor, Project]], log_weights: Sequence[float]):
        self._members, self._log_weights = members, log_weights

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        return self.chunk(0, self._members[0][0].size(0))

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits."""
        return self._members[0][0].dtype if len(self._members) == 1 else torch.float32

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
        if apart and len(self._members) == 1:  # for a mixture, log_softmax would copy such rows
            allocate = aligned(allocate)
        logits = (self._projected(i, slice(start, stop), allocate) for i in range(len(self._members)))
        if len(self._members) == 1:
            return next(logits)
        lprobs = (torch.log_softmax(z.float(), dim=-1).add_(w) for z, w in zip(logits, self._log_weights))
        mixture = next(lprobs)
        for other in lprobs:
            torch.logaddexp(mixture, other, out=mixture)
            del other  # free it before the next teacher's is computed
        return mixture

    def _projected(self, member: int, rows: slice, allocate: Allocate) -> Tensor:
        """One teacher's logits for some rows, in its own dtype: the student's autocast must not change it."""
        features, project = self._members[member]
        with torch.autocast(device_type=features.device.type, enabled=False):
            return project(features[rows], allocate)
