"""A frozen teacher, or a weighted ensemble of teachers, that runs on every batch of the student."""

import logging
import math
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence

import torch
from torch import Tensor

from kd_plugin.compat import cpu_computes
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.answer import Project, ProjectedAnswer, TeacherAnswer, new_buffer
from kd_plugin.models.states import Shape
from kd_plugin.teachers.base import DISTRIBUTION, Answer, Dropped, Request, Signal, Teacher, signature_of
from kd_plugin.teachers.member import Member

logger = logging.getLogger(__name__)

DROPPED_SHARE = 0.01  # warn if more of the teacher's probability than this is dropped on average
DROPPED_TOKENS, DROPPED_PIECE = 256, 32  # tokens per batch in which dropped probability is measured; at a time
TEACHER_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class OnlineTeacher(Teacher):
    """Runs the teachers in eval mode, without gradient, in their own dtype, on the batch's device.

    Args:
        members: the loaded teachers
        weights: one weight >= 0 per teacher, normalised to sum to 1; None: equal weights. The answer is the mixture of
            their probabilities; a teacher of weight 0 is dropped.
        dtype: `fp32`, `fp16`, `bf16`, or `auto`: the student's dtype on a GPU, fp32 on a CPU
    """

    joins: Callable[..., TeacherAnswer] = ProjectedAnswer  # the members' answers into one

    def __init__(self, members: Sequence[Member], weights: Optional[Sequence[float]] = None, dtype: str = "auto"):
        weights = [1.0] * len(members) if weights is None else list(weights)
        if len(weights) != len(members):
            raise KDPluginError(f"--teacher-weights names {len(weights)} weights for {len(members)} teachers")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
            raise KDPluginError(f"--teacher-weights {weights}: weights must be >= 0 and not all 0")
        self.dtype = dtype
        self._warned = False
        self._dropped = RunningMean()
        if dtype in TEACHER_DTYPES:  # with auto, this is checked on the first batch
            for member in members:
                member.check_range(TEACHER_DTYPES[dtype])
        kept = [(member, weight / sum(weights)) for member, weight in zip(members, weights) if weight > 0]
        self.members = [member for member, _ in kept]
        self.log_weights = [math.log(weight) for _, weight in kept]

    @property
    def shape(self) -> Optional[Shape]:  # type: ignore[override]
        """The sizes of a single teacher; an ensemble has no common ones."""
        return self.members[0].shape if len(self.members) == 1 else None

    @property
    def provides(self) -> FrozenSet[Signal]:  # type: ignore[override]
        """Inner states only as a single teacher, of a kind whose states can be read."""
        if self.shape is None:
            return DISTRIBUTION
        return DISTRIBUTION | {Signal.HIDDEN} | (set() if self.shape.attention_hidden else {Signal.ATTENTION})

    @property
    def lacking(self) -> str:  # type: ignore[override]
        """As Teacher's."""
        if len(self.members) > 1:
            return f"an ensemble of {len(self.members)} teachers has none in common"
        if self.shape is None:
            return f"{type(self.members[0].model).__name__} is not a transformer whose layers can be read"
        return self.shape.attention_hidden

    def weights(self) -> List[float]:
        """The weight of each member, summing to 1."""
        return [math.exp(log_weight) for log_weight in self.log_weights]

    def max_positions(self) -> List[Any]:
        """The longest (source, target) that each teacher accepts, for fairseq's length filter."""
        return [member.max_positions() for member in self.members]

    def signature_fields(self) -> List[str]:
        """The teachers and whether their vocabularies were remapped, for the run's signature."""
        weights = self.weights() if len(self.members) > 1 else [1.0]
        remapped = any(m.source_indices is not None or m.target_indices is not None for m in self.members)
        return [
            *(signature_of(m.sha256, m.parameters, weight) for m, weight in zip(self.members, weights)),
            "vocab:remapped" if remapped else "vocab:ok",
        ]

    @torch.no_grad()
    def answer(self, batch: Dict[str, Any], request: Request) -> Answer:
        """As Teacher's; `auto` follows the request's dtype on a GPU."""
        rows, dtype = request.rows, self._dtype_for(request)
        answers = []
        for member in self.members:
            member.place(rows.device, dtype)
            # the student's autocast must not change the teacher's dtype
            with torch.autocast(device_type=rows.device.type, enabled=False):
                answers.append(member.answer(batch, rows, request.inner))
        distribution = self.joins([(values, project) for values, _, project, _ in answers], self.log_weights)
        states = answers[0][-1]
        distribution.knows_target = not any(member.target.lacks for member in self.members)
        if not any(member.target.restricted for member in self.members) or rows.numel() == 0:
            return Answer(distribution, states=states)
        # measured on all tokens, or on a sample across a large batch, because it needs the teacher's whole vocabulary
        some = torch.arange(0, rows.numel(), -(-rows.numel() // DROPPED_TOKENS), device=rows.device)
        shares = [
            weight * _dropped_mass(values.index_select(0, some), whole, project)
            for member, weight, (values, whole, project, _) in zip(self.members, self.weights(), answers)
            if member.target.restricted
        ]
        dropped = Dropped(torch.stack(shares).sum(), some.numel())
        self._watch(dropped)
        return Answer(distribution, dropped, states=states)

    def _watch(self, dropped: Dropped) -> None:
        """Warns once if the student's symbols leave out much of the teacher's probability."""
        mean = self._dropped.add(dropped)
        if mean is not None and mean > DROPPED_SHARE:
            self._dropped.done = True
            logger.warning(
                f"the student's symbols leave out {mean:.1%} of the teacher's probability (teacher_dropped), and the "
                "divergence ignores it. Remedy: a dictionary with more of the teacher's symbols"
            )

    def _dtype_for(self, request: Request) -> torch.dtype:
        device = request.rows.device
        if self.dtype == "auto":
            return request.dtype if device.type == "cuda" else torch.float32
        dtype = TEACHER_DTYPES[self.dtype]
        if device.type == "cpu" and dtype != torch.float32 and not self._warned and not cpu_computes(self.dtype):
            self._warned = True
            logger.warning(
                f"--teacher-dtype {self.dtype}: this CPU has no {self.dtype} units, so the teacher will take about ten "
                "times as long. Remedy: --teacher-dtype auto"
            )
        return dtype


class RunningMean:
    """The mean dropped probability per token; evaluated after 1, 10, 100, … batches, because each evaluation makes the
    host wait for the device."""

    def __init__(self) -> None:
        self.done = False
        self._batches, self._next, self._tokens = 0, 1, 0
        self._total: Any = 0.0

    def add(self, dropped: Dropped) -> Optional[float]:
        """Adds a batch; returns the mean per token if it is evaluated now, else None."""
        self._batches += 1
        if self.done:
            return None
        self._total, self._tokens = self._total + dropped.mass, self._tokens + dropped.tokens
        if self._batches < self._next:
            return None
        self._next *= 10
        return float(self._total) / self._tokens


def _dropped_mass(features: Tensor, whole: Project, project: Project) -> Tensor:
    """The probability of symbols that the student lacks, summed over the tokens."""
    total = torch.zeros((), device=features.device)
    for piece in features.split(DROPPED_PIECE):
        everything, kept = (torch.logsumexp(one(piece, new_buffer).float(), dim=-1) for one in (whole, project))
        total = total - torch.expm1(kept - everything).clamp(max=0.0).sum()
    return total
