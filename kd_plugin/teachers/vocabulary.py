"""Do teacher and student mean the same symbol by the same index? Compared symbol by symbol, never by size alone."""

import os
from typing import Iterable, Optional, Tuple

import torch
from fairseq.data import Dictionary
from torch import Tensor

from kd_plugin.errors import KDPluginError


def load_dictionary(path: str) -> Dictionary:
    """fairseq's dictionary in a file.

    Raises:
        KDPluginError: it is damaged
    """
    try:
        return Dictionary.load(path)
    except Exception as error:  # fairseq raises ValueError, RuntimeError and, for what is no UTF-8, Exception itself
        raise KDPluginError(
            f"{path}: no dictionary of fairseq ({' '.join(str(error).split())[:200] or type(error).__name__}). "
            "Remedy: the dict.LANG.txt of the data that the model was trained on, undamaged"
        ) from error


def find_dictionary(directories: Iterable[str], lang: Optional[str], teacher_path: str) -> Tuple[Dictionary, str]:
    """The teacher's own dictionary for `lang`: `dict.LANG.txt` or a joined `dict.txt` in the first directory with one.

    A fairseq checkpoint does not hold its dictionary, only the path of the data it was trained on. Where nobody says
    its language, None, only a joined one can be found.
    """
    names = ["dict.txt"] if lang is None else [f"dict.{lang}.txt", "dict.txt"]
    tried = [os.path.join(folder, name) for folder in directories for name in names]
    for path in tried:
        if os.path.isfile(path):
            return load_dictionary(path), path
    if lang is None:
        raise KDPluginError(
            f"{teacher_path}: its languages are not in the checkpoint, and no joined dictionary was found (looked for "
            f"{', '.join(tried)}). Remedy: name its languages (--source-lang LANG --target-lang LANG), and where "
            "needed the folder it was trained on (--dict DATA_BIN)"
        )
    raise KDPluginError(
        f"{teacher_path}: no dictionary of this teacher was found (looked for {', '.join(tried)}), so nothing says "
        f"that its indices mean the student's symbols. Remedy: put its dict.{lang}.txt beside the checkpoint, or name "
        'the folder it was trained on: --teacher-overrides \'{"data": "DATA_BIN"}\' (fairseq-train, kd-plugin cache), '
        "--dict DATA_BIN (doctor) or --dict-dir DATA_BIN (all others)"
    )


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
