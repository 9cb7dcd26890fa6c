"""A checkpoint as a teacher of this student: which of its symbols is which of the student's."""

from dataclasses import dataclass
from typing import Any, Dict, Optional

from fairseq.tasks.translation import TranslationTask
from torch import Tensor

from kd_plugin.checkpoints.open import Checkpoint, open_beside
from kd_plugin.teachers.vocabulary import teacher_indices


@dataclass
class LoadedTeacher:
    """One frozen teacher model and what was found out about its file."""

    model: Any  # a BaseFairseqModel; fairseq ships no types
    path: str
    sha256: str
    parameters: int
    source_indices: Optional[Tensor]  # (source vocab,) teacher's index of each student symbol, None: the same
    target_indices: Optional[Tensor]  # (target vocab,) likewise


def fit(checkpoint: Checkpoint, student_task: TranslationTask) -> LoadedTeacher:
    """
    Raises:
        KDPluginError: its dictionaries do not hold the student's symbols, or as `Checkpoint.model`
    """
    students = student_task.source_dictionary, student_task.target_dictionary
    names = [f"{side} ({path})" for side, path in zip(("source", "target"), checkpoint.dictionary_paths)]
    source, target = (
        teacher_indices(mine, theirs, checkpoint.path, name)
        for mine, theirs, name in zip(students, checkpoint.dictionaries, names)
    )
    return LoadedTeacher(checkpoint.model, checkpoint.path, checkpoint.sha256, checkpoint.parameters, source, target)


def load_teacher(
    path: str,
    student_task: TranslationTask,
    expected_sha256: Optional[str] = None,
    overrides: Optional[Dict[str, Any]] = None,
) -> LoadedTeacher:
    """The model of a checkpoint of any architecture, for this student.

    Raises:
        KDPluginError: as `open_beside` and `fit`
    """
    languages = [student_task.cfg.source_lang, student_task.cfg.target_lang]
    (checkpoint,) = open_beside([path], languages, overrides or {}, [expected_sha256])
    return fit(checkpoint, student_task)
