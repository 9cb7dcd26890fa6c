"""Terms on the outputs of layers: the teacher's features, mapped, related or encoded, as targets of the student's.

FitNets (Romero et al. 2015), MiniLMv2's relations (Wang et al. 2021), factor transfer (Kim et al. 2018).
"""

import logging
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

import torch
from fairseq.dataclass import ChoiceEnum
from torch import Tensor, nn

from kd_plugin.distill.logs import PERCENT, Log
from kd_plugin.distill.student import StudentAnswer
from kd_plugin.distill.terms.base import Batch, TermResult
from kd_plugin.distill.terms.inner import InnerTerm, Keys
from kd_plugin.distill.terms.layer_map import EXAMPLE, Pair
from kd_plugin.distill.terms.projections import Factor, Projection
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.representations import (
    cosine_distance,
    factor_distance,
    relation_distance,
    squared_distance,
)
from kd_plugin.models.states import Shape
from kd_plugin.teachers.base import Answer, Signal

logger = logging.getLogger(__name__)

KINDS = ("off", "mse", "cosine", "relation", "factor")


@dataclass
class HiddenFlags:
    kd_hidden: ChoiceEnum(KINDS) = field(  # type: ignore[valid-type]
        default="off",
        metadata={
            "help": "compare the layers of student and teacher: mse and cosine, after a learned projection to the "
            "teacher's width; relation: the self-attention's queries, keys and values, each by how its positions "
            "relate (MiniLMv2; no projection); factor: the code of an auto-encoder of the teacher's layers (factor "
            "transfer). For a single fairseq or Hugging Face teacher"
        },
    )
    kd_hidden_weight: float = field(default=1.0, metadata={"help": "weight of --kd-hidden in the loss"})
    kd_hidden_weight_end: Optional[float] = field(
        default=None, metadata={"help": "value that this weight reaches after --kd-schedule-updates"}
    )
    kd_hidden_layers: str = field(
        default="last",
        metadata={
            "help": "which layers --kd-hidden compares: last, of encoder and decoder; uniform: all of the student's, "
            "each with the teacher's at the same depth; or TEACHER-STUDENT pairs, counted from 0, like " + EXAMPLE
        },
    )
    kd_relation_heads: int = field(
        default=0,
        metadata={
            "help": "number of relation heads into which --kd-hidden relation splits both widths; 0: the student's "
            "attention heads"
        },
    )
    kd_factor_updates: int = field(
        default=1000,
        metadata={
            "help": "updates in which the auto-encoder of --kd-hidden factor learns to reconstruct the teacher's "
            "layers, before it is frozen and the student learns its code"
        },
    )
    kd_factor_dim: int = field(
        default=0, metadata={"help": "width of the code of --kd-hidden factor; 0: a quarter of the teacher's width"}
    )
    kd_projection_rate: float = field(
        default=1.0,
        metadata={
            "help": "learning rate of what --kd-hidden and --kd-attention train beside the student (projections, "
            "auto-encoder, mixing of heads), as a multiple of the student's"
        },
    )


class Hidden(InnerTerm):
    """The chosen comparison of the outputs of layers."""

    name, flag, prefix = "hidden", "--kd-hidden", "kd_hidden"
    needs = uses = frozenset({Signal.HIDDEN})
    logs = (
        Log("hidden_loss"),
        Log("factor_error", "n_factor", PERCENT, 2),
    )

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self.kind = str(cfg.kd_hidden)
        self._heads, self._updates, self._dim = cfg.kd_relation_heads, cfg.kd_factor_updates, cfg.kd_factor_dim
        if self._heads < 0:
            raise KDPluginError(f"--kd-relation-heads {self._heads}: must be 0 (the student's) or more")
        if self._dim < 0:
            raise KDPluginError(f"--kd-factor-dim {self._dim}: must be 0 (a quarter of the teacher's width) or more")
        if self._updates < 1:
            raise KDPluginError(f"--kd-factor-updates {self._updates}: must be 1 or more")
        if self.kind == "relation":
            self.needs = self.uses = frozenset({Signal.HIDDEN, Signal.ATTENTION})

    def signature(self) -> str:
        """As Term's."""
        factor = f"({self._updates},{self._dim})" if self.kind == "factor" else ""
        return f"hidden:{self.kind}{factor}:{self.layers}:{self.schedule}"

    def weight(self, update: int) -> float:
        """As Term's; 1 while the auto-encoder learns."""
        return 1.0 if self._reconstructs(update) else super().weight(update)

    def _reconstructs(self, update: int) -> bool:
        return self.kind == "factor" and update < self._updates

    def states(self, update: int) -> Tuple[Keys, Keys]:
        """As Term's."""
        ours, theirs = super().states(update)
        return (frozenset() if self._reconstructs(update) else ours), theirs

    def of_pair(self, pair: Pair) -> Tuple[str, ...]:
        """As InnerTerm's."""
        return ("query", "key", "value") if self.kind == "relation" else ("output",)

    def prepare(self, student: Optional[Shape], teacher: Optional[Shape]) -> None:
        """As Term's."""
        super().prepare(student, teacher)
        assert student is not None and teacher is not None
        if self.kind == "relation" and student.attention_hidden:
            raise KDPluginError(
                f"--kd-hidden relation reads the student's self-attention, but {student.attention_hidden}. Remedy: "
                "--kd-hidden mse or cosine"
            )
        self._relation_heads: Dict[str, int] = {}
        for side in {pair.side for pair in self.pairs} if self.kind == "relation" else ():
            heads = self._heads or student.side(side).heads
            for whose, width in (("student", student.side(side).width), ("teacher", teacher.side(side).width)):
                if width % heads:
                    raise KDPluginError(
                        f"--kd-relation-heads {heads}: does not divide the {whose}'s {side} width, {width}. Remedy: a "
                        "common divisor of both widths"
                    )
            self._relation_heads[side] = heads

    def module_of(self, pair: Pair, student: Shape, teacher: Shape) -> Optional[nn.Module]:
        """As InnerTerm's."""
        ours, theirs = student.side(pair.side).width, teacher.side(pair.side).width
        if self.kind in ("mse", "cosine"):
            return Projection(ours, theirs, self.rate)
        if self.kind == "relation":
            return None
        code = self._dim or max(1, theirs // 4)
        if code >= theirs:
            raise KDPluginError(
                f"--kd-factor-dim {code}: must be below the teacher's {pair.side} width, {theirs}, to be a reduction"
            )
        logger.info(
            f"--kd-hidden factor, {pair.side} layers {pair.teacher}-{pair.student}: an auto-encoder from {theirs} to "
            f"{code} dimensions, compression {theirs / code:.1f}, learns for {self._updates} updates"
        )
        return Factor(ours, theirs, code, self.rate)

    def values(
        self, pair: Pair, what: str, student: Tensor, teacher: Tensor, places: Tensor, shape: Tuple[int, int]
    ) -> Tensor:
        """As InnerTerm's."""
        if self.kind == "relation":
            return relation_distance(student, teacher, self._relation_heads[pair.side], places, shape)
        module: Any = self.of(pair)
        if self.kind == "factor":
            return factor_distance(module.translated(student), module.code(teacher))
        distance = squared_distance if self.kind == "mse" else cosine_distance
        return distance(module(student), teacher)

    def __call__(self, student: StudentAnswer, answer: Optional[Answer], batch: Batch) -> TermResult:
        """As Term's."""
        if self.kind != "factor" or answer is None:
            return super().__call__(student, answer, batch)
        reconstructs = self._reconstructs(batch.update)
        error = torch.zeros((), device=student.rows.device)
        positions = 0
        for pair in self.pairs:
            module: Any = self.of(pair)
            if not reconstructs and batch.training:
                module.freeze()
            (teacher,) = (answer.states[key] for key in self.teacher_keys(pair))
            error = error + module.reconstruction_error(teacher).sum()
            positions += teacher.size(0)
        logs = {"factor_error": error.detach(), "n_factor": positions}
        if reconstructs:
            self.check_finite(error, [], student, batch)
            return TermResult(error, logs)
        result = super().__call__(student, answer, batch)
        return TermResult(result.value, {**result.logs, **logs})
