"""The teacher of a multilingual student: several, and every sentence is sent to the one of its language."""

import logging
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from kd_plugin.cache.data import Split
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.answer import ProjectedAnswer
from kd_plugin.losses.definition import Objective
from kd_plugin.losses.joined_answer import JoinedAnswer, Part
from kd_plugin.teachers.base import Answer, Dropped, Languages, Request, Teacher
from kd_plugin.teachers.online import OnlineTeacher
from kd_plugin.teachers.routing.batches import Drop, Sides, moved_columns, without_tags
from kd_plugin.teachers.routing.marking import WAYS, MarkByNumber, MarkByTag, Numbered
from kd_plugin.teachers.routing.resting import Resting
from kd_plugin.teachers.routing.ways import Pair, Way

logger = logging.getLogger(__name__)

OTHERS = "without one of these tags"
LOOKED_AT = 20_000  # sentences of a data set in which tags are counted before training


class Expert(NamedTuple):
    """A teacher of the routing file.

    keeps_tags: whether it reads the sentences' language tags
    """

    name: str
    teacher: OnlineTeacher
    keeps_tags: bool


class Data(NamedTuple):
    """What the routing must know about the student's data.

    vocab: the target dictionary's size
    tag_side: of plain tagged sentences, `source` or `target`
    tags: (tokens,) int64 each, of plain tagged sentences' ways
    """

    sides: Sides
    vocab: int
    tag_side: str = "source"
    tags: Sequence[Tensor] = ()


class RoutedTeacher(Teacher):
    """Sends each sentence to the teacher of its language pair or tag (Tan et al. 2019,
    https://arxiv.org/abs/1902.10461); other sentences have no answer.

    Args:
        experts: the teachers
        ways: the kinds of sentences; `route` counts the experts. Others are added by `attach_pairs`
        of_pair: the way of each pair of a multilingual task
    """

    lacking = "the teachers of --teacher-routing have none in common"

    def __init__(
        self,
        experts: Sequence[Expert],
        ways: Sequence[Way],
        of_pair: Dict[Pair, Way],
        data: Data,
        switch_off: Optional[float] = None,
    ):
        self.experts, self._ways, self._of_pair, self._data = list(experts), list(ways), of_pair, data
        self._names = sorted({way.name for way in (*ways, *of_pair.values()) if way.route is not None})
        self.resting = Resting(switch_off)
        members = [member for expert in experts for member in expert.teacher.members]
        self._knows_target = not any(member.target.lacks for member in members)
        self._restricted = any(member.target.restricted for member in members)

    def signature_fields(self) -> List[str]:
        """`teacher[de-en]:sha256:1a2b3c4d(7.9M)` for each, and the switch."""
        fields = []
        for name, teacher, _ in self.experts:
            *members, vocab = teacher.signature_fields()
            fields += [f"{label.replace('teacher', f'teacher[{name}]', 1)}" for label in members] + [vocab]
        margin = self.resting.margin
        return fields + ([] if margin is None else [f"switch_off:{margin:g}"])

    def max_positions(self) -> List[Any]:
        """The longest (source, target) that each teacher accepts."""
        return [limit for expert in self.experts for limit in expert.teacher.max_positions()]

    def check(self, objectives: Sequence[Objective]) -> None:
        """As Teacher's."""
        for expert in self.experts:
            expert.teacher.check(objectives)

    def attach(self, dataset: Any, split: Split, required: bool) -> None:
        """Makes every batch say which way its sentences go, by their tags.

        Raises:
            KDPluginError: no training sentence seems to have a teacher
        """
        marker = MarkByTag(dataset.collater, self._data.tag_side, self._data.tags, self._pad_of_tags())
        shares = self._shares(dataset, marker)
        said = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        logger.info(f"{split.name}: sentences by tag: {said}")
        taught = [way.name for way in self._ways if way.route is not None]
        if required and not any(shares[name] for name in taught):
            raise KDPluginError(
                f"--teacher-routing: no {self._data.tag_side} sentence of {split.name} begins with one of the tags "
                f"{', '.join(taught)}. Remedy: the tags as they are in the binarised data, or "
                f"`side: {'source' if self._data.tag_side == 'target' else 'target'}`"
            )
        dataset.collater = marker

    def attach_pairs(self, dataset: Any, pairs: Sequence[Pair]) -> None:
        """As `attach`, for a multilingual dataset."""
        for number, (part, pair) in enumerate(zip(dataset.datasets, pairs)):
            if not isinstance(part, Numbered):  # fairseq keeps some data sets for several epochs
                dataset.datasets[number] = Numbered(part, self._number_of(pair))
        if not isinstance(dataset.collater, MarkByNumber):
            dataset.collater = MarkByNumber(dataset.collater)

    def covers(self, batch: Dict[str, Any]) -> bool:
        """Whether a batch says which way its sentences go."""
        return WAYS in batch

    def covered(self, batch: Dict[str, Any], rows: Tensor, training: bool) -> Optional[Tensor]:
        """The rows of sentences with a teacher, which rests for some languages in training, but not of tags that the
        teacher does not know."""
        target, resting = batch["target"], self.resting.names() if training else ()
        first: List[int] = []  # position of the first token that is answered for, counted from the sentence's first
        for number in batch[WAYS]:
            way = self._ways[number] if number >= 0 else None
            answered = way is not None and way.route is not None and way.name not in resting
            first.append(self._drop(way).target if way is not None and answered else target.size(1))
        begins = target.ne(self._data.sides.pad[1]).long().argmax(dim=1) + torch.tensor(first, device=target.device)
        sentences = rows // target.size(1)
        return rows % target.size(1) >= begins[sentences]

    @torch.no_grad()
    def answer(self, batch: Dict[str, Any], request: Request) -> Answer:
        """As Teacher's, for rows that are `covered`."""
        target = batch["target"]
        length = target.size(1)
        sentence_of = (request.rows // length).cpu().numpy()
        groups: Dict[Tuple[int, Drop], List[int]] = {}  # the sentences that go the same way
        for sentence in np.unique(sentence_of).tolist():
            way = self._ways[batch[WAYS][sentence]]
            assert way.route is not None
            groups.setdefault((way.route, self._drop(way)), []).append(sentence)
        parts: List[Part] = []
        dropped: List[Dropped] = []
        for (route, drop), sentences in groups.items():
            positions = np.flatnonzero(np.isin(sentence_of, sentences))
            rows = request.rows[torch.from_numpy(positions).to(target.device)]
            chosen = torch.tensor(sentences, device=target.device)
            net_input = without_tags(batch["net_input"], chosen, drop, self._data.sides)
            width = net_input["prev_output_tokens"].size(1)
            columns = moved_columns(rows % length, length, width, drop, self._data.sides)
            moved = torch.searchsorted(chosen, rows // length) * width + columns
            answer = self.experts[route].teacher.answer({"net_input": net_input}, request._replace(rows=moved))
            assert isinstance(answer.distribution, ProjectedAnswer)
            parts.append(Part(answer.distribution, positions))
            if answer.dropped is not None:
                dropped.append(answer.dropped)
        distribution: Any = JoinedAnswer(parts, self._data.vocab, target.device)
        if len(parts) == 1:
            distribution = parts[0].answer
        # what is logged must not depend on the batch, since ranks sum their logs
        distribution.knows_target = self._knows_target
        return Answer(
            distribution,
            _sum(dropped, target.device) if self._restricted else None,
            None if request.training else self._languages(batch, sentence_of, target.device),
        )

    def begin_validation(self) -> None:
        """As Teacher's."""
        self.resting.begin_validation()

    def validated(self, logs: Dict[str, Any]) -> None:
        """Compares the student with each language's teacher."""
        self.resting.add(logs, self._names)

    def state_dict(self) -> Dict[str, Any]:
        """The languages whose teachers rest; empty if none ever does."""
        return {} if self.resting.margin is None else self.resting.state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """As Teacher's."""
        self.resting.load_state_dict(state)

    def _languages(self, batch: Dict[str, Any], sentence_of: np.ndarray, device: torch.device) -> Languages:
        of_sentence = [self._names.index(self._ways[way].name) if self._taught(way) else -1 for way in batch[WAYS]]
        return Languages(self._names, torch.tensor(of_sentence, device=device)[torch.from_numpy(sentence_of)])

    def _taught(self, way: int) -> bool:
        return way >= 0 and self._ways[way].route is not None

    def _drop(self, way: Way) -> Drop:
        """What the way's teacher does not read."""
        assert way.route is not None
        if self.experts[way.route].keeps_tags:
            return Drop()
        source, target = len(way.tags.source), len(way.tags.target)
        if way.tags.replaces:
            return Drop(0, 0, source > 0, target > 0)
        return Drop(source, target)

    def _number_of(self, pair: Pair) -> int:
        way = self._of_pair[pair]
        if way not in self._ways:
            self._ways.append(way)
        return self._ways.index(way)

    def _pad_of_tags(self) -> int:
        return self._data.sides.pad[1 if self._data.tag_side == "target" else 0]

    def _shares(self, dataset: Any, marker: MarkByTag) -> Dict[str, float]:
        """The share of sentences of each way, and of OTHERS, in a sample."""
        texts = dataset.tgt if self._data.tag_side == "target" else dataset.src
        longest = max((len(tag) for tag in self._data.tags), default=1)
        looked_at = range(0, len(texts), -(-len(texts) // LOOKED_AT) or 1)
        counts: Dict[str, float] = {way.name: 0 for way in self._ways}
        for index in looked_at:
            (way,) = marker.of(texts[index][:longest].long().unsqueeze(0))
            name = self._ways[way].name if way >= 0 else OTHERS
            counts[name] = counts.get(name, 0) + 1 / len(looked_at)
        return counts


def _sum(dropped: Sequence[Dropped], device: torch.device) -> Dropped:
    mass = torch.stack([torch.zeros((), device=device), *(one.mass for one in dropped)]).sum()
    return Dropped(mass, sum(one.tokens for one in dropped))
