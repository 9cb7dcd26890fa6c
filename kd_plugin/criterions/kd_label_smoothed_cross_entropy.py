"""The criterion: fairseq's label-smoothed cross-entropy with a teacher's distribution beside the reference.

loss = alpha * CE(label-smoothed) + (1 - alpha) * temperature**2 * D(teacher || student)  [+ further terms]
"""

from typing import Any, Dict, Sequence, Tuple

from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from torch import Tensor

from kd_plugin.corpus.noisy_sources import counts_of
from kd_plugin.criterions.flags import KDLabelSmoothedCrossEntropyCriterionConfig, check_flags
from kd_plugin.criterions.with_terms import WithTerms, check_free
from kd_plugin.distill.distiller import Distiller
from kd_plugin.distill.logs import PERCENT, Log
from kd_plugin.distill.on_policy.flags import check_on_policy
from kd_plugin.distill.on_policy.policy import LOGS, OnPolicy
from kd_plugin.distill.step import Step
from kd_plugin.distill.student import Student
from kd_plugin.distill.terms import TERMS
from kd_plugin.errors import KDPluginError

CRITERION_NAME = "kd_label_smoothed_cross_entropy"
OF_NOISE = (
    Log("n_augmented", "n_augment_read", PERCENT, 2, "augmented"),
    Log("n_augment_left", "n_augment_read", PERCENT, 2, "augment_left"),
)

check_free(CRITERION_NAME)


@register_criterion(CRITERION_NAME, dataclass=KDLabelSmoothedCrossEntropyCriterionConfig)
class KDLabelSmoothedCrossEntropyCriterion(WithTerms, LabelSmoothedCrossEntropyCriterion):
    """Runs the student, then its distiller, which asks the teacher and sums the terms of the loss.

    Args:
        cfg: the flags; fairseq passes the whole config
        task: its `teacher` is used; without a teacher it can only train with --kd-alpha 1
    """

    def __init__(self, cfg: Any, task: Any):
        super().__init__(task, cfg.sentence_avg, cfg.label_smoothing, cfg.ignore_prefix_size, cfg.report_accuracy)
        check_flags(cfg, has_teacher=getattr(task, "teacher", None) is not None)
        check_on_policy(cfg, getattr(task, "teacher", None), task)
        self.on_policy = OnPolicy(cfg, task, int(getattr(task, "seed", 1)))
        self._noise = str(getattr(task, "noise", ""))
        noise = f"augment:{self._noise}" if self._noise else ""
        self.use(Distiller(cfg, task, "|".join(filter(None, (self.on_policy.signature(), noise)))))
        keeps_logits = any(term.reads_logits for term in self.distiller.terms)
        self.student = Student(cfg, self.padding_idx, keeps_logits)
        self.step = Step(self.student, self.distiller, self.on_policy, self.padding_idx, self.report_accuracy)

    def forward(self, model: Any, sample: Dict[str, Any], reduce: bool = True) -> Tuple[Tensor, int, Dict[str, Any]]:
        """Compute the loss for the given sample.

        Returns a tuple with three elements:
        1) the loss, a sum over target tokens
        2) the sample size, which is used as the denominator for the gradient
        3) logging outputs: sums over target tokens in nats, the same keys on every rank and batch
        """
        if not reduce:
            raise KDPluginError(f"{CRITERION_NAME} returns only sums over tokens, but got reduce=False")
        loss, sample, logs = self.step(model, sample, self._stock_loss, self.training)
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "loss": loss.data,
            **logs,
            **(counts_of(sample) if self._noise and self.training else {}),
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
        }
        return loss, sample_size, logging_output

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[Dict[str, Any]]) -> None:
        """Aggregate logging outputs from data parallel training; losses in bits, as fairseq logs them."""
        if any("nll_loss" in log for log in logging_outputs):
            super().reduce_metrics(logging_outputs)
        else:  # all targets were the student's own
            Log("loss").reduce(logging_outputs)
        for log in (*(log for kind in TERMS.values() for log in kind.term.logs), *LOGS, *OF_NOISE):
            log.reduce(logging_outputs)

    def _stock_loss(self, model: Any, net_output: Any, sample: Dict[str, Any]) -> Tuple[Tensor, Tensor]:
        loss, nll_loss = self.compute_loss(model, net_output, sample)
        return loss, nll_loss
