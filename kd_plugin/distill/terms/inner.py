"""What the terms on inner states share: which states, a scheduled weight, a module, a sum over pairs of layers."""

import abc
import math
from typing import Any, FrozenSet, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from kd_plugin.distill.course import Schedule
from kd_plugin.distill.student import StudentAnswer
from kd_plugin.distill.terms.base import Batch, Term, TermResult, sentences
from kd_plugin.distill.terms.layer_map import Pair, layer_pairs
from kd_plugin.errors import KDPluginError
from kd_plugin.models.states import Shape, StateKey
from kd_plugin.teachers.base import Answer

Keys = FrozenSet[StateKey]


class InnerTerm(Term):
    """A term over pairs of layers: the mean over the pairs, summed over positions.

    Subclasses say which states of a pair they compare (`of_pair`), make a pair's module and compute its values.
    """

    prefix: str  # of the flags: kd_hidden

    def __init__(self, cfg: Any):
        for name in (f"{self.prefix}_weight", f"{self.prefix}_weight_end"):
            value = getattr(cfg, name)
            if value is not None and not (value >= 0.0 and math.isfinite(value)):
                raise KDPluginError(f"--{name.replace('_', '-')} {value}: must be 0 or a finite number above it")
        self.schedule = Schedule.of(cfg, f"{self.prefix}_weight")
        self.layers = str(getattr(cfg, f"{self.prefix}_layers"))
        self.rate = float(cfg.kd_projection_rate)
        if not (0.0 < self.rate and math.isfinite(self.rate)):
            raise KDPluginError(f"--kd-projection-rate {self.rate}: must be a finite number above 0")
        self.pairs: List[Pair] = []

    def weight(self, update: int) -> float:
        """As Term's."""
        return self.schedule.at(update)

    @property
    def layers_flag(self) -> str:
        """The flag with the layer map."""
        return f"--{self.prefix.replace('_', '-')}-layers"

    def prepare(self, student: Optional[Shape], teacher: Optional[Shape]) -> None:
        """As Term's."""
        assert teacher is not None  # the distiller has checked `needs`
        if student is None:
            raise KDPluginError(
                f"{self.flag}: the student is not a transformer whose layers can be read. Remedy: --arch transformer "
                f"(or roberta, to label) or one of its sizes, or train without {self.flag}"
            )
        self.pairs = layer_pairs(self.layers, self.layers_flag, student, teacher)
        modules = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):  # what the student draws stays the same
            for pair in self.pairs:
                module = self.module_of(pair, student, teacher)
                if module is not None:
                    modules[pair.name] = module
        self.module = modules if len(modules) else None

    def states(self, update: int) -> Tuple[Keys, Keys]:
        """As Term's."""
        both: Tuple[List[StateKey], List[StateKey]] = ([], [])
        for pair in self.pairs:
            for what in self.of_pair(pair):
                both[0].append(StateKey(what, pair.side, pair.student))
                both[1].append(StateKey(what, pair.side, pair.teacher))
        return frozenset(both[0]), frozenset(both[1])

    def of(self, pair: Pair) -> nn.Module:
        """The pair's module."""
        assert isinstance(self.module, nn.ModuleDict)
        return self.module[pair.name]

    def teacher_keys(self, pair: Pair) -> List[StateKey]:
        """The teacher's states of a pair."""
        return [StateKey(what, pair.side, pair.teacher) for what in self.of_pair(pair)]

    @abc.abstractmethod
    def of_pair(self, pair: Pair) -> Tuple[str, ...]:
        """The kinds of state to compare."""

    @abc.abstractmethod
    def module_of(self, pair: Pair, student: Shape, teacher: Shape) -> Optional[nn.Module]:
        """What is trained for a pair; None: nothing.

        Raises:
            KDPluginError: the sizes do not fit
        """

    @abc.abstractmethod
    def values(
        self, pair: Pair, what: str, student: Tensor, teacher: Tensor, places: Tensor, shape: Tuple[int, int]
    ) -> Tensor:
        """(positions,) the distance of one pair of states.

        Args:
            what: which of `of_pair`
            places: (positions,) in the flattened (batch * length) of the pair's side
            shape: (batch, length)
        """

    def __call__(self, student: StudentAnswer, answer: Optional[Answer], batch: Batch) -> TermResult:
        """As Term's; pairs whose student layer LayerDrop has left out count 0 in this pass."""
        total = torch.zeros((), device=student.rows.device)
        if answer is None:  # the teacher does not cover the batch
            return TermResult(total, {})
        found: List[Tuple[Pair, Tensor]] = []
        for pair in self.pairs:
            places, shape = student.places(pair.side, batch.sample)
            for what in self.of_pair(pair):
                ours = student.states.get(StateKey(what, pair.side, pair.student))
                if ours is not None:
                    theirs = answer.states[StateKey(what, pair.side, pair.teacher)]
                    found.append((pair, self.values(pair, what, ours, theirs, places, shape).sum()))
        for _, value in found:
            total = total + value / sum(len(self.of_pair(pair)) for pair in self.pairs)
        self.check_finite(total, found, student, batch)
        return TermResult(total, {self.logs[0].key: total.detach()})

    def check_finite(
        self, total: Tensor, found: Sequence[Tuple[Pair, Tensor]], student: StudentAnswer, batch: Batch
    ) -> None:
        """Stops before the update if the value is NaN or infinite."""
        if torch.isfinite(total.detach()):
            return
        pairs = {f"{pair.side} {pair.teacher}-{pair.student}" for pair, value in found if not torch.isfinite(value)}
        ids = sentences(torch.zeros_like(student.rows, dtype=torch.bool), student, batch)
        raise KDPluginError(
            f"{self.logs[0].key} not finite at update {batch.update + 1}: states of the layers "
            f"{', '.join(sorted(pairs)) or 'in sum'} (teacher-student), sample ids {ids}. This update changed no "
            f"weights. Remedy: a lower --lr or {self.layers_flag[:-7]}-weight; fp32 training to find the cause"
        )
