"""The main term of a student that predicts numbers: squared errors to the reference and to the teacher.

alpha * (student - reference)**2 + (1 - alpha) * (student - teacher)**2
"""

from typing import Any, Dict, Optional

import torch
from torch import Tensor

from kd_plugin.distill.logs import PERCENT, Log
from kd_plugin.distill.student import StudentAnswer
from kd_plugin.distill.terms.base import Batch, TermResult, sentences
from kd_plugin.distill.terms.tokens import TokensTerm
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.engine.dispatch import StudentLogits
from kd_plugin.teachers.base import Answer

SQUARED = (
    Log("ce_loss", "n_own", unit=1.0),
    Log("kd_loss", unit=1.0),
    Log("teacher_mse", "n_own", unit=1.0),
    Log("n_truncated", "n_read", PERCENT, 2, "teacher_truncated"),
    Log("kd_alpha", "n_batches", unit=1.0, round=4),
    Log("nll_loss", "ntokens"),
)


class ValuesTerm(TokensTerm):
    """Squared errors; numbers have neither a temperature nor a divergence."""

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        defaults = {"kd_temperature": 1.0, "kd_temperature_end": None, "kd_divergence": "forward_kl", "kd_top1_rank": 0}
        for name, default in {**defaults, "kd_selection": "all", "kd_rdrop": 0.0}.items():
            if str(getattr(cfg, name)) != str(default):
                raise KDPluginError(
                    f"--{name.replace('_', '-')} {getattr(cfg, name)}: has no meaning with --regression-target, whose "
                    "student learns numbers by their squared error. Remedy: leave it out"
                )

    def __call__(self, student: StudentAnswer, answer: Optional[Answer], batch: Batch) -> TermResult:
        """As Term's."""
        assert isinstance(student.tokens, StudentLogits) and batch.stock_loss is not None
        predicted = student.tokens.logits.index_select(0, student.rows)
        known = torch.ones(len(predicted), dtype=torch.bool, device=predicted.device)
        known = known if batch.unlabelled is None else ~batch.unlabelled
        stock, _ = batch.stock_loss()
        logs: Dict[str, Any] = {"ce_loss": stock.detach(), "nll_loss": stock.detach()}
        teacher = None if answer is None else answer.distribution
        if teacher is None:
            return self._checked(stock, predicted, logs, student, batch)
        values = teacher.logits.to(predicted.device).float()
        distances = (predicted.float() - values).square().sum(dim=1)
        reference = student.target[known].float()
        alpha = batch.alpha
        logs.update(answer.counts if answer is not None else {})
        logs.update(
            kd_loss=distances.sum().detach(),
            teacher_mse=(values[known] - reference).square().sum(),
            kd_alpha=alpha,
            n_batches=1,
        )
        if alpha == 1.0 and batch.unlabelled is None:
            return self._checked(stock, predicted, logs, student, batch)
        taught = (1.0 - alpha) * distances[known].sum() + distances[~known].sum()
        return self._checked(alpha * stock + taught, predicted, logs, student, batch)

    def _checked(
        self, value: Tensor, predicted: Tensor, logs: Dict[str, Any], student: StudentAnswer, batch: Batch
    ) -> TermResult:
        """Stops before the update if the value is NaN or infinite."""
        if torch.isfinite(value.detach()):
            return TermResult(value, logs)
        of_student = ~torch.isfinite(predicted.detach()).all(dim=1)
        whose = "student" if bool(of_student.any()) else "teacher"
        raise KDPluginError(
            f"loss not finite at update {batch.update + 1}: NaN or infinite numbers of the {whose}, sample ids "
            f"{sentences(of_student, student, batch)}. This update changed no weights. Remedy: a lower --lr or "
            "--clip-norm for the student; --teacher-dtype fp32 for the teacher"
        )
