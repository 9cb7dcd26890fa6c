"""The criterion of sentence classification: fairseq's sentence_prediction with a teacher beside the labels.

loss = alpha * CE + (1 - alpha) * temperature**2 * D(teacher || student)  [+ further terms]
loss = alpha * (student - reference)**2 + (1 - alpha) * (student - teacher)**2, with --regression-target
"""

from dataclasses import dataclass
from typing import Any, Dict, Sequence, Tuple

from fairseq.criterions import register_criterion
from fairseq.criterions.sentence_prediction import SentencePredictionConfig, SentencePredictionCriterion
from torch import Tensor

from kd_plugin.criterions.flags import DistillationFlags
from kd_plugin.criterions.labelling import LabellingCriterion
from kd_plugin.criterions.with_terms import check_free
from kd_plugin.distill.labelling import Logs
from kd_plugin.distill.logs import Log
from kd_plugin.distill.terms.tokens import TokensTerm
from kd_plugin.distill.terms.values import SQUARED, ValuesTerm
from kd_plugin.errors import KDPluginError

CRITERION_NAME = "kd_sentence_prediction"

check_free(CRITERION_NAME)


@dataclass
class KDSentencePredictionConfig(DistillationFlags, SentencePredictionConfig):
    pass


@register_criterion(CRITERION_NAME, dataclass=KDSentencePredictionConfig)
class KDSentencePredictionCriterion(LabellingCriterion, SentencePredictionCriterion):
    """Runs the student, then its distiller.

    Args:
        cfg: the flags; fairseq passes the whole config
        task: its `teacher` is used; without a teacher it can only train with --kd-alpha 1
    """

    name = CRITERION_NAME

    def __init__(self, cfg: Any, task: Any):
        super().__init__(cfg, task)
        numbers = bool(cfg.regression_target)
        self.set_up(cfg, task, numbers, ValuesTerm if numbers else TokensTerm)

    def stock_loss(self, model: Any, net_output: Any, sample: Dict[str, Any]) -> Tuple[Tensor, Logs]:
        """As LabellingCriterion's: fairseq's own code, on an output that is there already."""
        loss, _, logs = SentencePredictionCriterion.forward(self, _Answered(model, net_output), sample)
        if self.distiller.teacher is not None and ("mha_reg_loss" in logs or "ffn_reg_loss" in logs):
            raise KDPluginError(
                f"{CRITERION_NAME} does not distil together with --mha-reg-scale-factor or --ffn-reg-scale-factor. "
                "Remedy: leave them at 0"
            )
        return loss, logs

    def sample_size(self, sample: Dict[str, Any], logs: Logs) -> int:
        """As LabellingCriterion's: sentences, or numbers."""
        return int(sample["target"].numel())

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[Dict[str, Any]]) -> None:  # type: ignore[override]
        """Aggregate logging outputs from data parallel training; losses in bits, as fairseq logs them."""
        own = [_as_stock(log) for log in logging_outputs]
        if not sum(log.get("nsentences", 0) for log in own):
            for log in own:
                log.pop("ncorrect", None)
        SentencePredictionCriterion.reduce_metrics(own)
        if any("ncorrect" not in log for log in logging_outputs):
            for shown in SQUARED:
                shown.reduce(logging_outputs)
            return
        cls.reduce_terms(logging_outputs)
        Log("nll_loss", "ntokens").reduce(logging_outputs)


class _Answered:
    """A model that has computed its output already."""

    def __init__(self, model: Any, net_output: Any):
        self._model, self._net_output = model, net_output

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self._net_output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _as_stock(log: Dict[str, Any]) -> Dict[str, Any]:
    """What fairseq's reduce_metrics shows rightly: not its nll_loss, which is the whole loss per token."""
    return {**log, "ntokens": log.get("sample_size", 0), "nsentences": log.get("n_own", 0)}
