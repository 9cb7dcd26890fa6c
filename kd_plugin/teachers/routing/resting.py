"""Lets a language's teacher rest once the student knows the language better (Tan et al. 2019,
https://arxiv.org/abs/1902.10461, selective distillation)."""

import logging
import math
from typing import Any, Dict, FrozenSet, Optional, Sequence

from kd_plugin.teachers.base import NLL_OF, TEACHER_NLL_OF, TOKENS_OF

logger = logging.getLogger(__name__)

BIT = math.log(2)


class Resting:
    """The languages whose teachers rest.

    Args:
        margin: how much lower than the teacher's the student's validation loss must be, in bits per token; None: no
            teacher ever rests
    """

    def __init__(self, margin: Optional[float]):
        self.margin = margin
        self._names: FrozenSet[str] = frozenset()
        self._sums: Dict[str, Dict[str, float]] = {}

    def begin_validation(self) -> None:
        """The sums that come now belong to a new validation."""
        self._sums = {}

    def add(self, logs: Dict[str, Any], languages: Sequence[str]) -> None:
        """Adds a validation batch's sums."""
        for name in languages:
            of_it = self._sums.setdefault(name, {})
            for key in (NLL_OF, TEACHER_NLL_OF, TOKENS_OF):
                of_it[key] = of_it.get(key, 0.0) + float(logs.get(f"{key}:{name}", 0.0))

    def names(self) -> FrozenSet[str]:
        """The languages whose teachers rest, after the last validation."""
        if self.margin is None or not self._sums:
            return self._names
        names = set(self._names)
        for name, sums in self._sums.items():
            tokens = sums[TOKENS_OF]
            if tokens == 0:
                continue  # nothing new is known
            student, teacher = (sums[key] / tokens / BIT for key in (NLL_OF, TEACHER_NLL_OF))
            rests = student < teacher - self.margin
            if rests != (name in names):
                (names.add if rests else names.discard)(name)
                logger.info(
                    f"{name}: the student's validation loss is {student:.3f} bits per token, the teacher's "
                    f"{teacher:.3f}: {'from here on without the teacher' if rests else 'the teacher is asked again'}"
                )
        self._names, self._sums = frozenset(names), {}
        return self._names

    def state_dict(self) -> Dict[str, Any]:
        """The decisions so far."""
        return {"resting": sorted(self.names())}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Restores them."""
        self._names, self._sums = frozenset(state.get("resting", ())), {}
