"""Opens a labelling teacher from the --teacher-… flags, which training and caching share."""

import json
import logging
from typing import Any, List, Optional, Sequence

from kd_plugin.checkpoints.classifier import open_classifier
from kd_plugin.checkpoints.label_folder import LabelFolder
from kd_plugin.checkpoints.overrides import parse_overrides
from kd_plugin.checkpoints.paths import split_model_paths
from kd_plugin.checkpoints.transformers_library import is_huggingface
from kd_plugin.checkpoints.user_code import TEACHERS_FLAG, import_user_code
from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.labelling.base import Labelling, LabellingTeacher, LabelMember
from kd_plugin.teachers.labelling.fairseq import fit_classifier
from kd_plugin.teachers.labelling.huggingface import fit_folder
from kd_plugin.teachers.opening import parse_hashes, parse_weights

logger = logging.getLogger(__name__)


def open_labelling(labelling: Labelling, cfg: Any, dtype: Optional[str] = None) -> LabellingTeacher:
    """The teacher or ensemble that the flags name.

    Args:
        cfg: the flags --teacher-path, -weights, -overrides, -sha256, -user-dir, -missing-symbols, -labels and -head
        dtype: replaces --teacher-dtype

    Raises:
        KDPluginError: a file cannot be used, or it labels something else than the student
    """
    paths = split_model_paths(cfg.teacher_path)
    hashes = parse_hashes(cfg.teacher_sha256)
    if hashes and len(hashes) != len(paths):
        raise KDPluginError(f"--teacher-sha256 names {len(hashes)} hashes for {len(paths)} teachers in --teacher-path")
    import_user_code(cfg.teacher_user_dir, TEACHERS_FLAG)
    overrides, names = parse_overrides(cfg.teacher_overrides), parse_labels(cfg.teacher_labels)
    if names is not None and labelling.names is None:
        raise KDPluginError("--teacher-labels: the student predicts numbers, not labels. Remedy: leave it out")
    if all(map(is_huggingface, paths)):
        for flag, value in (
            (TEACHERS_FLAG, cfg.teacher_user_dir),
            ("--teacher-overrides", overrides),
            ("--teacher-head", cfg.teacher_head),
        ):
            if value:
                raise KDPluginError(
                    f"{flag} {value}: is for fairseq checkpoints, but no teacher is one. Remedy: leave it out"
                )
    members: List[LabelMember] = []
    for path, pin in zip(paths, hashes or [None] * len(paths)):
        if is_huggingface(path):
            members.append(fit_folder(LabelFolder(path, labelling.tokens, pin), labelling, len(members), names))
            continue
        opened = open_classifier(path, labelling.tokens, cfg.teacher_head, pin, overrides, labelling.head)
        members.append(fit_classifier(opened, labelling, str(cfg.teacher_missing_symbols), names))
    for member in members:
        logger.info(
            f"teacher {member.path}: {type(member.model).__name__}, {member.parameters:,} parameters, "
            f"sha256 {member.sha256}"
        )
    return LabellingTeacher(members, labelling, parse_weights(cfg.teacher_weights), dtype or str(cfg.teacher_dtype))


def open_online(task: Any, cfg: Any) -> LabellingTeacher:
    """The teacher that the task's flags name."""
    return open_labelling(task.labelling, cfg)


def parse_labels(text: Any) -> Optional[Sequence[str]]:
    """--teacher-labels: names separated by commas, or a JSON list, or a list from YAML.

    Raises:
        KDPluginError: an empty name, or a name twice
    """
    if text is None or text == "":
        return None
    if not isinstance(text, str):
        names = [str(name) for name in text]
    elif text.lstrip().startswith("["):
        try:
            names = [str(name) for name in json.loads(text)]
        except (ValueError, RecursionError) as error:
            raise KDPluginError(f"--teacher-labels {text[:200]}: not a JSON list. Remedy: like NAME,NAME") from error
    else:
        names = [name.strip() for name in text.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise KDPluginError(
            f"--teacher-labels {str(text)[:200]}: has an empty name, or one twice. Remedy: each label once, in the "
            "order of the teacher's outputs"
        )
    return names
