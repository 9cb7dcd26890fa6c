"""Detects columns that cannot be what they are taken for: numbers, identifiers or labels, text instead of systems."""

import re
from collections import Counter
from typing import List

from kd_plugin.corpus.languages import amount
from kd_plugin.errors import KDPluginError

NUMBER = re.compile(r"\s*[-+]?\d+(?:[.,]\d+)*\s*")
ENDS_SENTENCE = re.compile(r"[.!?…。！？]['\"”“»]?\s*$")
SAY = "say which column is what: --columns source,hypothesis,score (in the file's order, _ for one to leave out)"
SIDES = ("sources", "translations")
FEWEST_SYSTEMS = 4
FEWEST_OF_A_LABEL = 4
FEWEST_WORDS = 4  # for text that does not end in a full stop


class Looks:
    """Judges all rows together, for what no single row can show.

    Args:
        where: for errors
        remedy: for errors
        fewest: the number of rows from which on columns of numbers are refused
    """

    def __init__(self, where: str, remedy: str, fewest: int = 1):
        self._where, self._remedy, self._fewest = where, remedy, fewest
        self._rows = 0
        self._labels, self._numbers = [0, 0], [0, 0]
        self._first: List[str] = []
        self._same, self._amounts = [True, True], [0.0, 0.0]
        self._systems: Counter[str] = Counter()

    def add(self, source: str, hypothesis: str, system: str) -> None:
        self._rows += 1
        pair = (source, hypothesis)
        self._first = self._first or list(pair)
        for side, (one, other) in enumerate((pair, pair[::-1])):
            self._numbers[side] += _is_number_for_text(one, other)
            self._labels[side] += _is_number_for_text(one, other) or _is_identifier_for_text(one, other)
            self._same[side] &= one == self._first[side]
            self._amounts[side] += amount("".join(one.split()))
        if system:
            self._systems[system] += 1

    def check(self) -> None:
        """Call after the last row; refuses columns that look like something else."""
        for side, what in enumerate(SIDES):
            if 2 * self._numbers[side] > self._rows >= self._fewest:
                raise self._error(f"{self._numbers[side]:,} of {self._rows:,} {what} are numbers", tatoeba=not side)
        named, different = sum(self._systems.values()), len(self._systems)
        sentences = sum(map(_is_sentence, self._systems))
        if 2 * different > named and (named >= FEWEST_SYSTEMS or different > 1 and 2 * sentences > different):
            raise self._error(f"{different:,} different systems in {named:,} rows: the column is not a system's name")
        for side, what in enumerate(SIDES):
            if 2 * self._labels[side] > self._rows >= max(2, self._fewest):
                raise self._error(f"{self._labels[side]:,} of {self._rows:,} {what} are numbers or identifiers")
            if self._rows >= FEWEST_OF_A_LABEL and self._same[side] and self._is_label(side):
                raise self._error(f"all {self._rows:,} {what} are {self._first[side]!r}")

    def _is_label(self, side: int) -> bool:
        """Whether the text that is the same in all rows is far too short for the other side."""
        label = self._first[side]
        each = self._amounts[1 - side] / self._rows
        return len(label.split()) == 1 and not self._same[1 - side] and each > max(2.5, 2 * amount(label))

    def _error(self, what: str, tatoeba: bool = False) -> KDPluginError:
        like, remedy = "", self._remedy
        if tatoeba and remedy == SAY:
            like, remedy = ", as in Tatoeba's exports", f"{SAY}; for Tatoeba's pairs --columns _,source,_,hypothesis"
        return KDPluginError(f"{self._where}: {what}{like}. Remedy: {remedy}")


def _is_number_for_text(one: str, other: str) -> bool:
    return NUMBER.fullmatch(one) is not None and any(map(str.isalpha, other))


def _is_identifier_for_text(one: str, other: str) -> bool:
    """Whether `one` is an identifier (sent_0001, #7, 7., a UUID) and `other` is text."""
    is_one = one.isascii() and len(one.split()) == 1 and any(map(str.isdigit, one))
    return is_one and any(map(str.isalpha, other)) and (len(other.split()) > 1 or not other.isascii())


def _is_sentence(name: str) -> bool:
    """Whether a system's name is really a sentence, unlike nllb 600M, opus-mt or GPT 4."""
    words = name.split()
    if len(words) < 2:
        return ENDS_SENTENCE.search(name) is not None and not name.isascii()
    return ENDS_SENTENCE.search(name) is not None or len(words) >= FEWEST_WORDS and not any(map(str.isdigit, name))
