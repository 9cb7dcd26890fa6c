"""The criterion's flags, `--kd-...`, and their checks before training starts."""

import math
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
from fairseq.dataclass import ChoiceEnum

from kd_plugin.distill.on_policy.flags import OnPolicyFlags
from kd_plugin.distill.terms import check_unused, own_ends, own_flags
from kd_plugin.errors import KDPluginError
from kd_plugin.losses import DIVERGENCES
from kd_plugin.losses.schedules import SCHEDULES
from kd_plugin.losses.selection import SELECTIONS

PARAMETERS = ("kd_js_beta", "kd_skew_lambda", "kd_adaptive_mu")  # of divergences


@dataclass
class DistillationFlags(*own_flags()):  # type: ignore[misc]
    """The flags of every criterion with a teacher."""

    kd_alpha: float = field(
        default=0.5,
        metadata={
            "help": "weight of the cross-entropy in [0, 1]: 1 is plain fairseq training, 0 uses the teacher alone"
        },
    )
    kd_temperature: float = field(
        default=1.0,
        metadata={
            "help": "temperature > 0 that divides student and teacher logits in the divergence; the term is multiplied "
            "by its square, which keeps the size of the gradient"
        },
    )
    kd_divergence: ChoiceEnum(list(DIVERGENCES)) = field(  # type: ignore[valid-type]
        default="forward_kl", metadata={"help": "divergence between teacher and student"}
    )
    kd_js_beta: float = field(
        default=0.5,
        metadata={"help": "beta in (0, 1) for --kd-divergence js: the teacher's weight; 0.5 makes it symmetric"},
    )
    kd_skew_lambda: float = field(
        default=0.1,
        metadata={"help": "lambda in (0, 1) for --kd-divergence skew_forward_kl and skew_reverse_kl"},
    )
    kd_adaptive_mu: float = field(
        default=0.5,
        metadata={"help": "mu in (0, 1) for --kd-divergence adaptive_kl: the probability mass of the teacher's head"},
    )
    kd_top1_rank: int = field(
        default=0,
        metadata={
            "help": "k > 0 adds TIE-KD's ranking term over the k best words of teacher and student to the divergence "
            "(the paper uses 5); 0: off"
        },
    )
    kd_selection: ChoiceEnum(list(SELECTIONS)) = field(  # type: ignore[valid-type]
        default="all",
        metadata={
            "help": "target tokens to distil: all; batch: those with the highest cross-entropy in the batch over all "
            "ranks; global: the same among the last --kd-queue-size tokens. Other tokens keep their cross-entropy"
        },
    )
    kd_select_ratio: float = field(
        default=0.5, metadata={"help": "fraction of the tokens, in (0, 1], that --kd-selection batch or global distils"}
    )
    kd_queue_size: int = field(
        default=30000, metadata={"help": "number of recent tokens that --kd-selection global compares a token with"}
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
        metadata={
            "help": "how alpha, the temperature and the weights of terms move from their start to their end values"
        },
    )
    kd_schedule_updates: int = field(
        default=0, metadata={"help": "number of updates from the start to the end value, which then stays"}
    )


@dataclass
class KDLabelSmoothedCrossEntropyCriterionConfig(
    DistillationFlags, OnPolicyFlags, LabelSmoothedCrossEntropyCriterionConfig
):
    kd_inplace: ChoiceEnum(["auto", "on", "off"]) = field(  # type: ignore[valid-type]
        default="auto",
        metadata={
            "help": "overwrite the student's logits with the gradient, which saves a buffer of their size; auto: if "
            "nothing else can need them"
        },
    )
    kd_fused_head: bool = field(
        default=False,
        metadata={
            "help": "compute the output projections and the loss chunk by chunk, never the logits of the whole batch: "
            "for large vocabularies and batches"
        },
    )
    kd_packed_student: bool = field(
        default=False,
        metadata={
            "help": "compute the student without its batches' padding and with PyTorch's attention: faster; dropout "
            "draws different random numbers than stock fairseq. For fairseq's transformers, from torch 2.2 on"
        },
    )


def check_flags(cfg: Any, has_teacher: bool) -> None:
    """`check_distillation`, and the flags that only translation has."""
    check_distillation(cfg, has_teacher, "distillation_translation")
    if not 0.0 <= cfg.label_smoothing < 1.0:
        raise KDPluginError(f"--label-smoothing {cfg.label_smoothing}: must lie in [0, 1)")
    if cfg.ignore_prefix_size < 0:
        raise KDPluginError(f"--ignore-prefix-size {cfg.ignore_prefix_size}: must be 0 or more")
    if cfg.kd_fused_head and cfg.report_accuracy:
        raise KDPluginError("--report-accuracy needs logits, which --kd-fused-head never computes. Remedy: drop one")


def check_distillation(cfg: Any, has_teacher: bool, task: str) -> None:
    """Raises KDPluginError if a flag is out of range or has no effect in combination with the others.

    Args:
        task: the name of a task with a teacher, for messages
    """
    alphas = [("--kd-alpha", cfg.kd_alpha), ("--kd-alpha-end", cfg.kd_alpha_end)]
    temperatures = [
        ("--kd-temperature", cfg.kd_temperature),
        ("--kd-temperature-end", cfg.kd_temperature_end),
    ]
    for flag, value in alphas:
        if value is not None and not 0.0 <= value <= 1.0:
            raise KDPluginError(f"{flag} {value}: must lie in [0, 1]; 1 is plain fairseq, 0 the teacher alone")
    for flag, value in temperatures:
        if value is not None and not (value > 0.0 and math.isfinite(value)):
            raise KDPluginError(f"{flag} {value}: must be a finite number above 0")
    check_unused(cfg)
    of_terms = [(f"--{name.replace('_', '-')}", getattr(cfg, name)) for name in own_ends()]
    ends = [flag for flag, value in (alphas[1], temperatures[1], *of_terms) if value is not None]
    schedule = str(cfg.kd_schedule)
    if ends and schedule == "constant":
        raise KDPluginError(f"{ends[0]} has no effect with --kd-schedule constant. Remedy: linear or cosine")
    if schedule != "constant" and not ends:
        choices = ", ".join(flag for flag, _ in (alphas[1], temperatures[1], *of_terms))
        raise KDPluginError(f"--kd-schedule {schedule} needs a value to reach: one of {choices}")
    updates = cfg.kd_schedule_updates
    if (schedule != "constant") != (updates > 0) or updates < 0:
        raise KDPluginError(
            f"--kd-schedule-updates {updates} with --kd-schedule {schedule}: a schedule needs a number of updates "
            "above 0, and constant needs 0"
        )
    for flag, value in ((name, getattr(cfg, name)) for name in PARAMETERS):
        if not 0.0 < value < 1.0:
            raise KDPluginError(f"--{flag.replace('_', '-')} {value}: must lie in (0, 1)")
    if cfg.kd_top1_rank < 0:
        raise KDPluginError(f"--kd-top1-rank {cfg.kd_top1_rank}: must be 0 (off) or more")
    if not 0.0 < cfg.kd_select_ratio <= 1.0:
        raise KDPluginError(f"--kd-select-ratio {cfg.kd_select_ratio}: must lie in (0, 1]")
    if cfg.kd_queue_size < 1:
        raise KDPluginError(f"--kd-queue-size {cfg.kd_queue_size}: must be 1 or more")
    if not has_teacher and {cfg.kd_alpha, cfg.kd_alpha_end} - {1.0, None}:
        raise KDPluginError(
            f"--kd-alpha {cfg.kd_alpha} distils, but there is no teacher. Remedy: --task "
            f"{task} --teacher-path CHECKPOINT (or --teacher-cache DIR), or --kd-alpha 1 for plain "
            "training"
        )
