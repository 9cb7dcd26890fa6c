"""The criterion: fairseq's label-smoothed cross-entropy with a teacher's distribution beside the reference.

    loss = alpha * CE(label-smoothed) + (1 - alpha) * temperature**2 * D(teacher || student)

Word-level knowledge distillation, Kim & Rush 2016 (https://aclanthology.org/D16-1139).
"""

import math
from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq import utils
from fairseq.criterions import CRITERION_REGISTRY, register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics

from kd_plugin.errors import KDPluginError
from kd_plugin.losses import DIVERGENCES, distillation_loss
from kd_plugin.losses.schedules import SCHEDULES, scheduled_value
from kd_plugin.teachers.online import has_adaptive_softmax

CRITERION_NAME = "kd_label_smoothed_cross_entropy"

if CRITERION_NAME in CRITERION_REGISTRY:
    raise KDPluginError(
        f"the criterion {CRITERION_NAME} is registered already, by {CRITERION_REGISTRY[CRITERION_NAME].__module__}. "
        "Remedy: remove that plugin or fork; both cannot be used in one process"
    )


@dataclass
class KDLabelSmoothedCrossEntropyCriterionConfig(LabelSmoothedCrossEntropyCriterionConfig):
    kd_alpha: float = field(
        default=0.5,
        metadata={
            "help": "weight of the cross-entropy in [0, 1]: 1 is plain fairseq training, 0 listens to the teacher alone"
        },
    )
    kd_temperature: float = field(
        default=1.0,
        metadata={
            "help": "temperature > 0 that divides student and teacher logits in the divergence; the term is multiplied "
            "by its square, so that the size of the gradient stays"
        },
    )
    kd_divergence: ChoiceEnum(list(DIVERGENCES)) = field(  # type: ignore[valid-type]
        default="forward_kl", metadata={"help": "divergence between teacher and student"}
    )
    kd_alpha_end: Optional[float] = field(
        default=None,
        metadata={"help": "value that alpha (1: plain fairseq, 0: teacher alone) reaches after --kd-schedule-updates"},
    )
    kd_temperature_end: Optional[float] = field(
        default=None, metadata={"help": "value that the temperature reaches after --kd-schedule-updates"}
    )
    kd_schedule: ChoiceEnum(list(SCHEDULES)) = field(  # type: ignore[valid-type]
        default="constant",
        metadata={"help": "how alpha and temperature move from their first to their end value"},
    )
    kd_schedule_updates: int = field(
        default=0, metadata={"help": "number of updates from the first to the end value; the end value stays after it"}
    )


@register_criterion(CRITERION_NAME, dataclass=KDLabelSmoothedCrossEntropyCriterionConfig)
class KDLabelSmoothedCrossEntropyCriterion(LabelSmoothedCrossEntropyCriterion):
    def __init__(
        self,
        task,
        sentence_avg,
        label_smoothing,
        ignore_prefix_size=0,
        report_accuracy=False,
        kd_alpha=0.5,
        kd_temperature=1.0,
        kd_divergence="forward_kl",
        kd_alpha_end=None,
        kd_temperature_end=None,
        kd_schedule="constant",
        kd_schedule_updates=0,
    ):
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        self.kd_alpha, self.kd_alpha_end = kd_alpha, kd_alpha_end
        self.kd_temperature, self.kd_temperature_end = kd_temperature, kd_temperature_end
        self.kd_divergence = str(kd_divergence)
        self.kd_schedule = str(kd_schedule)
        self.kd_schedule_updates = kd_schedule_updates
        self._check_flags()

    def forward(self, model, sample, reduce=True):
        """Compute the loss for the given sample.

        Returns a tuple with three elements:
        1) the loss, a sum over target tokens
        2) the sample size, which is used as the denominator for the gradient
        3) logging outputs: sums over target tokens in nats, the same keys on every rank and batch
        """
        if not reduce:
            raise KDPluginError(f"{CRITERION_NAME} gives sums over tokens only (reduce=False was asked for)")
        if has_adaptive_softmax(model):
            raise KDPluginError(
                f"{CRITERION_NAME} needs logits over the whole vocabulary, an adaptive softmax gives none. Remedy: "
                "train the student without --adaptive-softmax-cutoff"
            )
        net_output = model(**sample["net_input"])
        loss, terms = self.compute_kd_loss(model, net_output, sample)
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "loss": loss.data,
            **terms,
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
        }
        if self.report_accuracy:
            n_correct, total = self.compute_accuracy(model, net_output, sample)
            logging_output["n_correct"] = utils.item(n_correct.data)
            logging_output["total"] = utils.item(total.data)
        return loss, sample_size, logging_output

    def compute_kd_loss(self, model, net_output, sample):
        """The loss, and every term of it for the log."""
        alpha, temperature = self.alpha_and_temperature()
        if self.task_teacher is None:
            loss, nll_loss = self.compute_loss(model, net_output, sample)
            return loss, {"nll_loss": nll_loss.data, "ce_loss": loss.data}

        rows, target = self.distilled_rows(sample)
        student_logits = net_output[0]
        student_logits = student_logits.reshape(-1, student_logits.size(-1)).index_select(0, rows)
        teacher_logits = self.task_teacher(sample, rows, student_logits.dtype).logits

        result = distillation_loss(
            # with alpha = 1 the terms are for the log alone, and the gradient is stock fairseq's, bit by bit
            student_logits.detach() if alpha == 1.0 else student_logits,
            teacher_logits,
            target,
            alpha=alpha,
            temperature=temperature,
            label_smoothing=self.eps,
            divergence=self.kd_divergence,
        )
        loss, ce_loss, nll_loss = result.loss, result.ce_loss, result.nll_loss
        if alpha == 1.0:
            loss, nll_loss = self.compute_loss(model, net_output, sample)
            ce_loss = loss
        with torch.no_grad():
            teacher_nll_loss = torch.nn.functional.cross_entropy(teacher_logits.float(), target, reduction="sum")
            n_agree = student_logits.argmax(-1).eq(teacher_logits.argmax(-1)).sum()
        self._check_finite(loss, ce_loss, result.kd_loss, student_logits, teacher_logits, rows, sample)
        return loss, {
            "nll_loss": nll_loss.data,
            "ce_loss": ce_loss.data,
            "kd_loss": result.kd_loss,
            "teacher_nll_loss": teacher_nll_loss,
            "n_agree": n_agree,
            "n_distilled": rows.numel(),
            # fairseq sums the logs of all ranks and batches, so the mean needs its own count
            "kd_alpha": alpha,
            "kd_temperature": temperature,
            "n_batches": 1,
        }

    @property
    def task_teacher(self):
        return getattr(self.task, "teacher", None)

    def alpha_and_temperature(self):
        """The two values at the current update."""

        def now(start, end):
            if end is None:
                return start
            updates = getattr(self.task, "num_updates", 0)
            return scheduled_value(start, end, self.kd_schedule, updates, self.kd_schedule_updates)

        return now(self.kd_alpha, self.kd_alpha_end), now(self.kd_temperature, self.kd_temperature_end)

    def distilled_rows(self, sample):
        """(tokens,) positions in the flattened (batch * length) target that are no padding, and the targets there."""
        target = sample["target"]
        if self.ignore_prefix_size > 0:
            target = target.clone()
            target[:, : self.ignore_prefix_size] = self.padding_idx
        target = target.reshape(-1)
        rows = target.ne(self.padding_idx).nonzero(as_tuple=True)[0]
        return rows, target[rows]

    def _check_flags(self):
        alphas = [("--kd-alpha", self.kd_alpha), ("--kd-alpha-end", self.kd_alpha_end)]
        temperatures = [("--kd-temperature", self.kd_temperature), ("--kd-temperature-end", self.kd_temperature_end)]
        for flag, value in alphas:
            if value is not None and not 0.0 <= value <= 1.0:
                raise KDPluginError(f"{flag} {value}: must lie in [0, 1]; 1 is plain fairseq, 0 the teacher alone")
        for flag, value in temperatures:
            if value is not None and not (value > 0.0 and math.isfinite(value)):
                raise KDPluginError(f"{flag} {value}: must be a finite number above 0")
        if not 0.0 <= self.eps < 1.0:
            raise KDPluginError(f"--label-smoothing {self.eps}: must lie in [0, 1)")
        if self.ignore_prefix_size < 0:
            raise KDPluginError(f"--ignore-prefix-size {self.ignore_prefix_size}: must be 0 or more")
        ends = [flag for flag, value in (alphas[1], temperatures[1]) if value is not None]
        if ends and self.kd_schedule == "constant":
            raise KDPluginError(f"{ends[0]} has no effect with --kd-schedule constant. Remedy: linear or cosine")
        if self.kd_schedule != "constant" and not ends:
            raise KDPluginError(f"--kd-schedule {self.kd_schedule} needs --kd-alpha-end or --kd-temperature-end")
        if (self.kd_schedule != "constant") != (self.kd_schedule_updates > 0) or self.kd_schedule_updates < 0:
            raise KDPluginError(
                f"--kd-schedule-updates {self.kd_schedule_updates} with --kd-schedule {self.kd_schedule}: a schedule "
                "needs a number of updates above 0, and the number a schedule"
            )
        if self.task_teacher is None and {self.kd_alpha, self.kd_alpha_end} - {1.0, None}:
            raise KDPluginError(
                f"--kd-alpha {self.kd_alpha} distils, but there is no teacher. Remedy: --task distillation_translation "
                "--teacher-path CHECKPOINT, or --kd-alpha 1 for plain training"
            )

    def _check_finite(self, loss, ce_loss, kd_loss, student_logits, teacher_logits, rows, sample):
        """Stop before the update where a term is NaN or infinite, naming term, side, update and sentences."""
        if torch.isfinite(torch.stack([loss.detach(), ce_loss.detach(), kd_loss]).sum()):
            return
        terms = {"ce_loss": ce_loss, "kd_loss": kd_loss, "loss": loss}
        bad_terms = [name for name, value in terms.items() if not torch.isfinite(value)]
        # -inf masks an entry of the teacher's vocabulary and is allowed; so it is in the student's
        sides = {"student": student_logits, "teacher": teacher_logits}
        bad_rows = {name: (torch.isnan(x) | torch.isposinf(x)).any(dim=-1) for name, x in sides.items()}
        bad_sides = [name for name, bad in bad_rows.items() if bad.any()] or ["student"]
        positions = rows[bad_rows["student"] | bad_rows["teacher"]]
        sentences = torch.unique(positions // sample["target"].size(1)) if len(positions) else slice(None)
        ids = sample["id"][sentences].tolist() if "id" in sample else "unknown"
        raise KDPluginError(
            f"{' and '.join(bad_terms) or 'the sum of the terms'} not finite at update "
            f"{getattr(self.task, 'num_updates', 0) + 1}: NaN or infinite {' and '.join(bad_sides)} logits, sample ids "
            f"{ids}. No weight was changed by this update. Remedy: a lower --lr or --clip-norm for the student; "
            "--teacher-dtype fp32 for the teacher; fp32 training to find the cause"
        )

    @classmethod
    def reduce_metrics(cls, logging_outputs) -> None:
        """Aggregate logging outputs from data parallel training; losses in bits, as fairseq logs them."""
        super().reduce_metrics(logging_outputs)

        def total(key):
            # numbers, not tensors: every tensor in a meter takes 250 bytes of each checkpoint
            return utils.item(sum(log.get(key, 0) for log in logging_outputs))

        sample_size, ntokens = total("sample_size"), total("ntokens")
        metrics.log_scalar("ce_loss", total("ce_loss") / sample_size / math.log(2), sample_size, round=3)
        n_batches = total("n_batches")
        if n_batches == 0:  # no teacher
            return
        metrics.log_scalar("kd_loss", total("kd_loss") / sample_size / math.log(2), sample_size, round=3)
        metrics.log_scalar("teacher_nll_loss", total("teacher_nll_loss") / ntokens / math.log(2), ntokens, round=3)
        metrics.log_scalar("kd_alpha", total("kd_alpha") / n_batches, n_batches, round=4)
        metrics.log_scalar("kd_temperature", total("kd_temperature") / n_batches, n_batches, round=4)
        n_distilled = total("n_distilled")
        if n_distilled > 0:
            metrics.log_scalar("agreement", total("n_agree") * 100.0 / n_distilled, n_distilled, round=2)
