"""Seeded noise for the text that a student reads: casing, missing punctuation, typing errors, numbers.

The kinds are those of OpusTrainer (Bogoychev et al. 2023, https://arxiv.org/abs/2311.14838) and another way to write
long numbers. No kind changes what a sentence says, so its translation stays right.
"""

import difflib
import math
import re
import unicodedata
from random import Random
from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np

from kd_plugin.corpus.subword_checks import ADDED
from kd_plugin.errors import KDPluginError

CASES = ("upper", "title", "lower")  # at most one of these at a time
KINDS = (*CASES, "punct", "typo", "numbers")
SHARE = 0.05  # of the letters of a sentence with typing errors, unless said otherwise
FLAG = "--kd-augment"
INSIDE = frozenset("-'\u2019.,:/_@&\u2010\u2011")  # stay between two letters or digits, as in don't and 3.5
EDITS = ("swap", "drop", "insert", "replace")
# Five digits or more, bare or in groups of three. A single group after a comma or point may as well be a decimal, and
# numbers with an ordinary space between them may as well be two.
LONG_NUMBER = re.compile(
    r"(?<![\w.,])(?:[1-9]\d{4,}|[1-9]\d{0,2}(?:(?:[\u00a0\u202f]\d{3})+|(?:,\d{3}){2,}|(?:\.\d{3}){2,}))(?!\w|[.,]\d)"
)


class Noise(NamedTuple):
    """What --kd-augment asks for.

    chances: the probability of each kind, for each sentence
    share:   of the letters of a sentence with typing errors
    """

    chances: Dict[str, float]
    share: float = SHARE

    @property
    def asked(self) -> bool:
        return any(self.chances.values())

    def __str__(self) -> str:
        """As on the command line, without kinds of probability 0; empty: nothing is asked for."""
        shares = {"typo": f":{self.share:g}"}
        return ",".join(f"{kind}:{p:g}{shares.get(kind, '')}" for kind, p in self.chances.items() if p)

    def drawn(self, sentences: int, seed: int, epoch: int) -> np.ndarray:
        """(sentences,) what befalls each: at most one case, and any of the others, as bits in the order of KINDS.

        A sentence's draw does not depend on how many there are.
        """
        masks = np.zeros(sentences, dtype=np.uint8)
        for stream, kinds in enumerate((CASES, *((kind,) for kind in KINDS[len(CASES) :]))):
            drawn = np.random.RandomState([seed % 2**32, epoch, stream]).random_sample(sentences)
            low = 0.0
            for kind in kinds:
                high = low + self.chances.get(kind, 0.0)
                masks[(low <= drawn) & (drawn < high)] |= 1 << KINDS.index(kind)
                low = high
        return masks

    def added(self, text: str, kinds: Sequence[str], draw: Random) -> str:
        """The text with noise of these kinds; the same text if nothing would be left of it.

        Placeholders and language tags, such as <2de>, stay.
        """
        if "numbers" in kinds:
            text = LONG_NUMBER.sub(lambda found: rewritten(found.group(), draw), text)
        words = text.split(" ")
        for kind in kinds:
            if kind in CASES:
                words = [word if ADDED.fullmatch(word) else cased(word, kind) for word in words]
        if "punct" in kinds:
            words = [word if ADDED.fullmatch(word) else without_punctuation(word) for word in words]
            words = [word for word in words if word] or words
        if "typo" in kinds:
            words = with_typos(words, self.share, draw)
        found = " ".join(words)
        return found if found.strip() else text


def kinds_of(mask: int) -> List[str]:
    """The kinds of one of the numbers that Noise.drawn gives."""
    return [kind for bit, kind in enumerate(KINDS) if mask >> bit & 1]


def parsed(spec: Any) -> Noise:
    """The noise that a SPEC names: `upper:0.05,typo:0.1:0.02`, a kind and its probability for each sentence; typo takes
    the share of letters as well.

    Raises:
        KDPluginError: an unknown kind, one twice, a number outside [0, 1], or cases whose sum is above 1
    """
    chances: Dict[str, float] = {}
    share = SHARE
    for part in filter(None, (part.strip() for part in str(spec or "").split(","))):
        kind, *numbers = part.split(":")
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, 1)
            guess = f"{near[0]}?" if near else "one of " + ", ".join(KINDS)
            raise KDPluginError(f"{FLAG} {spec}: there is no noise {kind!r}. Remedy: {guess}")
        if kind in chances or len(numbers) not in ((1, 2) if kind == "typo" else (1,)):
            raise KDPluginError(
                f"{FLAG} {spec}: {part!r} is not one kind, given once, with its probability. Remedy: like "
                "upper:0.05,typo:0.1:0.02"
            )
        values = [_probability(number, f"{FLAG} {spec}: {part!r}") for number in numbers]
        chances[kind] = values[0]
        share = values[1] if len(values) > 1 else share
    if math.fsum(chances.get(kind, 0.0) for kind in CASES) > 1 + 1e-9:
        raise KDPluginError(
            f"{FLAG} {spec}: a sentence has at most one case, but {', '.join(CASES)} have more than 1 together. "
            "Remedy: lower probabilities"
        )
    return Noise(chances, share)


def _probability(number: str, where: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise KDPluginError(f"{where}: {number!r} is not a number from 0 to 1. Remedy: for example, 0.05")
    return value


def cased(word: str, kind: str) -> str:
    """A word in upper or lower case, or with its first letter in upper case."""
    if kind != "title":
        return word.upper() if kind == "upper" else word.lower()
    first = next((at for at, character in enumerate(word) if character.isalpha()), 0)
    return word[:first] + word[first : first + 1].upper() + word[first + 1 :]


def without_punctuation(word: str) -> str:
    """A word without punctuation, except such as stands inside words and numbers."""
    return "".join(
        character
        for at, character in enumerate(word)
        if not unicodedata.category(character).startswith("P")
        or (character in INSIDE and word[max(0, at - 1) : at].isalnum() and word[at + 1 : at + 2].isalnum())
    )


def with_typos(words: List[str], share: float, draw: Random) -> List[str]:
    """Words in which a share of all letters, and at least one, is swapped with the next, dropped, replaced, or preceded
    by another letter; such letters are the sentence's."""
    places = [
        (number, at)
        for number, word in enumerate(words)
        if not ADDED.fullmatch(word)
        for at, character in enumerate(word)
        if character.isalpha()
    ]
    if not places or not share:
        return words
    letters = sorted({words[number][at] for number, at in places})
    characters = [list(word) for word in words]
    # from the right, so that the places on the left stay where they are
    for number, at in sorted(draw.sample(places, max(1, round(share * len(places)))), reverse=True):
        word, edit, letter = characters[number], draw.choice(EDITS), draw.choice(letters)
        if edit == "swap" and at + 1 < len(word) and word[at + 1].isalpha():
            word[at], word[at + 1] = word[at + 1], word[at]
        elif edit == "drop" and len(word) > 1:
            del word[at]
        elif edit == "insert":
            word.insert(at, letter)
        else:
            word[at] = letter
    return ["".join(word) for word in characters]


def rewritten(number: str, draw: Random) -> str:
    """A long number without marks between its digits, or in groups of three with other marks."""
    digits = "".join(filter(str.isdigit, number))
    first = len(digits) % 3 or 3
    groups = [digits[:first], *(digits[at : at + 3] for at in range(first, len(digits), 3))]
    marks = ["", " ", "\u00a0", *([",", "."] if len(groups) > 2 else [])]
    return draw.choice([written for written in (mark.join(groups) for mark in marks) if written != number])
