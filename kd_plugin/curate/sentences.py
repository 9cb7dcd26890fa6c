"""A pair of sentences as the filter's rules look at it, and loops in one of them."""

import functools
import math
import re
import unicodedata
from typing import FrozenSet, List, NamedTuple, Sequence

import regex

from kd_plugin.corpus.languages import amount

LETTERS = regex.compile(r"\p{L}[\p{L}\p{M}]*")  # words; the marks are vowels in many scripts, where re sees words end
LONGEST_REPEATED = 4  # words
# Loops of subwords inside a word, "verwahrwahrwahrlost": letters that come three times or more in a row, and at least
# eight of them. Sonnenenergie and Ururgroßvater are none; in 414,000 sentences of Multi30k and Tatoeba, English, German
# and French, there is none, in small teachers' translations up to one of a hundred has one.
LETTERS_IN_A_ROW = re.compile(r"([^\W\d_]{1,20}?)\1\1+")
SHORTEST_LOOP = 8  # letters


class Side:
    """A sentence, looked at once for all rules. spaced: whether spaces part the words of its language"""

    def __init__(self, text: str, spaced: bool = True):
        self.text, self.spaced = text, spaced

    @functools.cached_property
    def words(self) -> List[str]:
        return self.text.split()

    @functools.cached_property
    def characters(self) -> str:
        """Without white space."""
        return "".join(self.words)

    @functools.cached_property
    def letters(self) -> str:
        return "".join(filter(str.isalpha, self.text))

    @functools.cached_property
    def readable(self) -> float:
        """Share of letters, digits and the marks on them (a third of Devanagari) among the characters."""
        known = sum(map(str.isalnum, self.characters))
        others = () if self.text.isascii() else (c for c in self.characters if not c.isalnum())
        return (known + sum(unicodedata.category(c)[0] == "M" for c in others)) / max(1, len(self.characters))

    @functools.cached_property
    def digits(self) -> List[int]:
        """All decimal digits by their value, whatever their script, sorted."""
        return sorted(unicodedata.decimal(c) for c in self.text if c.isdecimal())

    @functools.cached_property
    def vocabulary(self) -> FrozenSet[str]:
        """Words without case, digits and punctuation."""
        return frozenset(self.bare_words)

    @functools.cached_property
    def bare_words(self) -> List[str]:
        """The same in their order."""
        return list(LETTERS.findall(self.text.casefold()))

    @functools.cached_property
    def amount(self) -> float:
        """How much it says, in words of English, by its characters."""
        return amount(self.characters)

    def counts_words(self, unit: str) -> bool:
        return unit == "words" or (unit == "auto" and self.spaced)

    def loops(self, times: int) -> bool:
        """Whether letters come at least three and so many times in a row inside a word; without spaces anywhere."""
        text = self.text if self.spaced else self.letters
        return any(
            len(found[0]) >= max(SHORTEST_LOOP, times * len(found[1]))
            for found in LETTERS_IN_A_ROW.finditer(text.casefold())
        )

    def length(self, unit: str) -> int:
        if self.counts_words(unit):
            return len(self.words)
        return math.ceil(self.amount) if unit == "auto" else len(self.characters)


class Pair(NamedTuple):
    source: Side
    hypothesis: Side


def has_loop(units: Sequence[str], times: int) -> bool:
    """Whether an n-gram (n = 1 … 4) comes at least so many times in a row."""
    if len(units) - len(set(units)) < times - 1:
        return False
    for size in range(1, LONGEST_REPEATED + 1):
        run = 0
        for unit, later in zip(units, units[size:]):
            run = run + 1 if unit == later else 0
            if run == size * (times - 1):
                return True
    return False
