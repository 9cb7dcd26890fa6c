"""Sentences with a label per word: the label is the target at the word's first symbol."""

from typing import Any, Optional

import numpy as np
import torch
from fairseq.data import FairseqDataset, data_utils
from torch import Tensor

from kd_plugin.corpus.labelled_folder import IGNORE, UNLABELLED, tokens_of
from kd_plugin.corpus.words import Words
from kd_plugin.errors import KDPluginError


class WordTargets(FairseqDataset):
    """(length,) targets of each sentence: a label at each word's first symbol, IGNORE elsewhere.

    Args:
        tokens: fairseq's data set of the student's tokens, perhaps cut
        labels: of the words' labels, with an end of sentence; None: they are unknown
        words: of the dictionary
        offset: to subtract from a label's index in its dictionary
        path: of the labels, for messages
    """

    def __init__(self, tokens: Any, labels: Optional[Any], words: Words, offset: int, path: str):
        super().__init__()
        self._tokens, self._labels, self._words, self._offset, self._path = tokens, labels, words, offset, path
        self.sizes = tokens.sizes

    def __getitem__(self, index: int) -> Tensor:
        starts = np.flatnonzero(self._words.starts(tokens_of(self._tokens, index)))
        target = np.full(len(self._tokens[index]), IGNORE, dtype=np.int64)
        target[starts] = UNLABELLED
        if self._labels is not None:
            target[starts] = tokens_of(self._labels, index)[: len(starts)] - self._offset
        return torch.from_numpy(target)

    def __len__(self) -> int:
        return len(self._tokens)

    def collater(self, samples: Any) -> Tensor:
        """(batch, length), padded with IGNORE."""
        targets: Tensor = data_utils.collate_tokens(samples, IGNORE, left_pad=False)
        return targets


def check_words(tokens: Any, labels: Optional[Any], words: Words, path: str, word_start: str) -> None:
    """Refuses sentences whose words are not as many as their labels, or that have none.

    Args:
        tokens: the whole sentences, not cut
        labels: their labels, with an end of sentence; None: only empty sentences are refused

    Raises:
        KDPluginError: naming the first such sentence
    """
    if labels is not None and len(labels) != len(tokens):
        raise KDPluginError(
            f"{path}: has labels for {len(labels):,} sentences, but there are {len(tokens):,}. Remedy: prepare text "
            "and labels together, with kd-plugin prepare-tagging"
        )
    for index in range(len(tokens)):
        found = int(words.starts(tokens_of(tokens, index)).sum())
        expected = found if labels is None else len(labels[index]) - 1
        if found == 0:
            raise KDPluginError(
                f"{path}: sentence {index + 1} has no word. Remedy: leave it out; kd-plugin prepare-tagging does so"
            )
        if found != expected:
            raise KDPluginError(
                f"{path}: sentence {index + 1} has {expected} labels, but {found} words by --word-start {word_start}. "
                "Remedy: the rule by which its symbols form words (--word-start), or prepare it again with kd-plugin "
                "prepare-tagging"
            )
