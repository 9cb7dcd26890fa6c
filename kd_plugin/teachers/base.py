"""The interface of a teacher: anything that answers about a batch's target tokens.

To add a kind of teacher, write its class and add a row to `TEACHERS` in `kd_plugin/teachers/kinds.py`.
"""

import abc
import enum
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from kd_plugin.cache.data import Split
from kd_plugin.losses.answer import TeacherAnswer
from kd_plugin.losses.definition import Objective
from kd_plugin.models.states import Inner, Shape, States


class Signal(enum.Enum):
    """What a teacher may provide and a term of the loss may need; the value is its name in messages."""

    DISTRIBUTION = "distribution over the target vocabulary"
    HIDDEN = "hidden states"
    ATTENTION = "attention weights"


DISTRIBUTION = frozenset({Signal.DISTRIBUTION})
# logged sums over a language's validation tokens: `nll_of:de-en`
NLL_OF, TEACHER_NLL_OF, TOKENS_OF = "nll_of", "teacher_nll_of", "n_of"


class Request(NamedTuple):
    """A question about a batch.

    rows:    (tokens,) int64, ascending positions in the flattened (batch * target length)
    dtype:   in which the student computes
    signals: what the answer should contain, a subset of the teacher's `provides`
    training: whether the answer is for training rather than validation
    inner:   the inner states that it should contain; None: none
    """

    rows: Tensor
    dtype: torch.dtype
    signals: FrozenSet[Signal] = DISTRIBUTION
    training: bool = True
    inner: Optional[Inner] = None


class Dropped(NamedTuple):
    """The probability that a teacher gives to symbols that the student does not have.

    mass:   0-dim, this probability, summed over a sample of the rows
    tokens: the size of the sample
    """

    mass: Tensor
    tokens: int


class Languages(NamedTuple):
    """The languages of a multilingual batch, for separate validation losses.

    names:  of all languages of the run with a teacher
    of_row: (tokens,) int64, the language of each row
    """

    names: Sequence[str]
    of_row: Tensor


class Answer(NamedTuple):
    """A teacher's answer for a batch: a field per signal, None if it was not requested.

    distribution: for each row, in the student's order of symbols
    dropped: None if all of the teacher's symbols are the student's too
    languages: in validation, if each has its own teacher
    states: the inner states that were requested; keys of attention are in fairseq's (batch, length) rectangle
    counts: sums for the log; the same keys for every batch
    """

    distribution: Optional[TeacherAnswer] = None
    dropped: Optional[Dropped] = None
    languages: Optional[Languages] = None
    states: States = {}
    counts: Dict[str, Any] = {}


def short_name(sha256: str, parameters: int) -> str:
    """`sha256:1a2b3c4d(7.9M)`."""
    size = f"{parameters / 1e6:.1f}M" if parameters >= 50_000 else f"{parameters}"
    return f"sha256:{sha256[:8]}({size})"


def signature_of(sha256: str, parameters: int, weight: float) -> str:
    """A member of an ensemble in the run's signature: `teacher:sha256:1a2b3c4d(7.9M)*0.5`, or without *1."""
    return f"teacher:{short_name(sha256, parameters)}" + (f"*{weight:g}" if weight != 1.0 else "")


class Teacher(abc.ABC):
    """A frozen teacher. It is not an nn.Module, and must not become part of one: fairseq would train, save, move, wrap
    and average it.

    provides: the signals that it can answer with
    shape:    its sizes, if it provides HIDDEN or ATTENTION
    lacking:  why it does not provide them, for messages
    """

    provides: FrozenSet[Signal] = DISTRIBUTION
    shape: Optional[Shape] = None
    lacking: str = ""
    answers_any_target = True  # not only those of the training data

    @abc.abstractmethod
    def answer(self, batch: Dict[str, Any], request: Request) -> Answer:
        """Answers for a batch, in eval mode, without gradient, in the teacher's own dtype, on the rows' device.

        Args:
            batch: fairseq's, {net_input: {src_tokens, src_lengths, prev_output_tokens}, target, …}
        """

    @abc.abstractmethod
    def signature_fields(self) -> List[str]:
        """The teacher's identity in the run's signature: `teacher:sha256:1a2b3c4d(7.9M)`, `vocab:ok`."""

    def max_positions(self) -> List[Any]:
        """The longest (source, target) that each of its models accepts, for fairseq's length filter."""
        return []

    def check(self, objectives: Sequence[Objective]) -> None:  # noqa: B027  most can answer everything
        """Refuses objectives that it cannot answer, before training starts.

        Args:
            objectives: the run's first and last
        """

    def attach(self, dataset: Any, split: Split, required: bool) -> None:  # noqa: B027
        """Makes a dataset's batches carry what the teacher needs in addition; most need nothing.

        Args:
            dataset: fairseq's LanguagePairDataset of the split; may be modified
            required: whether this is the training split
        """

    def attach_pairs(self, dataset: Any, pairs: Sequence[Any]) -> None:  # noqa: B027
        """As `attach`, for a multilingual dataset.

        Args:
            dataset: with one of `datasets` per language pair; may be modified
            pairs: a `routing.ways.Pair` for each of these
        """

    def attach_labelled(self, dataset: Any, parts: Sequence[Any], required: bool) -> None:  # noqa: B027
        """As `attach`, for sentences with labels.

        Args:
            dataset: fairseq's of the split; may be modified
            parts: a `corpus.words_of_sentences.Part` for each of its consecutive parts
            required: whether this is the training split
        """

    def covers(self, batch: Dict[str, Any]) -> bool:
        """Whether it can answer for a batch, or for some of its rows."""
        return True

    def covered(self, batch: Dict[str, Any], rows: Tensor, training: bool) -> Optional[Tensor]:
        """(tokens,) bool, the rows of a batch that it answers for; None: all."""
        return None

    def begin_validation(self) -> None:  # noqa: B027
        """The sums that `validated` gets from now on belong to a new validation."""

    def validated(self, logs: Dict[str, Any]) -> None:  # noqa: B027
        """Takes the logged sums of a validation batch, the same on every rank."""

    def state_dict(self) -> Dict[str, Any]:
        """What has to survive a restart; most have nothing."""
        return {}

    def load_state_dict(self, state: Dict[str, Any]) -> None:  # noqa: B027
        """Restores it."""

    def complete(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        """Completes a batch whose gradient will be discarded, so that the teacher can answer for it."""
        return batch
