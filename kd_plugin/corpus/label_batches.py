"""Batches of sentences as a labelling student reads them, for a teacher without a training around it."""

from typing import Any, Dict, List, Sequence

import numpy as np
import torch
from fairseq.data import Dictionary, data_utils

from kd_plugin.corpus.binarised import check_ids
from kd_plugin.corpus.labelled_folder import IGNORE, UNLABELLED, Reading, tokens_of
from kd_plugin.corpus.words import Words
from kd_plugin.corpus.words_of_sentences import Part


class LabelBatches:
    """Makes batches of a part's sentences; a teacher may replace `collater`, as for fairseq's data sets.

    Args:
        reading: how the text is read
        words: whose first symbols count; None: sentences count
    """

    def __init__(self, part: Part, dictionary: Dictionary, reading: Reading, words: Any = None):
        self._part, self._dictionary, self._reading, self._words = part, dictionary, reading, words
        self.collater: Any = self._collated

    def tokens(self, index: int) -> np.ndarray:
        """(length,) the symbols of a sentence, or of a pair."""
        reading = self._reading
        before = [reading.init_token, reading.separator_token]
        found: List[np.ndarray] = []
        for symbol, dataset in zip(before, self._part.inputs):
            found += [np.array([symbol], dtype=np.int64)] if symbol is not None else []
            found.append(tokens_of(dataset, index))
        return np.concatenate(found)

    def sizes(self) -> np.ndarray:
        """(sentences,) how many rows each has: one, or as many as words."""
        if self._words is None:
            return np.ones(self._part.sentences, dtype=np.int64)
        return words_per_sentence(self._part, self._words)

    def lengths(self) -> np.ndarray:
        """(sentences,) symbols of each."""
        total: np.ndarray = np.sum([np.asarray(one.sizes) for one in self._part.inputs], axis=0)
        return total + 2

    def _collated(self, indices: Sequence[int]) -> Dict[str, Any]:
        rows = [torch.from_numpy(self.tokens(int(index))).long() for index in indices]
        for row in rows:
            check_ids(row, self._dictionary, self._part.split.prefix("input0"))
        tokens = data_utils.collate_tokens(rows, self._dictionary.pad(), left_pad=False)
        target = torch.full((len(rows), 1), UNLABELLED)
        if self._words is not None:
            target = torch.full(tokens.shape, IGNORE)
            for at, row in enumerate(rows):
                target[at, np.flatnonzero(self._words.starts(row.numpy()))] = UNLABELLED
        lengths = torch.tensor([len(row) for row in rows])
        return {
            "id": torch.tensor([int(index) for index in indices]),
            "net_input": {"src_tokens": tokens, "src_lengths": lengths},
            "target": target,
        }


def words_per_sentence(part: Part, words: Words) -> np.ndarray:
    """(sentences,) how many words each has."""
    counts = (int(words.starts(tokens_of(part.inputs[0], at)).sum()) for at in range(part.sentences))
    return np.fromiter(counts, dtype=np.int64, count=part.sentences)
