"""What a term of the loss is.

To add one: write its class, with its flags as a dataclass, and put a row for it into `TERMS` of
`kd_plugin/distill/terms/__init__.py`.
"""

import abc
from typing import Any, Callable, Dict, FrozenSet, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from kd_plugin.distill.logs import Log
from kd_plugin.distill.student import StudentAnswer
from kd_plugin.teachers.base import Answer, Signal


class Batch(NamedTuple):
    """A batch, and when it is.

    sample:     fairseq's
    update:     the number of updates made so far
    alpha, temperature: at this update
    distilled:  (tokens,) bool, of the student's rows those that are distilled, which the teacher has answered about;
                None: all
    stock_loss: fairseq's own (loss, nll_loss); None where the logits of the whole batch were not made
    """

    sample: Dict[str, Any]
    update: int
    alpha: float
    temperature: float
    distilled: Optional[Tensor]
    stock_loss: Optional[Callable[[], Tuple[Tensor, Tensor]]]


class TermResult(NamedTuple):
    """A sum over target tokens (or sentences), 0-dim, fp32 or float64, with gradient; and sums for the log."""

    value: Tensor
    logs: Dict[str, Any]


class Term(abc.ABC):
    """One summand of the loss.

    name:   in the line that identifies a run
    flag:   that asks for it, for messages
    uses:   what it takes of the teacher's answer, where the teacher gives it
    needs:  what it cannot be without
    reads_logits: it calls student.logits()
    module: what is trained with the student and thrown away at export, such as a projection; None: nothing
    logs:   how the values that it logs are shown
    """

    name: str
    flag: str
    uses: FrozenSet[Signal] = frozenset()
    needs: FrozenSet[Signal] = frozenset()
    reads_logits: bool = False
    module: Optional[torch.nn.Module] = None
    logs: Sequence[Log] = ()

    @abc.abstractmethod
    def __init__(self, cfg: Any):
        """From the criterion's flags; KDPluginError where a value of its own is out of range."""

    def weight(self, update: int) -> float:
        """What its value is multiplied by."""
        return 1.0

    def signature(self) -> str:
        """Its field in the line that identifies a run; empty: none."""
        return f"{self.name}:{self.weight(0):g}"

    @abc.abstractmethod
    def __call__(self, student: StudentAnswer, answer: Optional[Answer], batch: Batch) -> TermResult:
        """Its value for a batch.

        Args:
            answer: the teacher's; None: there is no teacher, or none that knows the batch

        Raises:
            KDPluginError: it is NaN or infinite; names the term
        """
