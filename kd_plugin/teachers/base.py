"""What a teacher is to the training: whatever answers about the target tokens of a batch.

To add a kind of teacher: write its class and put a row for it into `kd_plugin/teachers/kinds.py`.
"""

import abc
import enum
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from kd_plugin.cache.data import Split
from kd_plugin.losses.answer import TeacherAnswer
from kd_plugin.losses.definition import Objective


class Signal(enum.Enum):
    """What a teacher may give, and a term of the loss may need; the value says it to the user."""

    DISTRIBUTION = "distribution over the target vocabulary"
    HIDDEN = "hidden states"
    ATTENTION = "attention weights"


DISTRIBUTION = frozenset({Signal.DISTRIBUTION})


class Request(NamedTuple):
    """What is asked about a batch.

    rows:    (tokens,) int64, ascending positions in the flattened (batch * target length)
    dtype:   the one in which the student computes
    signals: what is wanted, all of it among the teacher's `provides`
    """

    rows: Tensor
    dtype: torch.dtype
    signals: FrozenSet[Signal] = DISTRIBUTION


class Dropped(NamedTuple):
    """What a teacher with more symbols than the student's says by those.

    mass:   0-dim, the probability of such symbols, summed over some of the rows
    tokens: how many those are
    """

    mass: Tensor
    tokens: int


class Answer(NamedTuple):
    """What a teacher says about a batch: a field for each signal, None where it was not asked for.

    distribution: of each of the rows, in the student's order of symbols
    dropped: None where it has no other symbols
    """

    distribution: Optional[TeacherAnswer] = None
    dropped: Optional[Dropped] = None


def short_name(sha256: str, parameters: int) -> str:
    """`sha256:1a2b3c4d(7.9M)`."""
    size = f"{parameters / 1e6:.1f}M" if parameters >= 50_000 else f"{parameters}"
    return f"sha256:{sha256[:8]}({size})"


class Teacher(abc.ABC):
    """A frozen teacher. It is not an nn.Module, and must not become part of one: fairseq would train, save, move, wrap
    and average it."""

    provides: FrozenSet[Signal] = DISTRIBUTION

    @abc.abstractmethod
    def answer(self, batch: Dict[str, Any], request: Request) -> Answer:
        """Answer about a batch, in eval, without gradient, in the teacher's own dtype, on the device of the rows.

        Args:
            batch: fairseq's, {net_input: {src_tokens, src_lengths, prev_output_tokens}, target, …}
        """

    @abc.abstractmethod
    def signature_fields(self) -> List[str]:
        """Who it is, for the line that identifies a run: `teacher:sha256:1a2b3c4d(7.9M)`, `vocab:ok`."""

    def max_positions(self) -> List[Any]:
        """The longest (source, target) that each of its models can read, for fairseq's own length filter."""
        return []

    def check(self, objectives: Sequence[Objective]) -> None:  # noqa: B027  most can answer everything
        """Refuse what it cannot answer, before the training starts.

        Args:
            objectives: the first and the last that the run will have
        """

    def attach(self, dataset: Any, split: Split, required: bool) -> None:  # noqa: B027
        """Let the batches of a dataset bring what it needs beside fairseq's; most need nothing.

        Args:
            dataset: fairseq's LanguagePairDataset of the split; may be changed
            required: the split is trained on
        """

    def covers(self, batch: Dict[str, Any]) -> bool:
        """Whether it can answer about a batch."""
        return True

    def complete(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        """A batch whose gradient will be thrown away, made such that it can answer about it."""
        return batch
