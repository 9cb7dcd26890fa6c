"""Binarised data for a student that is being made: sample text, and the validation loss before training."""

import math
from typing import Any, Iterator, List, Tuple

import numpy as np
import torch
from fairseq.data import Dictionary, LanguagePairDataset

from kd_plugin.cache.data import Split
from kd_plugin.corpus.batches import by_length
from kd_plugin.corpus.binarised import check_ids, format_of_pair, open_indexed
from kd_plugin.errors import KDPluginError


class Corpus:
    """One split of binarised data.

    Args:
        folder: as for fairseq-train
        split: train or valid
        languages: source and target
        dictionaries: the student's
        max_tokens: per batch, padding included

    Raises:
        KDPluginError: the split is missing or damaged
    """

    def __init__(
        self,
        folder: str,
        split: str,
        languages: List[str],
        dictionaries: Tuple[Dictionary, Dictionary],
        max_tokens: int,
    ):
        prefixes = Split(folder, split, languages[0], languages[1]).prefixes()
        format_of_pair(*prefixes)
        self._prefixes, self._dictionaries, self._max_tokens = prefixes, dictionaries, max_tokens
        sides = [open_indexed(prefix, dictionary) for prefix, dictionary in zip(prefixes, dictionaries)]
        if len(sides[0]) != len(sides[1]):
            raise KDPluginError(
                f"{prefixes[0]}: has {len(sides[0]):,} sentences, but {prefixes[1]} has {len(sides[1]):,}. Remedy: "
                "binarise both sides of one parallel text"
            )
        self._pairs: Any = LanguagePairDataset(
            sides[0], sides[0].sizes, dictionaries[0], sides[1], sides[1].sizes, dictionaries[1], shuffle=False
        )
        self._lengths = np.maximum(*(np.asarray(side.sizes) for side in sides))

    def __len__(self) -> int:
        return len(self._lengths)

    def batches(self, longest: int, number: int = 0) -> Iterator[Any]:
        """fairseq's batches of the sentences of at most `longest` symbols per side.

        Args:
            number: of sentences, evenly spread over the split; 0: all
        """
        chosen = np.flatnonzero(self._lengths <= longest)
        if 0 < number < len(chosen):
            chosen = chosen[np.linspace(0, len(chosen) - 1, number).round().astype(np.int64)]
        for places in by_length(self._lengths[chosen], self._max_tokens):
            batch = self._pairs.collater([self._pairs[int(index)] for index in chosen[places]])
            for part, dictionary, prefix in zip(
                (batch["net_input"]["src_tokens"], batch["target"]), self._dictionaries, self._prefixes
            ):
                check_ids(part, dictionary, prefix)
            yield batch


def longest_of(model: Any) -> int:
    """The longest sentence that a model reads on both sides, end of sentence included."""
    return int(min(model.max_positions()))


@torch.no_grad()
def nll_of(model: Any, corpus: Corpus) -> float:
    """A model's mean negative log-likelihood per target token, in bits, as fairseq logs nll_loss; NaN for no token."""
    total, tokens = 0.0, 0
    for batch in corpus.batches(longest_of(model)):
        lprobs = model.get_normalized_probs(model(**batch["net_input"]), log_probs=True)
        target = batch["target"]
        real = target.ne(model.decoder.padding_idx)
        total -= float(lprobs.gather(-1, target.unsqueeze(-1)).squeeze(-1)[real].double().sum())
        tokens += int(real.sum())
    return total / tokens / math.log(2) if tokens else math.nan
