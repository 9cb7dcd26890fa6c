"""From the --teacher-… flags, which training and caching share, to a teacher."""

import logging
from typing import Any, Dict, Hashable, List, Optional

from fairseq.tasks.translation import TranslationTask

from kd_plugin.checkpoints.open import Checkpoint, open_beside
from kd_plugin.checkpoints.overrides import parse_overrides
from kd_plugin.checkpoints.paths import split_model_paths
from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.fairseq import OnlineTeacher
from kd_plugin.teachers.member import fit

logger = logging.getLogger(__name__)


def open_teacher(
    task: TranslationTask,
    path: str,
    weights: Any,
    overrides: Any,
    sha256: Optional[str],
    dtype: str,
    opened: Optional[Dict[Hashable, Checkpoint]] = None,
) -> OnlineTeacher:
    """The teacher or ensemble that the flags name, for the student's task.

    Args:
        opened: as for `open_beside`: for another student whose teacher is the same
    """
    paths = split_model_paths(path)
    hashes = parse_hashes(sha256)
    if hashes and len(hashes) != len(paths):
        raise KDPluginError(f"--teacher-sha256 names {len(hashes)} hashes for {len(paths)} teachers in --teacher-path")
    languages = [task.cfg.source_lang, task.cfg.target_lang]
    members = [fit(one, task) for one in open_beside(paths, languages, parse_overrides(overrides), hashes, opened)]
    teacher = OnlineTeacher(members, parse_weights(weights), dtype)
    for member in members:
        logger.info(
            f"teacher {member.path}: {type(member.model).__name__}, {member.parameters:,} parameters, "
            f"sha256 {member.sha256}"
        )
    return teacher


def open_fairseq(task: TranslationTask, cfg: Any) -> OnlineTeacher:
    """The teacher or ensemble that the task's flags name."""
    return open_teacher(
        task, cfg.teacher_path, cfg.teacher_weights, cfg.teacher_overrides, cfg.teacher_sha256, str(cfg.teacher_dtype)
    )


def parse_hashes(sha256: Optional[str]) -> List[Optional[str]]:
    """--teacher-sha256: hashes separated by colons."""
    return list(sha256.split(":")) if sha256 else []


def parse_weights(weights: Any) -> Optional[List[float]]:
    """--teacher-weights: `0.7,0.3`, or a list from YAML."""
    if weights is None or weights == "":
        return None
    parts = str(weights).split(",") if isinstance(weights, (str, int, float)) else list(weights)
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        raise KDPluginError(f"--teacher-weights {weights!r} is no list of numbers. Remedy: write 0.7,0.3") from error
