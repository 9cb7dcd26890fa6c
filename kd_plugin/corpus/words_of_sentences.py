"""The words of a data set's sentences, for teachers that read text with a tokenizer of their own."""

from typing import Any, List, NamedTuple, Sequence

import numpy as np

from kd_plugin.corpus.labelled_folder import LabelledSplit, tokens_of
from kd_plugin.corpus.words import Words


class Part(NamedTuple):
    """Consecutive sentences of a data set: those of one split of a folder.

    inputs: its binarised inputs, one or two
    """

    split: LabelledSplit
    inputs: List[Any]

    @property
    def sentences(self) -> int:
        return len(self.inputs[0])


class WordsOfSentences:
    """The words of each sentence, by its id in the data set; data-loading workers can pickle it.

    Args:
        parts: the data set's, in order
        words: of the dictionary
    """

    def __init__(self, parts: Sequence[Part], words: Words):
        self._parts, self._words = list(parts), words
        sizes = [part.sentences for part in parts]
        self._firsts = np.cumsum([0, *sizes[:-1]])

    def __call__(self, index: int, unknown: str = "") -> List[List[str]]:
        """The words of each input of a sentence. unknown: the text for the unknown symbol"""
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        part, local = self._parts[number], index - int(self._firsts[number])
        return [self._words.words(tokens_of(dataset, local), unknown) for dataset in part.inputs]
