"""A term on attention: the teacher's heads as targets of convex combinations of the student's (Align-to-Distill, Jin et
al. 2024, https://arxiv.org/abs/2403.01479)."""

from dataclasses import dataclass, field
from typing import Any, Optional, Tuple

from fairseq.dataclass import ChoiceEnum
from torch import Tensor, nn

from kd_plugin.distill.logs import Log
from kd_plugin.distill.terms.inner import InnerTerm
from kd_plugin.distill.terms.layer_map import EXAMPLE, Pair
from kd_plugin.distill.terms.projections import HeadMixing
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.representations import attention_distance
from kd_plugin.models.states import Shape
from kd_plugin.teachers.base import Signal

KINDS = ("off", "cross", "self", "both")


@dataclass
class AttentionFlags:
    kd_attention: ChoiceEnum(KINDS) = field(  # type: ignore[valid-type]
        default="off",
        metadata={
            "help": "compare the attention of student and teacher: cross: from the decoder to the source; self: within "
            "encoder and decoder; both. For a single fairseq or Hugging Face teacher"
        },
    )
    kd_attention_weight: float = field(default=1.0, metadata={"help": "weight of --kd-attention in the loss"})
    kd_attention_weight_end: Optional[float] = field(
        default=None, metadata={"help": "value that this weight reaches after --kd-schedule-updates"}
    )
    kd_attention_layers: str = field(
        default="last",
        metadata={
            "help": f"which layers --kd-attention compares: last, uniform or pairs like {EXAMPLE}, as for hidden"
        },
    )


class Attention(InnerTerm):
    """KL(A_T || C A_S) over the positions that both may attend to."""

    name, flag, prefix = "attention", "--kd-attention", "kd_attention"
    needs = uses = frozenset({Signal.ATTENTION})
    logs = (Log("attention_loss"),)

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self.kind = str(cfg.kd_attention)

    def signature(self) -> str:
        """As Term's."""
        return f"attention:{self.kind}:{self.layers}:{self.schedule}"

    def of_pair(self, pair: Pair) -> Tuple[str, ...]:
        """As InnerTerm's."""
        kinds = {"self": ("self",), "cross": ("cross",), "both": ("self", "cross")}[self.kind]
        return tuple(kind for kind in kinds if kind == "self" or pair.side == "decoder")

    def prepare(self, student: Optional[Shape], teacher: Optional[Shape]) -> None:
        """As Term's."""
        super().prepare(student, teacher)
        assert student is not None
        if student.attention_hidden:
            raise KDPluginError(
                f"--kd-attention: the student's attention cannot be read: {student.attention_hidden}. Remedy: train "
                "without --kd-attention"
            )
        if not any(self.of_pair(pair) for pair in self.pairs):
            raise KDPluginError(
                f"--kd-attention-layers {self.layers}: --kd-attention {self.kind} is in the decoder. Remedy: pairs "
                "after dec:"
            )

    def module_of(self, pair: Pair, student: Shape, teacher: Shape) -> Optional[nn.Module]:
        """As InnerTerm's: a mixing for each kind."""
        heads = student.side(pair.side).heads, teacher.side(pair.side).heads
        kinds = self.of_pair(pair)
        return nn.ModuleDict({kind: HeadMixing(*heads, self.rate) for kind in kinds}) if kinds else None

    def values(
        self, pair: Pair, what: str, student: Tensor, teacher: Tensor, places: Tensor, shape: Tuple[int, int]
    ) -> Tensor:
        """As InnerTerm's."""
        mixing: Any = self.of(pair)
        return attention_distance(student, teacher, mixing[what]())
