"""The kinds of teacher, and from the task's --teacher-… flags to the one that they ask for."""

from typing import Any, Callable, NamedTuple, Optional, Tuple

from fairseq.tasks.translation import TranslationTask

from kd_plugin.errors import KDPluginError
from kd_plugin.teachers import cached, opening
from kd_plugin.teachers.base import Teacher
from kd_plugin.teachers.vocabulary import REFUSE


class TeacherKind(NamedTuple):
    """A row of TEACHERS.

    asked: whether the task's flags ask for this kind
    open:  (the student's task, its flags) -> the teacher, or KDPluginError
    flags: a dataclass with flags of its own, which the task gets; None: those that all kinds share are enough
    """

    asked: Callable[[Any], bool]
    open: Callable[[TranslationTask, Any], Teacher]
    flags: Optional[type] = None


# the first that is asked for opens
TEACHERS = {
    "cached": TeacherKind(lambda cfg: bool(cfg.teacher_cache), cached.open_cached),
    "online": TeacherKind(lambda cfg: bool(cfg.teacher_path), opening.open_online),
}


def open_asked(task: TranslationTask, cfg: Any) -> Optional[Teacher]:
    """The teacher that the flags ask for, None where they ask for none.

    Raises:
        KDPluginError: flags that do not fit each other, or whatever is wrong with the teacher
    """
    for kind in TEACHERS.values():
        if kind.asked(cfg):
            return kind.open(task, cfg)
    for name in ("teacher_weights", "teacher_sha256", "teacher_user_dir", "teacher_source_lang", "teacher_target_lang"):
        if getattr(cfg, name):
            raise KDPluginError(f"--{name.replace('_', '-')} is given without --teacher-path")
    if str(cfg.teacher_missing_symbols) != REFUSE:
        raise KDPluginError("--teacher-missing-symbols is given without --teacher-path")
    return None


def own_flags() -> Tuple[type, ...]:
    """Dataclasses with the flags that single kinds have."""
    return tuple(kind.flags for kind in TEACHERS.values() if kind.flags is not None)
