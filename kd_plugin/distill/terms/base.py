"""The interface of a term of the loss.

To add a term, write its class, with its flags as a dataclass, and add a row to `TERMS` in
`kd_plugin/distill/terms/__init__.py`.
"""

import abc
from typing import Any, Callable, Dict, FrozenSet, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from kd_plugin.distill.logs import Log, LogOfEach
from kd_plugin.distill.student import StudentAnswer
from kd_plugin.errors import KDPluginError
from kd_plugin.models.states import Shape, StateKey
from kd_plugin.teachers.base import Answer, Signal


class Batch(NamedTuple):
    """A batch, and the state of the schedules.

    sample:     fairseq's
    update:     the number of updates made so far
    alpha, temperature: at this update
    distilled:  (tokens,) bool, the student's rows to distil, for which there is a teacher's answer; None: all
    stock_loss: computes fairseq's own (loss, nll_loss); None if the logits of the whole batch do not exist
    covered:    (tokens,) bool, the rows that the teacher could answer for; None: all
    alone_weight: of the cross-entropy of the rows that it could not answer for
    training:   False in validation
    second_pass: the student's second dropout pass, for a term with `passes` 2; else None
    unlabelled: (tokens,) bool, the rows whose target is unknown; None: none
    """

    sample: Dict[str, Any]
    update: int
    alpha: float
    temperature: float
    distilled: Optional[Tensor]
    stock_loss: Optional[Callable[[], Tuple[Tensor, Tensor]]]
    covered: Optional[Tensor] = None
    training: bool = True
    second_pass: Optional[StudentAnswer] = None
    alone_weight: float = 1.0
    unlabelled: Optional[Tensor] = None


class TermResult(NamedTuple):
    """A sum over target tokens (or sentences), 0-dim, fp32 or float64, with gradient; and sums for the log."""

    value: Tensor
    logs: Dict[str, Any]


class Term(abc.ABC):
    """One summand of the loss.

    name:   its name in the run's signature
    flag:   the flag that asks for it, for messages
    uses:   the parts of the teacher's answer that it uses if available
    needs:  the parts that it requires
    reads_logits: whether it calls student.logits()
    passes: 2: it compares two dropout passes of the student, and is left out in validation; the other terms are then
            the mean over both passes
    module: a module trained with the student and discarded at export, such as a projection; None: nothing
    logs:   how to show the values that it logs
    """

    name: str
    flag: str
    uses: FrozenSet[Signal] = frozenset()
    needs: FrozenSet[Signal] = frozenset()
    reads_logits: bool = False
    passes: int = 1
    module: Optional[torch.nn.Module] = None
    logs: Sequence[Union[Log, LogOfEach]] = ()

    @abc.abstractmethod
    def __init__(self, cfg: Any):
        """Reads the criterion's flags; raises KDPluginError if one of its own is out of range."""

    def prepare(self, student: Optional[Shape], teacher: Optional[Shape]) -> None:  # noqa: B027  most need nothing
        """Called once before training, to make a `module` that fits the models.

        Args:
            student, teacher: their sizes; None: unknown, because it is no transformer whose layers can be read

        Raises:
            KDPluginError: they do not fit
        """

    def states(self, update: int) -> Tuple[FrozenSet[StateKey], FrozenSet[StateKey]]:
        """The inner states of the student and of the teacher that it compares."""
        return frozenset(), frozenset()

    def weight(self, update: int) -> float:
        """The factor of its value in the loss; with 0, it is not computed."""
        return 1.0

    def signature(self) -> str:
        """Its field in the run's signature; empty: none."""
        return f"{self.name}:{self.weight(0):g}"

    @abc.abstractmethod
    def __call__(self, student: StudentAnswer, answer: Optional[Answer], batch: Batch) -> TermResult:
        """Its value for a batch.

        Args:
            answer: the teacher's; None: there is no teacher, or it does not cover the batch

        Raises:
            KDPluginError: the value is NaN or infinite; the message names the term
        """


def check_finite(name: str, of_rows: Tensor, student: StudentAnswer, batch: Batch) -> None:
    """Stops before the update if a term of the student alone is NaN or infinite.

    Args:
        name: of the logged value
        of_rows: (tokens,) its values for the student's rows
    """
    if torch.isfinite(of_rows.sum()):
        return
    ids = sentences(~torch.isfinite(of_rows), student, batch)
    raise KDPluginError(
        f"{name} not finite at update {batch.update + 1}: NaN or infinite student logits, sample ids {ids}. This "
        "update changed no weights. Remedy: a lower --lr or --clip-norm; fp32 training to find the cause"
    )


def sentences(bad: Tensor, student: StudentAnswer, batch: Batch) -> Any:
    """The sample ids of the sentences to which the bad ones of the student's rows belong, for messages.

    Args:
        bad: (tokens,) bool; if none is, all sentences of the batch are named
    """
    if "id" not in batch.sample:
        return "unknown"
    positions = student.rows[bad]
    found: Any = torch.unique(positions // batch.sample["target"].size(1)) if len(positions) else slice(None)
    return batch.sample["id"][found].tolist()
