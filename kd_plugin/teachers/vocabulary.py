"""Do teacher and student mean the same symbol by the same index? Compared symbol by symbol, never by size alone."""

from typing import Optional

import torch
from fairseq.data import Dictionary
from torch import Tensor

from kd_plugin.errors import KDPluginError


def teacher_indices(student: Dictionary, teacher: Dictionary, teacher_path: str, side: str) -> Optional[Tensor]:
    """(vocab,) int64: the teacher's index of each of the student's symbols; None where the two are equal.

    Raises KDPluginError, with the first difference, unless both hold the same symbols with the same special ones.
    """
    specials = [(name, getattr(student, name)(), getattr(teacher, name)()) for name in ("bos", "pad", "eos", "unk")]
    for name, student_index, teacher_index in specials:
        if student_index != teacher_index or student[student_index] != teacher[teacher_index]:
            raise KDPluginError(
                f"{teacher_path}: the special symbol {name} of its {side} dictionary is index {teacher_index} "
                f"{teacher[teacher_index]!r}, the student's is index {student_index} {student[student_index]!r}. "
                "Remedy: binarise the student's data with the teacher's dictionary (fairseq-preprocess --srcdict "
                "--tgtdict)"
            )
    if student.symbols == teacher.symbols:
        return None
    if len(student) == len(teacher) and set(student.symbols) == set(teacher.symbols) and _unique(student):
        return torch.tensor([teacher.indices[symbol] for symbol in student.symbols], dtype=torch.int64)

    index = next(
        (i for i, (mine, theirs) in enumerate(zip(student.symbols, teacher.symbols)) if mine != theirs),
        min(len(student), len(teacher)),
    )
    raise KDPluginError(
        f"{teacher_path}: its {side} dictionary does not hold the student's symbols. Sizes: teacher {len(teacher)}, "
        f"student {len(student)}. First difference at index {index}: teacher {_symbol(teacher, index)}, student "
        f"{_symbol(student, index)}. Only the teacher has {_missing(teacher, student)}, only the student "
        f"{_missing(student, teacher)}. Remedy: binarise the student's data with the teacher's dictionary "
        "(fairseq-preprocess --srcdict --tgtdict)"
    )


def _unique(dictionary: Dictionary) -> bool:
    return len(set(dictionary.symbols)) == len(dictionary.symbols)


def _symbol(dictionary: Dictionary, index: int) -> str:
    return repr(dictionary.symbols[index]) if index < len(dictionary.symbols) else "nothing (its end)"


def _missing(dictionary: Dictionary, other: Dictionary) -> str:
    missing = [symbol for symbol in dictionary.symbols if symbol not in other.indices]
    return (
        ", ".join(map(repr, missing[:3])) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "") or "nothing"
    )
