"""Opens a teacher from the --teacher-… flags, which training and caching share."""

import logging
import os
from typing import Any, Dict, Hashable, List, Optional, Sequence

import torch
from fairseq.tasks.translation import TranslationTask

from kd_plugin.checkpoints.huggingface import Folder
from kd_plugin.checkpoints.open import open_beside
from kd_plugin.checkpoints.overrides import parse_overrides
from kd_plugin.checkpoints.paths import split_model_paths
from kd_plugin.checkpoints.tokenizer import Languages
from kd_plugin.checkpoints.transformers_library import is_huggingface
from kd_plugin.checkpoints.user_code import TEACHERS_FLAG, code_sha256, import_user_code
from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.fairseq import fit
from kd_plugin.teachers.huggingface import fit_folder
from kd_plugin.teachers.member import Member
from kd_plugin.teachers.online import OnlineTeacher
from kd_plugin.teachers.vocabulary import REFUSE

logger = logging.getLogger(__name__)

ONE_DIRECTION = Languages()


def dtype_for_cache(asked: str) -> str:
    """--teacher-dtype of kd-plugin cache, where `auto` depends on the machine."""
    return ("fp16" if torch.cuda.is_available() else "fp32") if asked == "auto" else asked


def identity_for_cache(teacher: OnlineTeacher, overrides: str, user_dir: Optional[str]) -> Dict[str, Any]:
    """What a cache's manifest says about its teacher: the fields dtype, teachers and overrides.

    Args:
        overrides, user_dir: --teacher-overrides, --teacher-user-dir
    """
    sha256 = code_sha256(user_dir)
    code = {} if sha256 is None else {"code": sha256}
    return {
        "dtype": teacher.dtype,
        "teachers": [
            {**member.identity(), "weight": weight, **code}
            for member, weight in zip(teacher.members, teacher.weights())
        ],
        "overrides": {name: value for name, value in parse_overrides(overrides).items() if name != "data"},
    }


def open_teacher(
    task: TranslationTask,
    path: str,
    weights: Any,
    overrides: Any,
    sha256: Optional[str],
    dtype: str,
    opened: Optional[Dict[Hashable, Any]] = None,
    languages: Languages = ONE_DIRECTION,
    missing_symbols: str = REFUSE,
    user_dir: Optional[str] = None,
    between: Optional[Sequence[str]] = None,
    unsaid: Sequence[str] = (),
) -> OnlineTeacher:
    """The teacher or ensemble that the flags name, for the student's task.

    Args:
        opened: as for `open_beside`; to share models between students with the same teacher
        languages: for multilingual members
        missing_symbols: --teacher-missing-symbols
        user_dir: --teacher-user-dir
        between: source and target language of its sentences; None: the task's
        unsaid: the student's symbols that its teacher neither reads nor predicts, and may lack
    """
    paths = split_model_paths(path)
    hashes = parse_hashes(sha256)
    if hashes and len(hashes) != len(paths):
        raise KDPluginError(f"--teacher-sha256 names {len(hashes)} hashes for {len(paths)} teachers in --teacher-path")
    opened = {} if opened is None else opened
    expected = hashes or [None] * len(paths)
    folders = {one: _opened_folder(one, pin, opened) for one, pin in zip(paths, expected) if is_huggingface(one)}
    _check_flags(paths, folders, overrides, languages, user_dir)
    import_user_code(user_dir, TEACHERS_FLAG)
    students = [task.cfg.source_lang, task.cfg.target_lang] if between is None else list(between)
    replaced = parse_overrides(overrides)
    members: List[Member] = []
    for one, pin in zip(paths, expected):
        if one in folders:
            dictionaries = task.source_dictionary, task.target_dictionary
            members.append(fit_folder(folders[one], languages, dictionaries, missing_symbols, unsaid))
        else:
            (checkpoint,) = open_beside([one], students, replaced, [pin], opened)
            members.append(fit(checkpoint, task, missing_symbols, unsaid))
    teacher = OnlineTeacher(members, parse_weights(weights), dtype)
    for member in members:
        logger.info(
            f"teacher {member.path}: {type(member.model).__name__}, {member.parameters:,} parameters, "
            f"sha256 {member.sha256}"
        )
    return teacher


def open_online(task: TranslationTask, cfg: Any) -> OnlineTeacher:
    """The teacher or ensemble that the task's flags name."""
    return open_teacher(
        task,
        cfg.teacher_path,
        cfg.teacher_weights,
        cfg.teacher_overrides,
        cfg.teacher_sha256,
        str(cfg.teacher_dtype),
        languages=Languages(cfg.teacher_source_lang, cfg.teacher_target_lang),
        missing_symbols=str(cfg.teacher_missing_symbols),
        user_dir=cfg.teacher_user_dir,
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
        raise KDPluginError(
            f"--teacher-weights {weights!r} is not a list of numbers. Remedy: write it like 0.7,0.3"
        ) from error


def _opened_folder(path: str, expected: Optional[str], opened: Dict[Hashable, Any]) -> Folder:
    key = os.path.realpath(path)
    if key not in opened:
        opened[key] = Folder(path, expected)
    folder: Folder = opened[key]
    return folder


def _check_flags(
    paths: List[str], folders: Dict[str, Folder], overrides: Any, languages: Languages, user_dir: Optional[str]
) -> None:
    """Refuses flags that apply to none of the teachers."""
    taken = {folder.takes_languages for folder in folders.values()}
    for side, code in zip(("source", "target"), languages):
        if code and not taken & {"both", *(["target"] if side == "target" else [])}:
            raise KDPluginError(
                f"--teacher-{side}-lang {code}: no teacher is a multilingual model that takes a {side} language code. "
                "Remedy: leave it out"
            )
    if len(folders) == len(set(paths)) and user_dir:
        raise KDPluginError(
            f"{TEACHERS_FLAG} {user_dir}: is for fairseq checkpoints, but no teacher is one. Remedy: leave it out"
        )
    if len(folders) == len(set(paths)) and parse_overrides(overrides):
        raise KDPluginError(
            "--teacher-overrides: changes a fairseq checkpoint's configuration, but no teacher is a fairseq "
            "checkpoint. Remedy: leave it out"
        )
