"""Models that label text: what they have in common, and how their speed is measured."""

import time
from abc import ABC, abstractmethod
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np

from kd_plugin.corpus.prepare_tagging import whole_word, word_pieces
from kd_plugin.corpus.subword_checks import Marks, check_known, check_text
from kd_plugin.corpus.subwords import Subwords
from kd_plugin.evaluation.classifiers.labelled_text import TAGS, LabelledTest

LOST = -1  # the place of a word that the model does not read


class Encoded(NamedTuple):
    """A sentence as a model reads it.

    Args:
        ids: of its symbols
        places: of its words among them, for tagging; LOST: it has none, or is beyond the model's limit
        cut: whether the sentence is longer than that
    """

    ids: List[int]
    places: List[int]
    cut: bool


class Answers(NamedTuple):
    """A model's answers to a test set.

    Args:
        rows: logits of each sentence, (1, outputs), or (words, outputs) with NaN for words that it did not read
        seconds: of the model alone, without segmentation
        cut: sentences of which it read only the beginning
        lost: words that it did not read
    """

    rows: List[np.ndarray]
    seconds: float
    cut: int
    lost: int


class Facts(NamedTuple):
    """What a table says about a model. labels: in the order of its outputs; None: it predicts numbers"""

    engine: str
    labels: Optional[List[str]]
    parameters: Optional[int]
    bytes: int
    sha256: str


class Labeller(ABC):
    """A model that labels text. padding: the index that fills shorter sentences of a batch, on the right"""

    facts: Facts
    padding: int

    @abstractmethod
    def encode(self, test: LabelledTest, kind: str) -> List[Encoded]:
        """The sentences of a test set as this model reads them.

        Raises:
            KDPluginError: the model cannot read this text
        """

    @abstractmethod
    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """B × outputs or B × T × outputs, of (B, T) int64 indices."""

    def answers(self, sentences: Sequence[Encoded], kind: str, batch_size: int) -> Answers:
        """The answers to sentences, in batches of similar length; the first batch is also run before timing."""
        order = np.argsort([len(one.ids) for one in sentences], kind="stable")[::-1]
        rows: List[np.ndarray] = [np.empty(0)] * len(sentences)
        seconds = 0.0
        for number, begin in enumerate(range(0, len(order), batch_size)):
            chosen = [int(at) for at in order[begin : begin + batch_size]]
            tokens = self._padded([sentences[at].ids for at in chosen])
            if not number:
                self.logits(tokens)
            start = time.perf_counter()
            found = self.logits(tokens)
            seconds += time.perf_counter() - start
            for at, logits in zip(chosen, found.astype(np.float64)):
                rows[at] = _of_words(logits, sentences[at].places) if kind == TAGS else logits[None]
        lost = sum(one.places.count(LOST) for one in sentences)
        return Answers(rows, seconds, sum(one.cut for one in sentences), lost)

    def _padded(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        tokens = np.full((len(rows), max(map(len, rows))), self.padding, dtype=np.int64)
        for row, ids in zip(tokens, rows):
            row[: len(ids)] = ids
        return tokens


def _of_words(logits: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """(words, outputs) of (T, outputs)."""
    where = np.array(places, dtype=np.int64)
    found = logits[np.maximum(where, 0)]
    found[where == LOST] = np.nan
    return found


class SymbolLabeller(Labeller):
    """A model that reads a fairseq dictionary's symbols.

    Args:
        symbols: their indices
        unknown, padding: indices
        prefix, suffix: indices before and after a sentence's symbols; the suffix is the end of sentence
        limit: of symbols in a sentence, with those; None: any
        subwords: for raw text
    """

    def __init__(
        self,
        symbols: Dict[str, int],
        unknown: int,
        padding: int,
        prefix: List[int],
        suffix: List[int],
        limit: Optional[int],
        subwords: Subwords,
    ):
        self.symbols, self.padding = symbols, padding
        self._unknown, self._prefix, self._suffix = unknown, prefix, suffix
        self._limit, self._subwords = limit, subwords

    def encode(self, test: LabelledTest, kind: str) -> List[Encoded]:
        """As Labeller's."""
        pieces = [self._pieces(test, at, kind) for at in range(len(test))]
        if test.symbols is None:
            has_model, flag = self._subwords.path is not None, f"--test {test.name}"
            check_text(Marks(test.texts), has_model, list(self.symbols), flag)
            check_known([one for one, _ in pieces], self.symbols, has_model)
        return [self._sentence(*one) for one in pieces]

    def _pieces(self, test: LabelledTest, at: int, kind: str) -> Any:
        """A sentence's symbols without its end, and the places of its words."""
        if test.symbols is not None and test.starts is not None:
            symbols = test.symbols[at]
            ended = len(symbols) - (symbols[-1:] == ["</s>"])
            return symbols[:ended], test.starts[at].tolist() if kind == TAGS else []
        if kind != TAGS:
            return self._subwords.encode(test.texts[at]), []
        pieces: List[str] = []
        places = []
        for word in test.words[at]:
            of_word = [whole_word(word)] if self._subwords.path is None else word_pieces(self._subwords.encode, word)
            places.append(len(pieces) if of_word else LOST)
            pieces += of_word
        return pieces, places

    def _sentence(self, pieces: Sequence[str], places: Sequence[int]) -> Encoded:
        before = len(self._prefix)
        room = len(pieces) if self._limit is None else self._limit - before - len(self._suffix)
        ids = [self.symbols.get(piece, self._unknown) for piece in pieces[:room]]
        found = [place + before if LOST < place < room else LOST for place in places]
        return Encoded([*self._prefix, *ids, *self._suffix], found, len(pieces) > room)
