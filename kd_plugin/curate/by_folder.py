"""The cross-entropy of translations under a model from another toolkit, run by CTranslate2."""

import functools
import math
from typing import List, Optional, Sequence

import torch

from kd_plugin.checkpoints.ctranslate2_models import open_translator
from kd_plugin.checkpoints.ctranslate2_weights import check_weights
from kd_plugin.corpus.languages import check_languages
from kd_plugin.corpus.subword_checks import Marks
from kd_plugin.curate.by_model import is_backward, scores_of
from kd_plugin.curate.scorers import ByModel, Pair, Progress, Scorer, Texts
from kd_plugin.decoding.base import FolderOptions, ModelOptions, not_a_number
from kd_plugin.decoding.ctranslate2 import most_tokens
from kd_plugin.decoding.fairseq import default_dtype
from kd_plugin.decoding.folders.base import Asked
from kd_plugin.decoding.folders.opening import TextFolder


class FolderScorer(Scorer):
    """Scores from a Hugging Face, Marian (OPUS-MT) or CTranslate2 model, as from ModelScorer.

    Symbols around sentences are not scored, except for the end of sentence.
    """

    def __init__(self, models: ModelOptions, options: FolderOptions, by: ByModel):
        check_languages(models.source_lang, models.target_lang)
        models.refuse_of_checkpoints()
        self._folder, self._max_tokens = str(by.folder), by.max_tokens
        # by default, the model's languages are those of the translations
        named = models.source_lang or by.languages[0], models.target_lang or by.languages[1]
        self._opened = TextFolder(Asked(models.path, options, by.subwords, named))
        model = self._opened.model
        said = model.languages if (models.source_lang, models.target_lang) == (None, None) else list(named)
        self._backward = is_backward(models.path, said, by.languages, by.folder)
        compute_type = by.compute_type
        if compute_type == "auto":
            compute_type = "default" if model.is_converted else default_dtype(by.device)
        self.identity = {
            "backward": self._backward,
            "compute_type": compute_type,
            **model.identity(),
            "subwords": model.subwords.identity(),
            "max_tokens": by.max_tokens,
        }
        self._open = functools.partial(_FolderScores, self._opened, by.device, compute_type)

    @functools.cached_property
    def _scores(self) -> "_FolderScores":
        """Converted and opened by the process that scores, not by one that only distributes the work."""
        return self._open()

    def __call__(self, pairs: Sequence[Texts], progress: Progress) -> List[Optional[float]]:
        """As Scorer's. An empty translation of an empty line, as from decode, scores 0."""
        texts = [pair[::-1] if self._backward else pair for pair in pairs]
        model = self._opened.model
        for side in range(2):
            model.check_text(Marks(text[side] for text in texts), self._folder, side)
        model.check_sides((read for read, _ in texts), self._folder)
        source, target = model.subwords
        symbols = [(source.encode(read), target.encode(asked)) for read, asked in texts]
        for side in range(2):
            model.check_symbols((pair[side] for pair in symbols), side)
        return scores_of(symbols, self._scores, self._max_tokens, progress)


class _FolderScores:
    """The converted model, with the interface of SymbolScorer."""

    def __init__(self, opened: TextFolder, device: torch.device, compute_type: str):
        self._path, self._compute_type, self._around = opened.model.path, compute_type, opened.model.around
        folder = opened.converted
        self._translator = open_translator(folder, device.type, compute_type, 0, device.index or 0)
        check_weights(folder)
        self.max_tokens = most_tokens(folder, self._around)

    def __call__(self, pairs: List[Pair]) -> List[float]:
        before, after, begins = self._around
        sources = [[*before, *source, *after] for source, _ in pairs]
        targets = [[*begins, *target] for _, target in pairs]
        found = self._translator.score_batch(sources, targets, max_input_length=0)
        scores = []
        for answer, (_, target) in zip(found, pairs):
            log_probs = answer.log_probs[len(begins) :]
            scores.append(sum(log_probs) / (len(target) + 1) if len(log_probs) == len(target) + 1 else math.nan)
        if not all(map(math.isfinite, scores)):
            raise not_a_number(self._path, self._compute_type)
        return scores
