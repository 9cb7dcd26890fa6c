"""The kinds of teacher, and the choice between them by the task's --teacher-… flags."""

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from kd_plugin.checkpoints.paths import split_model_paths
from kd_plugin.errors import KDPluginError
from kd_plugin.teachers import cached, opening
from kd_plugin.teachers.base import Teacher
from kd_plugin.teachers.labelling import cached as cached_labels
from kd_plugin.teachers.labelling import opening as labels
from kd_plugin.teachers.routing import opening as routing
from kd_plugin.teachers.vocabulary import REFUSE


class TeacherKind(NamedTuple):
    """A row of TEACHERS.

    asked: whether the task's flags ask for this kind
    open:  (the student's task, its flags) -> the teacher, or KDPluginError
    flags: a dataclass with its own flags, which are added to the task's; None: the shared flags are enough
    files: its flags -> the model files that they name
    """

    asked: Callable[[Any], bool]
    open: Callable[[Any, Any], Teacher]
    flags: Optional[type] = None
    files: Callable[[Any], List[str]] = lambda cfg: []


# the first kind that the flags ask for is opened
TEACHERS = {
    "routed": TeacherKind(
        lambda cfg: bool(cfg.teacher_routing), routing.open_routed, routing.RoutingFlags, routing.files_of
    ),
    "cached": TeacherKind(lambda cfg: bool(cfg.teacher_cache), cached.open_cached),
    "online": TeacherKind(
        lambda cfg: bool(cfg.teacher_path), opening.open_online, files=lambda cfg: split_model_paths(cfg.teacher_path)
    ),
}

# of students that label
LABELLERS = {
    "cached": TeacherKind(lambda cfg: bool(cfg.teacher_cache), cached_labels.open_cached),
    "online": TeacherKind(
        lambda cfg: bool(cfg.teacher_path), labels.open_online, files=lambda cfg: split_model_paths(cfg.teacher_path)
    ),
}


def open_asked(task: Any, cfg: Any, kinds: Dict[str, TeacherKind] = TEACHERS) -> Optional[Teacher]:
    """The teacher that the flags ask for, or None.

    Raises:
        KDPluginError: contradictory flags, or anything wrong with the teacher
    """
    for kind in kinds.values():
        if kind.asked(cfg):
            return kind.open(task, cfg)
    for name in (
        "teacher_weights",
        "teacher_sha256",
        "teacher_user_dir",
        "teacher_source_lang",
        "teacher_target_lang",
        "teacher_labels",
        "teacher_head",
    ):
        if getattr(cfg, name, None):
            raise KDPluginError(f"--{name.replace('_', '-')} has no effect without --teacher-path")
    if str(cfg.teacher_missing_symbols) != REFUSE:
        raise KDPluginError("--teacher-missing-symbols has no effect without --teacher-path")
    return None


def asked_files(cfg: Any, kinds: Dict[str, TeacherKind] = TEACHERS) -> List[str]:
    """The model files of the teacher that the flags ask for."""
    return next((kind.files(cfg) for kind in kinds.values() if kind.asked(cfg)), [])


def own_flags() -> Tuple[type, ...]:
    """The kinds' own dataclasses of flags."""
    return tuple(kind.flags for kind in TEACHERS.values() if kind.flags is not None)
