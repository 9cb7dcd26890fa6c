"""Maps the student's symbols to the teacher's. Vocabularies are compared symbol by symbol, never by size alone."""

import functools
from typing import Callable, List, NamedTuple, Optional, Sequence

import torch
from fairseq.data import Dictionary
from torch import Tensor

from kd_plugin.corpus.dictionaries import FILLER
from kd_plugin.errors import KDPluginError

REFUSE, IGNORE = "refuse", "ignore"
MISSING_SYMBOLS = (REFUSE, IGNORE)  # --teacher-missing-symbols

OTHERWISE = "--teacher-missing-symbols ignore: the teacher reads them as its unknown symbol and never predicts them"


class Symbols(NamedTuple):
    """The student's symbols of one side, as a teacher has them.

    indices: (vocab,) int64, the teacher's index of each, or of its unknown symbol if it lacks one; None: all the same
    missing: (some,) int64, the student's indices of symbols that the teacher lacks; None: it has all
    restricted: whether the teacher has further symbols
    lacks: whether the teacher lacks symbols that can occur in text
    """

    indices: Optional[Tensor] = None
    missing: Optional[Tensor] = None
    restricted: bool = False
    lacks: bool = False

    def to(self, device: torch.device) -> "Symbols":
        if self.indices is None or self.indices.device == device:
            return self
        missing = None if self.missing is None else self.missing.to(device)
        return self._replace(indices=self.indices.to(device), missing=missing)

    def of_student(self, logits: Tensor) -> Tensor:
        """(tokens, vocab) from (tokens, teacher's vocab) logits; -inf for symbols that the teacher lacks."""
        if self.indices is None:
            return logits
        logits = logits.index_select(1, self.indices)
        return logits if self.missing is None else logits.index_fill_(1, self.missing, -torch.inf)


def match(
    symbols: Sequence[str],
    index_of: Callable[[str], Optional[int]],
    size: int,
    unknown: int,
    teacher_path: str,
    side: str,
    missing_symbols: str,
    unsaid: Sequence[str] = (),
) -> Symbols:
    """Maps the student's symbols to a teacher with a different vocabulary.

    Args:
        symbols: the student's, in its order
        index_of: returns the teacher's index of a symbol, or None
        size: the number of the teacher's symbols
        unknown: the teacher's index of its unknown symbol
        side: the vocabulary's name for messages
        missing_symbols: --teacher-missing-symbols
        unsaid: symbols that never occur in text, which the teacher may lack

    Raises:
        KDPluginError: the teacher lacks symbols, and missing_symbols is refuse
    """
    found = [index_of(symbol) for symbol in symbols]
    lacking = [at for at, index in enumerate(found) if index is None]
    refused = [symbols[at] for at in lacking if symbols[at] not in unsaid and not FILLER.fullmatch(symbols[at])]
    if refused and missing_symbols == REFUSE:
        raise KDPluginError(
            f"{teacher_path}: its {side} lacks {len(refused):,} of the student's {len(symbols):,} symbols: "
            f"{_some(refused)}. Remedy: prepare the student's data with the teacher's symbols, or {OTHERWISE}"
        )
    indices = torch.tensor([unknown if index is None else index for index in found], dtype=torch.int64)
    used = len({index for index in found if index is not None})
    missing = torch.tensor(lacking, dtype=torch.int64) if lacking else None
    return Symbols(indices, missing, used < size, bool(refused))


def teacher_symbols(
    student: Dictionary,
    teacher: Dictionary,
    teacher_path: str,
    side: str,
    missing_symbols: str = REFUSE,
    unsaid: Sequence[str] = (),
) -> Symbols:
    """Maps the student's symbols to a fairseq teacher's dictionary.

    Args:
        unsaid: symbols that the teacher may lack, since it neither reads nor predicts them

    Raises:
        KDPluginError: the special symbols differ, or as `match`
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
        return Symbols()
    unique = len(set(student.symbols)) == len(student.symbols) and len(set(teacher.symbols)) == len(teacher.symbols)
    lacks = any(
        symbol not in teacher.indices and symbol not in unsaid and not FILLER.fullmatch(symbol)
        for symbol in student.symbols
    )
    if unique and (missing_symbols == IGNORE or not lacks):
        found = functools.partial(_index, teacher)
        return match(student.symbols, found, len(teacher), teacher.unk(), teacher_path, side, missing_symbols, unsaid)
    index = next(
        (i for i, (mine, theirs) in enumerate(zip(student.symbols, teacher.symbols)) if mine != theirs),
        min(len(student), len(teacher)),
    )
    raise KDPluginError(
        f"{teacher_path}: its {side} dictionary lacks some of the student's symbols. Sizes: teacher {len(teacher)}, "
        f"student {len(student)}. First difference at index {index}: teacher {_symbol(teacher, index)}, student "
        f"{_symbol(student, index)}. Only the teacher has {_missing(teacher, student)}, only the student "
        f"{_missing(student, teacher)}. Remedy: binarise the student's data with the teacher's dictionary "
        f"(fairseq-preprocess --srcdict --tgtdict){'' if not unique else f', or {OTHERWISE}'}"
    )


def _index(dictionary: Dictionary, symbol: str) -> Optional[int]:
    return dictionary.indices.get(symbol)


def _symbol(dictionary: Dictionary, index: int) -> str:
    return repr(dictionary.symbols[index]) if index < len(dictionary.symbols) else "nothing (its end)"


def _missing(dictionary: Dictionary, other: Dictionary) -> str:
    return _some([symbol for symbol in dictionary.symbols if symbol not in other.indices])


def _some(symbols: List[str]) -> str:
    more = f" and {len(symbols) - 3:,} more" if len(symbols) > 3 else ""
    return ", ".join(map(repr, symbols[:3])) + more or "nothing"
