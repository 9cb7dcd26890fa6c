"""What the kinds of labelling teachers share: the student's labels, and which word each row of a batch is."""

import logging
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from fairseq.data import Dictionary
from torch import Tensor

from kd_plugin.corpus.labelled_folder import IGNORE, Reading
from kd_plugin.corpus.labels import mapped, shown
from kd_plugin.corpus.words import Words
from kd_plugin.corpus.words_of_sentences import Part, WordsOfSentences
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.answer import TeacherAnswer
from kd_plugin.teachers.base import Answer, Request
from kd_plugin.teachers.member import Member
from kd_plugin.teachers.online import OnlineTeacher
from kd_plugin.teachers.vocabulary import Symbols

logger = logging.getLogger(__name__)


class Labelling(NamedTuple):
    """What a student labels.

    tokens:     words (each at its first symbol) rather than whole sentences
    names:      of the labels, in the order of its outputs; None: it predicts numbers
    outputs:    the number of its outputs
    dictionary: of its text
    reading:    how the text is read
    head:       the name of its classification head
    limit:      the most symbols of a sentence that it reads
    """

    tokens: bool
    names: Optional[List[str]]
    outputs: int
    dictionary: Dictionary
    reading: Reading
    head: str
    limit: int

    def words(self) -> Words:
        separators = [self.reading.init_token, self.reading.separator_token]
        return Words(self.dictionary, self.reading.word_start, [one for one in separators if one is not None])


class LabelMember(Member):
    """A model that labels."""

    reads_text = False  # with a tokenizer of its own, rather than the student's symbols
    truncates = False  # whether it may read less of a sentence than the student

    def max_positions(self) -> Any:
        """As Member's: it reads the beginning of longer sentences."""
        return None

    def attach(self, dataset: Any, words: WordsOfSentences) -> None:  # noqa: B027  most need nothing
        """Makes a data set's batches carry what the model reads, if that is not the student's tokens."""

    def covered(self, batch: Dict[str, Any], rows: Tensor) -> Optional[Tensor]:
        """(tokens,) bool, the rows that it answers for; None: all."""
        return None

    def truncated(self, batch: Dict[str, Any]) -> Tensor:
        """(sentences,) bool, those of which it reads only the beginning."""
        raise NotImplementedError

    def lost(self, batch: Dict[str, Any]) -> Optional[Tensor]:
        """(sentences,) the number of words that its tokenizer leaves nothing of; None: it cannot happen."""
        return None


def word_numbers(target: Tensor) -> Tensor:
    """(batch, length) int64: of each position that counts, how many count before it in its sentence."""
    return target.ne(IGNORE).long().cumsum(dim=1) - 1


def label_symbols(labelling: Labelling, names: Optional[Sequence[str]], outputs: int, path: str, given: Any) -> Symbols:
    """The student's labels as a teacher has them.

    Args:
        names: of the teacher's outputs; None: it does not say them
        outputs: their number
        given: --teacher-labels, which takes precedence; None: not given

    Raises:
        KDPluginError: the labels are unknown, or are others than the student's
    """
    if labelling.names is None:
        if outputs != labelling.outputs:
            raise KDPluginError(
                f"{path}: predicts {outputs} numbers, but the student {labelling.outputs}. Remedy: --num-classes "
                f"{outputs}, or a teacher for these data"
            )
        return Symbols()
    said = list(names or []) if given is None else list(given)
    if not said:
        raise KDPluginError(
            f"{path}: the names of its {outputs} labels are unknown, so it is unclear what its outputs mean. Remedy: "
            "name them in their order, as the student's label/dict.txt calls them: --teacher-labels NAME,NAME,… (the "
            f"student's are {shown(labelling.names)}); for a fairseq checkpoint, the folder with label/dict.txt also "
            'does: --teacher-overrides \'{"data": "FOLDER"}\''
        )
    if len(said) != outputs:
        source = "--teacher-labels names" if given is not None else "its configuration names"
        raise KDPluginError(
            f"{path}: has {outputs} outputs, but {source} {len(said)} labels ({shown(said)}). Remedy: all its labels, "
            "in the order of its outputs"
        )
    indices = mapped(labelling.names, said, path)
    if indices is not None:
        logger.info(f"{path}: its labels have another order ({', '.join(said[:12])}) and are matched by name")
    return Symbols(indices)


class MeanAnswer(TeacherAnswer):
    """The weighted mean of numbers that several models predict: the answer of an ensemble in regression."""

    def __init__(self, members: Sequence[Tuple[Tensor, Any]], log_weights: Sequence[float]):
        weighted = [weight * values.float() for (values, _), weight in zip(members, torch.tensor(log_weights).exp())]
        super().__init__(torch.stack(weighted).sum(dim=0))


class LabellingTeacher(OnlineTeacher):
    """An ensemble of labelling models that runs on every batch of the student."""

    members: List[LabelMember]  # type: ignore[assignment]

    def __init__(
        self,
        members: Sequence[LabelMember],
        labelling: Labelling,
        weights: Optional[Sequence[float]] = None,
        dtype: str = "auto",
    ):
        super().__init__(members, weights, dtype)
        self.labelling = labelling
        if labelling.names is None:
            self.joins = MeanAnswer
        self._said: set = set()

    @property
    def lacking(self) -> str:  # type: ignore[override]
        """As Teacher's."""
        if any(member.reads_text for member in self.members):
            return "a Hugging Face model reads other tokens than the student, so their layers have no common positions"
        return super().lacking

    def max_positions(self) -> List[Any]:
        """As Teacher's: none; what is too long is cut, and counted."""
        return []

    def attach_labelled(self, dataset: Any, parts: Sequence[Part], required: bool) -> None:
        """As Teacher's."""
        words = WordsOfSentences(parts, self.labelling.words())
        for member in self.members:
            member.attach(dataset, words)

    def covered(self, batch: Dict[str, Any], rows: Tensor, training: bool) -> Optional[Tensor]:
        """As Teacher's: the rows that every member answers for."""
        found = [mask for member in self.members for mask in [member.covered(batch, rows)] if mask is not None]
        return torch.stack(found).all(dim=0) if found else None

    def answer(self, batch: Dict[str, Any], request: Request) -> Answer:
        """As Teacher's, with the number of sentences of which a member reads only the beginning."""
        answer = super().answer(batch, request)
        for member in self.members:
            self._warn_of_lost(member, batch)
        cut = [(member, member.truncated(batch)) for member in self.members if member.truncates]
        if not cut:
            return answer
        for member, mask in cut:
            if member.path not in self._said and bool(mask.any()):
                self._said.add(member.path)
                logger.warning(
                    f"teacher {member.path}: reads only the beginning of sentences longer than its limit, such as the "
                    f"sample {int(batch['id'][mask][0])}, whatever the student reads of them. teacher_truncated "
                    "counts them"
                )
        some = torch.stack([mask for _, mask in cut]).any(dim=0).sum()
        return answer._replace(counts={"n_truncated": some, "n_read": int(batch["id"].numel())})

    def _warn_of_lost(self, member: LabelMember, batch: Dict[str, Any]) -> None:
        lost = member.lost(batch)
        if lost is None or (member.path, "lost") in self._said or not bool(lost.any()):
            return
        self._said.add((member.path, "lost"))
        logger.warning(
            f"teacher {member.path}: its tokenizer leaves nothing of some words, such as in the sample "
            f"{int(batch['id'][lost > 0][0])}. They learn from their labels alone; kd_untaught counts them"
        )
