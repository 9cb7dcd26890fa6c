"""A student's embeddings from its teacher's: by symbol, not by index; a new symbol is the mean of its parts.

The mean: fast vocabulary transfer (Gee et al. 2022, https://aclanthology.org/2022.emnlp-industry.41).
sentencepiece marks where a word begins, subword-nmt where it goes on; between the two, text decides.
"""

from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

import torch
from fairseq.data import Dictionary
from torch import Tensor

from kd_plugin.corpus.dictionaries import FILLER
from kd_plugin.corpus.subwords import Subwords
from kd_plugin.initialise.whole import EMBEDDINGS, OUTPUT, Whole

SPACE, CONTINUED = "▁", "@@"  # sentencepiece's and subword-nmt's marks


class Matched(NamedTuple):
    """What one side's symbols are in the teacher. rows: for each, the teacher's rows of which it is the mean"""

    rows: List[List[int]]
    copied: int
    averaged: Dict[str, List[str]]
    unknown: List[str]

    def of(self, weight: Tensor) -> Tensor:
        return torch.stack([weight[rows].mean(dim=0) if len(rows) > 1 else weight[rows[0]] for rows in self.rows])


def match_symbols(student: Dictionary, teacher: Dictionary, subwords: Optional[Subwords]) -> Matched:
    """The teacher's rows for each of the student's symbols.

    Args:
        subwords: the teacher's sentencepiece model, to segment symbols that it does not have; None, or one without a
            model: the longest symbols of the teacher from the left
    """
    indices = teacher.indices
    parts_of = _splitter(indices, subwords)
    spelled = _speller(_mark(student.symbols), teacher)
    rows, averaged, unknown, copied = [], {}, [], 0
    special = {student[getattr(student, role)()]: getattr(teacher, role)() for role in ("bos", "pad", "eos", "unk")}
    for symbol in student.symbols:
        if symbol in special:
            rows.append([special[symbol]])
            continue
        known, to_split = (symbol, symbol) if FILLER.fullmatch(symbol) else spelled(symbol)
        if known in indices:
            copied += 1
            rows.append([indices[known]])
            continue
        parts = [] if FILLER.fullmatch(symbol) else parts_of(to_split)
        if parts:
            averaged[symbol] = parts
            rows.append([indices[part] for part in parts])
        else:
            unknown.append(symbol)
            rows.append([teacher.unk()])
    return Matched(rows, copied, averaged, unknown)


def change_vocabulary(whole: Whole, student: Tuple[Dictionary, Dictionary], matched: Tuple[Matched, Matched]) -> Whole:
    """The model with these dictionaries. Embeddings stay shared if the student's dictionary is joined too."""
    source, target = matched
    weights, options = dict(whole.weights), dict(whole.options)
    if whole.shares_all and student[0].symbols != student[1].symbols:
        options["share_all_embeddings"], options["share_decoder_input_output_embed"] = False, True
    weights[EMBEDDINGS["encoder"]] = source.of(whole.weights[EMBEDDINGS["encoder"]])
    weights[EMBEDDINGS["decoder"]] = target.of(whole.weights[EMBEDDINGS["decoder"]])
    if whole.ties_output:
        weights[OUTPUT] = weights[EMBEDDINGS["decoder"]]
    else:
        weights[OUTPUT] = target.of(whole.weights[OUTPUT])
    return Whole(options, weights, student)


def _mark(symbols: Iterable[str]) -> str:
    """The mark by which a vocabulary tells whole words from parts; empty if it has only whole words."""
    symbols = list(symbols)
    begun = sum(symbol.startswith(SPACE) for symbol in symbols)
    continued = sum(symbol.endswith(CONTINUED) for symbol in symbols)
    return "" if not begun and not continued else SPACE if begun >= continued else CONTINUED


def _speller(mark: str, teacher: Dictionary) -> Callable[[str], Tuple[str, str]]:
    """From a symbol of the student to the teacher's spelling of it, and to the spelling that is split if it has none.

    With one mark in both dictionaries, these are the symbol. Otherwise a text may begin a word or stand inside one: it
    is what the teacher's dictionary counts more often.
    """
    theirs = _mark(teacher.symbols)
    if mark == theirs:
        return lambda symbol: (symbol, symbol)

    def spelled(symbol: str) -> Tuple[str, str]:
        text = symbol
        if mark == SPACE and symbol.startswith(SPACE):
            text = symbol[len(SPACE) :]
        elif mark == CONTINUED and symbol.endswith(CONTINUED):
            text = symbol[: -len(CONTINUED)]
        forms = {SPACE: [SPACE + text, text], CONTINUED: [text, text + CONTINUED], "": [text]}[theirs]
        known = [form for form in forms if text and form in teacher.indices]
        # max takes the first of equals: the whole word, where the dictionary has no counts
        return max(known, key=lambda form: teacher.count[teacher.indices[form]], default=symbol), forms[0]

    return spelled


def _splitter(known: Dict[str, int], subwords: Optional[Subwords]) -> Callable[[str], List[str]]:
    if _mark(known) == CONTINUED:
        return lambda symbol: _continued(symbol, known)
    if subwords is None or subwords.path is None:
        return lambda symbol: _longest(symbol, known)
    return lambda symbol: _by_model(symbol, known, subwords)


def _by_model(symbol: str, known: Dict[str, int], subwords: Subwords) -> List[str]:
    """The model's own segmentation; it begins with a word, so a symbol inside a word loses the mark again."""
    pieces = subwords.encode(symbol.replace(SPACE, " ").strip())
    if pieces and not symbol.startswith(SPACE):
        first = pieces[0][len(SPACE) :] if pieces[0].startswith(SPACE) else pieces[0]
        pieces = [first, *pieces[1:]] if first else pieces[1:]
    if pieces and all(piece in known for piece in pieces):
        return pieces
    return _longest(symbol, known)


def _longest(symbol: str, known: Dict[str, int]) -> List[str]:
    """The longest known symbols from the left; characters that none has are left out."""
    parts, at = [], 0
    while at < len(symbol):
        end = next((end for end in range(len(symbol), at, -1) if symbol[at:end] in known), None)
        if end is None:
            at += 1
            continue
        parts.append(symbol[at:end])
        at = end
    return [part for part in parts if part != SPACE]  # the mark alone says nothing of a symbol


def _continued(symbol: str, known: Dict[str, int]) -> List[str]:
    """The same for subword-nmt's symbols, where all but a word's last end with @@."""
    whole = symbol[: -len(CONTINUED)] if symbol.endswith(CONTINUED) else symbol
    parts, at = [], 0
    while at < len(whole):
        for end in range(len(whole), at, -1):
            part = whole[at:end] + (CONTINUED if end < len(whole) or symbol.endswith(CONTINUED) else "")
            if part in known:
                parts.append(part)
                at = end
                break
        else:
            at += 1
    return parts
