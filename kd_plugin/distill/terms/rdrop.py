"""R-Drop, Liang et al. 2021 (https://arxiv.org/abs/2106.14448): two dropout passes of the student should agree.

    weight * 1/2 [KL(p1 || p2) + KL(p2 || p1)], summed over target tokens, at temperature 1

The other terms are the mean of both passes. The teacher, if there is one, is asked once.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Optional

from kd_plugin.distill.logs import Log
from kd_plugin.distill.student import StudentAnswer
from kd_plugin.distill.terms.base import Batch, Term, TermResult, check_finite
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.engine.two_passes import symmetric_kl
from kd_plugin.teachers.base import Answer


@dataclass
class RDropFlags:
    kd_rdrop: float = field(
        default=0.0,
        metadata={
            "help": "weight of R-Drop: every batch goes through the student twice, and the symmetric KL between the "
            "two dropout passes is added to the loss (the paper uses 1 to 5 for translation); training only; 0: off"
        },
    )


class RDrop(Term):
    """The symmetric KL between the two passes. It comes before `tokens`, which may overwrite the logits."""

    name, flag, passes = "rdrop", "--kd-rdrop", 2
    logs = (Log("rdrop_loss"),)

    def __init__(self, cfg: Any):
        self._weight = float(cfg.kd_rdrop)
        if not (self._weight >= 0.0 and math.isfinite(self._weight)):
            raise KDPluginError(f"--kd-rdrop {cfg.kd_rdrop}: must be 0 (off) or a finite number above it")

    def weight(self, update: int) -> float:
        """As Term's."""
        return self._weight

    def __call__(self, student: StudentAnswer, answer: Optional[Answer], batch: Batch) -> TermResult:
        """As Term's; `batch.second_pass` is the other side."""
        assert batch.second_pass is not None
        value, of_rows = symmetric_kl(student.tokens, batch.second_pass.tokens)
        check_finite("rdrop_loss", of_rows, student, batch)
        return TermResult(value, {"rdrop_loss": value.detach()})
