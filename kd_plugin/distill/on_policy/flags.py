"""The flags of on-policy distillation, `--kd-on-policy-…`, and their checks."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum

from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.base import Teacher

OFF, PARALLEL, SAMPLED = "off", "parallel", "sampled"


@dataclass
class OnPolicyFlags:
    kd_on_policy: ChoiceEnum([OFF, PARALLEL, SAMPLED]) = field(  # type: ignore[valid-type]
        default=OFF,
        metadata={
            "help": "distil on the student's own words too. parallel: further decoder passes, each reading the words "
            "that the student ranked first in the pass before (TIE-KD). sampled: the targets of some updates are the "
            "student's own translations, without cross-entropy (GKD). Needs a teacher with a model, not a cache"
        },
    )
    kd_on_policy_share: float = field(
        default=0.5, metadata={"help": "fraction of the updates, in [0, 1], that are on-policy; 0: none"}
    )
    kd_on_policy_passes: int = field(
        default=3,
        metadata={"help": "for --kd-on-policy parallel: number of decoder passes, the first of which reads references"},
    )
    kd_on_policy_temperature: float = field(
        default=1.0, metadata={"help": "for --kd-on-policy sampled: temperature of sampling, above 0"}
    )
    kd_on_policy_topk: int = field(
        default=0, metadata={"help": "for --kd-on-policy sampled: sample among the k most probable words; 0: among all"}
    )
    kd_on_policy_max_len_a: float = field(
        default=1.0,
        metadata={"help": "for --kd-on-policy sampled: translations have at most a · source length + b words"},
    )
    kd_on_policy_max_len_b: int = field(default=10, metadata={"help": "the b of --kd-on-policy-max-len-a"})
    kd_on_policy_buffer: int = field(
        default=1,
        metadata={
            "help": "for --kd-on-policy sampled: translations to draw per source sentence at a time; they serve as "
            "many on-policy updates, so that the student translates less often"
        },
    )


DEFAULTS = {one.name: one.default for one in fields(OnPolicyFlags)}


def check_on_policy(cfg: Any, teacher: Optional[Teacher], task: Any) -> None:
    """
    Args:
        task: the student's

    Raises:
        KDPluginError: a flag is out of range, has no effect, or does not work with another
    """
    mode = str(cfg.kd_on_policy)
    given = [name for name, default in DEFAULTS.items() if name != "kd_on_policy" and getattr(cfg, name) != default]
    idle = [name for name in given if mode == OFF or (name == "kd_on_policy_passes") == (mode == SAMPLED)]
    idle = [name for name in idle if mode == OFF or name != "kd_on_policy_share"]
    if idle:
        raise KDPluginError(
            f"{_flag(idle[0])} has no effect with --kd-on-policy {mode}. Remedy: leave it out, or --kd-on-policy "
            f"{PARALLEL if idle[0] == 'kd_on_policy_passes' else SAMPLED}"
        )
    if mode == OFF:
        return
    if teacher is None or {cfg.kd_alpha, cfg.kd_alpha_end} <= {1.0, None}:
        raise KDPluginError(
            f"--kd-on-policy {mode} asks a teacher about the student's words, but "
            f"{'there is none' if teacher is None else '--kd-alpha 1 does not use it'}. Remedy: --teacher-path with "
            "--kd-alpha below 1, or --kd-on-policy off"
        )
    if not teacher.answers_any_target:
        raise KDPluginError(
            f"--kd-on-policy {mode}: a --teacher-cache has answers for its own targets only, not for what the student "
            "says. Remedy: --teacher-path; or translate the training data with the student (kd-plugin decode), and "
            "write a cache for that"
        )
    if getattr(task, "ddp_backend", "") == "fully_sharded":
        raise KDPluginError(
            f"--kd-on-policy {mode} calls the student outside its wrapper, whose weights --ddp-backend fully_sharded "
            "keeps in pieces. Remedy: another --ddp-backend"
        )
    if not 0.0 <= cfg.kd_on_policy_share <= 1.0:
        raise KDPluginError(f"--kd-on-policy-share {cfg.kd_on_policy_share}: must lie in [0, 1]")
    for name, least in (("passes", 2), ("topk", 0), ("max_len_b", 1), ("buffer", 1)):
        value = getattr(cfg, f"kd_on_policy_{name}")
        if value < least:
            raise KDPluginError(f"{_flag(f'kd_on_policy_{name}')} {value}: must be {least} or more")
    symbols = len(task.target_dictionary) if cfg.kd_on_policy_topk else 0
    if cfg.kd_on_policy_topk > symbols:
        raise KDPluginError(
            f"--kd-on-policy-topk {cfg.kd_on_policy_topk}: the target dictionary has {symbols} symbols. Remedy: fewer"
        )
    if not (math.isfinite(cfg.kd_on_policy_temperature) and cfg.kd_on_policy_temperature > 0.0):
        raise KDPluginError(
            f"--kd-on-policy-temperature {cfg.kd_on_policy_temperature}: must be a finite number above 0"
        )
    if not (math.isfinite(cfg.kd_on_policy_max_len_a) and cfg.kd_on_policy_max_len_a >= 0.0):
        raise KDPluginError(
            f"--kd-on-policy-max-len-a {cfg.kd_on_policy_max_len_a}: must be 0 or a finite number above"
        )
    if mode == SAMPLED and any(pair.tags.target for pair in task.language_pairs()):
        raise KDPluginError(
            "--kd-on-policy sampled: the student would have to begin its translations with a language token "
            "(--decoder-langtok), which is not supported. Remedy: --kd-on-policy parallel"
        )
    if mode == PARALLEL:
        for name in ("kd_fused_head", "kd_packed_student", "kd_rdrop"):
            if getattr(cfg, name):
                raise KDPluginError(f"{_flag(name)} does not work with --kd-on-policy parallel. Remedy: leave out one")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
