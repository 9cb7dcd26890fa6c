"""The properties of a sentence pair that filter rules use, and the detection of loops."""

import functools
import math
import re
import unicodedata
from typing import FrozenSet, List, NamedTuple, Sequence

import regex

from kd_plugin.corpus.languages import amount

LETTERS = regex.compile(r"\p{L}[\p{L}\p{M}]*")  # words; \p{M} includes vowels of many scripts, where re's \w would end
LONGEST_REPEATED = 4  # words
# Loops of subwords inside a word, "verwahrwahrwahrlost": letters that repeat at least three times in a row and are at
# least eight in total. Sonnenenergie and Ururgroßvater are not loops. In 414,000 English, German and French sentences
# of Multi30k and Tatoeba there is none; in small teachers' translations, up to one sentence in a hundred has one.
LETTERS_IN_A_ROW = re.compile(r"([^\W\d_]{1,20}?)\1\1+")
SHORTEST_LOOP = 8  # letters


class Side:
    """A sentence with properties computed once for all rules. spaced: whether its language separates words by spaces"""

    def __init__(self, text: str, spaced: bool = True):
        self.text, self.spaced = text, spaced

    @functools.cached_property
    def words(self) -> List[str]:
        return self.text.split()

    @functools.cached_property
    def characters(self) -> str:
        """The text without white space."""
        return "".join(self.words)

    @functools.cached_property
    def letters(self) -> str:
        return "".join(filter(str.isalpha, self.text))

    @functools.cached_property
    def readable(self) -> float:
        """The share of letters, digits and their marks (a third of Devanagari text) among the characters."""
        known = sum(map(str.isalnum, self.characters))
        others = () if self.text.isascii() else (c for c in self.characters if not c.isalnum())
        return (known + sum(unicodedata.category(c)[0] == "M" for c in others)) / max(1, len(self.characters))

    @functools.cached_property
    def digits(self) -> List[int]:
        """The values of all decimal digits in any script, sorted."""
        return sorted(unicodedata.decimal(c) for c in self.text if c.isdecimal())

    @functools.cached_property
    def vocabulary(self) -> FrozenSet[str]:
        """The set of words in lower case, without digits and punctuation."""
        return frozenset(self.bare_words)

    @functools.cached_property
    def bare_words(self) -> List[str]:
        """The words in lower case, without digits and punctuation, in order."""
        return list(LETTERS.findall(self.text.casefold()))

    @functools.cached_property
    def amount(self) -> float:
        """The amount of text in English words, estimated from its characters."""
        return amount(self.characters)

    def counts_words(self, unit: str) -> bool:
        return unit == "words" or (unit == "auto" and self.spaced)

    def loops(self, times: int) -> bool:
        """Whether letters repeat at least three and `times` times in a row inside a word (without spaces: anywhere)."""
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
    """Whether an n-gram (n = 1 … 4) repeats at least `times` times in a row."""
    if len(units) - len(set(units)) < times - 1:
        return False
    for size in range(1, LONGEST_REPEATED + 1):
        run = 0
        for unit, later in zip(units, units[size:]):
            run = run + 1 if unit == later else 0
            if run == size * (times - 1):
                return True
    return False
