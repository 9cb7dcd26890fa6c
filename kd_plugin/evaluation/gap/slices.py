"""Divides a test set into slices: by length, case, digits, rare words, copied words, domain and agreement."""

import re
from collections import Counter
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence

from sacrebleu.metrics import CHRF

WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
ENDS = ".!?…。！？।؟:;\"'”’»)]"
OFTEN = 5  # a word seen at most so often in the training text is rare
MOSTLY = 0.7


class Sentence(NamedTuple):
    source: str
    reference: str
    teacher: str
    student: str


class Slice(NamedTuple):
    """A part of the test set. rows: numbers of its sentences, from 0"""

    kind: str
    name: str
    rows: List[int]


def slices(
    sentences: Sequence[Sentence],
    training: Optional[Iterable[str]] = None,
    domains: Optional[Sequence[str]] = None,
    words_have_spaces: bool = True,
    lowercase: bool = False,
) -> List[Slice]:
    """All slices with at least one sentence; those of one kind do not overlap, and together are the test set.

    A kind that would have a single slice is left out, since that is the whole test set.

    Args:
        training: sentences that the student was trained on, in the source language, to tell which words are rare
        domains: a label for each sentence
        lowercase: whether the student agrees with its teacher when they differ in case
        words_have_spaces: in the source language; else length is counted in characters, and there are no rare words
    """
    kinds: Dict[str, Callable[[Sentence], str]] = {
        "case": _case,
        "numbers": lambda each: "with digits" if re.search(r"\d", each.source) else "without digits",
        "end": lambda each: "with punctuation" if each.source.rstrip()[-1:] in tuple(ENDS) else "without punctuation",
        "copied words": _copied,
        "agreement": _agreement(lowercase),
    }
    found = _by_length(sentences, words_have_spaces)
    for kind, label in kinds.items():
        found += _grouped(kind, [label(each) for each in sentences])
    if training is not None and words_have_spaces:
        found += _grouped("rarest word", _rarity(sentences, training))
    if domains is not None:
        found += _grouped("domain", domains)
    sizes = Counter(part.kind for part in found)
    return [part for part in found if sizes[part.kind] > 1]


def _grouped(kind: str, labels: Sequence[str]) -> List[Slice]:
    rows: Dict[str, List[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return [Slice(kind, label, rows[label]) for label in sorted(rows, key=_order)]


# names that have an order of their own
ORDER = [
    "unseen",
    "seen 1 to 5 times",
    "seen more often",
    "identical",
    "chrF 80 or more",
    "chrF 50 to 80",
    "chrF below 50",
]


def _order(label: str) -> "tuple[int, str]":
    return (ORDER.index(label) if label in ORDER else -1, label)


def _by_length(sentences: Sequence[Sentence], words: bool) -> List[Slice]:
    """Four slices of about equal size; equal lengths stay together."""
    lengths = [len(each.source.split() if words else re.sub(r"\s", "", each.source)) for each in sentences]
    ordered = sorted(lengths)
    edges = sorted({ordered[len(ordered) * part // 4] for part in (1, 2, 3)})
    bins: Dict[int, List[int]] = {}
    for row, length in enumerate(lengths):
        bins.setdefault(sum(length >= edge for edge in edges), []).append(row)
    unit = "words" if words else "characters"
    named = []
    for number in sorted(bins):
        low, high = (end(lengths[row] for row in bins[number]) for end in (min, max))
        named.append(Slice("length", f"{low}–{high} {unit}" if low < high else f"{low} {unit}", bins[number]))
    return named


def _case(each: Sentence) -> str:
    letters = [character for character in each.source if character.isupper() or character.islower()]
    words = [word for word in WORD.findall(each.source) if word[0].isupper() or word[0].islower()]
    if not letters:
        return "no case"
    if sum(map(str.isupper, letters)) >= MOSTLY * len(letters) and len(letters) > 3:
        return "capitals"
    if not any(map(str.isupper, letters)):
        return "lower case"
    if len(words) > 2 and sum(word[0].isupper() for word in words) >= MOSTLY * len(words):
        return "title case"
    return "sentence case"


def _copied(each: Sentence) -> str:
    """Whether the reference repeats words of the source: names, numbers, addresses."""
    long = {word for word in re.findall(r"[\w.@/:\-]{4,}", each.source)}
    count = len(long & set(re.findall(r"[\w.@/:\-]{4,}", each.reference)))
    return "none" if not count else "one" if count == 1 else "two or more"


def _agreement(lowercase: bool) -> Callable[[Sentence], str]:
    metric = CHRF(lowercase=lowercase)

    def label(each: Sentence) -> str:
        pair = (each.student, each.teacher)
        if pair[0] == pair[1] or (lowercase and pair[0].lower() == pair[1].lower()):
            return "identical"
        score = metric.sentence_score(each.student, [each.teacher]).score
        return "chrF 80 or more" if score >= 80 else "chrF 50 to 80" if score >= 50 else "chrF below 50"

    return label


def _rarity(sentences: Sequence[Sentence], training: Iterable[str]) -> List[str]:
    counts: Counter = Counter()
    for line in training:
        counts.update(word.lower() for word in WORD.findall(line))
    labels = []
    for each in sentences:
        least = min((counts[word.lower()] for word in WORD.findall(each.source)), default=OFTEN + 1)
        labels.append("unseen" if not least else "seen 1 to 5 times" if least <= OFTEN else "seen more often")
    return labels
