"""The cross-entropy of translations under the teacher, another model, or one of the other direction.

A translation's score is the mean log-probability per target token, including the end of sentence, as from
fairseq-generate --score-reference (there in bits). With a model of the other direction, it is that of the source, given
the translation: omissions and inventions lower it.
"""

import functools
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Protocol, Sequence, Tuple

import numpy as np
import torch
from fairseq import utils
from fairseq.data.language_pair_dataset import collate
from fairseq.sequence_scorer import SequenceScorer

from kd_plugin.corpus.batches import by_length
from kd_plugin.corpus.languages import check_languages
from kd_plugin.corpus.subword_checks import Marks, check_known, check_text
from kd_plugin.curate.scorers import ByModel, Pair, Progress, Scorer, Texts
from kd_plugin.decoding.base import ModelOptions, not_a_number
from kd_plugin.decoding.fairseq import DTYPES, Checkpoints, checkpoints_of, default_dtype, load_ensemble
from kd_plugin.errors import KDPluginError


class ModelScorer(Scorer):
    """Scores from a fairseq model or an ensemble.

    Raises:
        KDPluginError: the models cannot be opened, or are for other languages
    """

    def __init__(self, models: ModelOptions, by: ByModel):
        check_languages(models.source_lang, models.target_lang)
        self._folder, self._max_tokens = by.folder, by.max_tokens
        checkpoints = self._checkpoints = checkpoints_of(models)
        self._backward = is_backward(checkpoints.paths[0], checkpoints.languages, by.languages, by.folder)
        self._subwords = by.subwords.open()
        dictionaries = checkpoints.source_dictionary.symbols, checkpoints.target_dictionary.symbols
        self._subwords.check(models.path, *dictionaries)
        dtype = by.compute_type if by.compute_type != "auto" else default_dtype(by.device)
        self.identity = {
            "backward": self._backward,
            "compute_type": dtype,
            "models": checkpoints.identity(),
            "overrides": checkpoints.overrides,
            "subwords": self._subwords.identity(),
            "max_tokens": by.max_tokens,
        }
        self._open = functools.partial(SymbolScorer, checkpoints, by.device, DTYPES[dtype])

    @functools.cached_property
    def _scorer(self) -> "SymbolScorer":
        """Opened by the process that scores, not by one that only distributes the work."""
        return self._open()

    def let_go(self) -> None:
        """As Scorer's."""
        self._checkpoints.let_go()

    def __call__(self, pairs: Sequence[Texts], progress: Progress) -> List[Optional[float]]:
        """As Scorer's. An empty translation of an empty line, as from decode, scores 0."""
        texts = [pair[::-1] if self._backward else pair for pair in pairs]
        for side, (subwords, dictionary) in enumerate(zip(self._subwords, self._scorer.dictionaries)):
            marks = Marks(text[side] for text in texts)
            check_text(marks, subwords.path is not None, dictionary.symbols, str(self._folder))
        joined = self._scorer.dictionaries[0].symbols == self._scorer.dictionaries[1].symbols
        self._subwords.check_sides((read for read, _ in texts), str(self._folder), joined)
        symbols = [(self._subwords.source.encode(read), self._subwords.target.encode(asked)) for read, asked in texts]
        for side, (subwords, dictionary) in enumerate(zip(self._subwords, self._scorer.dictionaries)):
            check_known((pair[side] for pair in symbols), dictionary.indices, subwords.path is not None)
        return scores_of(symbols, self._scorer, self._max_tokens, progress)


def is_backward(path: str, model: Optional[List[str]], languages: List[str], folder: Path) -> bool:
    """Whether a model translates from the translations' target to their source language.

    Args:
        model, languages: source and target of the model (None: unknown) and of the translations in `folder`

    Raises:
        KDPluginError: the model is for other languages
    """
    if model is None or model == languages:
        return False
    if model == languages[::-1]:
        return True
    raise KDPluginError(
        f"{path}: translates {'-'.join(model)}, but {folder} contains {'-'.join(languages)}. Remedy: use a model for "
        "these languages, in either direction"
    )


class BatchScorer(Protocol):
    """A model that is ready to score. max_tokens: of its input and of the scored text, without ends of sentence."""

    max_tokens: Tuple[int, int]

    def __call__(self, pairs: List[Pair]) -> List[float]:
        """Log-probability per token of the second in each pair, given the first.

        Args:
            pairs: symbols, without end of sentence; one batch
        """


def scores_of(pairs: List[Pair], scorer: BatchScorer, max_tokens: int, progress: Progress) -> List[Optional[float]]:
    """The score of each pair: None if it is too long, 0 if both are empty. max_tokens: per batch, with padding"""
    lengths = np.array([[len(read), len(asked)] for read, asked in pairs], dtype=np.int64).reshape(-1, 2).T
    possible = np.flatnonzero((lengths <= np.array(scorer.max_tokens)[:, None]).all(0) & lengths.any(0))
    scores: List[Optional[float]] = [None if read or asked else 0.0 for read, asked in pairs]
    progress(len(pairs) - len(possible))
    padded = lengths[:, possible] + 1
    for positions in by_length(np.stack([padded[0], padded.max(0, initial=0)]), max_tokens):
        batch = possible[positions]
        for at, score in zip(batch, scorer([pairs[at] for at in batch])):
            scores[at] = score
        progress(len(batch))
    return scores


class SymbolScorer:
    """fairseq's SequenceScorer with one model or an ensemble (the mean of their probabilities) of any architecture.

    Args:
        dtype: the type of the weights on `device`
    """

    def __init__(self, checkpoints: Checkpoints, device: torch.device, dtype: torch.dtype = torch.float32):
        self._ensemble, self._device = load_ensemble(checkpoints, device, dtype), device
        self.dictionaries = (checkpoints.source_dictionary, checkpoints.target_dictionary)
        self._paths, self._dtype = checkpoints.paths, str(dtype).replace("torch.", "")
        self._scorer = SequenceScorer(checkpoints.target_dictionary)
        self.max_tokens = (self._ensemble.max_source_tokens, self._ensemble.max_target_tokens)

    def __call__(self, pairs: List[Pair]) -> List[float]:
        """As BatchScorer's."""
        samples: List[Dict[str, Any]] = []
        for number, pair in enumerate(pairs):
            source, target = (
                torch.tensor([dictionary.index(token) for token in tokens] + [dictionary.eos()])
                for dictionary, tokens in zip(self.dictionaries, pair)
            )
            samples.append({"id": number, "source": source, "target": target})
        pad, eos = self.dictionaries[1].pad(), self.dictionaries[1].eos()
        sample = collate(samples, pad, eos, left_pad_source=True, left_pad_target=False)
        sample = utils.apply_to_sample(lambda tensor: tensor.to(self._device), sample)
        answers = self._scorer.generate(self._ensemble.models, sample)
        scores = {int(number): float(answer[0]["score"]) for number, answer in zip(sample["id"], answers)}
        if not all(map(math.isfinite, scores.values())):
            raise not_a_number(", ".join(self._paths), self._dtype)
        return [scores[number] for number in range(len(pairs))]
