"""Words in segmented text: where they begin among a dictionary's symbols, and the raw text that symbols stand for."""

from typing import Any, Callable, Dict, List, NamedTuple, Sequence

import numpy as np

SPACE = "\u2581"  # sentencepiece's mark: this piece begins a word
CONTINUED = "@@"  # subword-nmt's mark: the next piece belongs to the same word
AUTO = "auto"
WORD_STARTS = (AUTO, "sentencepiece", "subword_nmt", "every")  # --word-start

HELP = (
    "how the symbols of the text form words. sentencepiece: a word begins with \u2581; subword_nmt: it goes on after "
    "@@; every: each symbol is a word; auto: by the dictionary's symbols"
)


class _Rule(NamedTuple):
    """One way of marking words.

    begins:    whether a symbol begins a word, whatever comes before
    continues: whether the next symbol belongs to the same word
    text:      a symbol's text, without marks
    """

    begins: Callable[[str], bool]
    continues: Callable[[str], bool]
    text: Callable[[str], str]


_RULES: Dict[str, _Rule] = {
    "sentencepiece": _Rule(lambda s: s.startswith(SPACE), lambda s: True, lambda s: s.replace(SPACE, " ").strip(" ")),
    "subword_nmt": _Rule(
        lambda s: False,
        lambda s: s.endswith(CONTINUED),
        lambda s: s[: -len(CONTINUED)] if s.endswith(CONTINUED) else s,
    ),
    "every": _Rule(lambda s: True, lambda s: False, lambda s: s),
}


def rule_of(word_start: str, symbols: Sequence[str]) -> str:
    """The rule that --word-start names; auto: the one whose marks the symbols bear."""
    if word_start != AUTO:
        return word_start
    if SPACE in symbols or sum(symbol.startswith(SPACE) for symbol in symbols) * 10 >= len(symbols):
        return "sentencepiece"
    # a word may end with the mark by chance, but subword-nmt's dictionaries are full of it
    return "subword_nmt" if sum(symbol.endswith(CONTINUED) for symbol in symbols) * 20 >= len(symbols) else "every"


class Words:
    """The words of sentences in a dictionary's symbols.

    Args:
        dictionary: fairseq's
        word_start: a rule's name, not auto
        ignored: indices that belong to no word: begin and end of sentence, padding, separators
    """

    def __init__(self, dictionary: Any, word_start: str, ignored: Sequence[int] = ()):
        rule, symbols = _RULES[word_start], dictionary.symbols
        self.word_start = word_start
        self._begins = np.array([rule.begins(symbol) for symbol in symbols])
        self._continues = np.array([rule.continues(symbol) for symbol in symbols])
        self._ignored = np.zeros(len(symbols), dtype=bool)
        self._ignored[[dictionary.bos(), dictionary.pad(), dictionary.eos(), *ignored]] = True
        self._text = [rule.text(symbol) for symbol in symbols]
        self._unk = dictionary.unk()

    def starts(self, tokens: np.ndarray) -> np.ndarray:
        """(length,) bool: which of a sentence's symbols begin a word.

        Args:
            tokens: (length,) indices
        """
        real = ~self._ignored[tokens]
        after = np.ones(len(tokens), dtype=bool)  # whether the symbol before ends a word
        after[1:] = ~self._continues[tokens[:-1]] | ~real[:-1]
        starts: np.ndarray = real & (self._begins[tokens] | after)
        return starts

    def words(self, tokens: np.ndarray, unknown: str = "") -> List[str]:
        """The words of a sentence; a word may be empty, if no text stands for its symbols.

        Args:
            unknown: the text for the unknown symbol
        """
        words: List[str] = []
        for index, starts in zip(tokens.tolist(), self.starts(tokens).tolist()):
            if self._ignored[index]:
                continue
            text = unknown if index == self._unk else self._text[index]
            if starts:
                words.append(text)
            else:
                words[-1] += text
        return words
