"""Ranks a sentence's translations by a sacrebleu metric."""

import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from sacrebleu.metrics import BLEU, CHRF  # private methods (setup.py pins 2.x): sentence_score would recount n-grams

from kd_plugin.corpus.languages import bleu_tokenizer


class Candidates(NamedTuple):
    """A sentence's translations and references, each compared separately; without references, with each other."""

    texts: List[str]
    references: List[str]


class Settings(NamedTuple):
    """How to rank.

    Args:
        metric: a key of METRICS
        language: of the translations; determines BLEU's tokenizer
        top: how many translations to keep
        tokenize: sacrebleu's tokenizer for BLEU; None: the language's
    """

    metric: str
    language: str
    top: int
    tokenize: Optional[str] = None


def _bleu(settings: Settings) -> Any:
    return BLEU(effective_order=True, tokenize=settings.tokenize or bleu_tokenizer(settings.language).name)


METRICS: Dict[str, Any] = {"bleu": _bleu, "chrf": lambda settings: CHRF()}


def signature(settings: Settings) -> str:
    """sacrebleu's signature of the metric: its parameters and version."""
    metric = METRICS[settings.metric](settings)
    metric.sentence_score("a", ["a"])  # tells it the number of references, which the signature needs
    return str(metric.get_signature())


def nearness(metric: Any, texts: Sequence[str], reference: str) -> List[float]:
    """metric.sentence_score(text, [reference]) for each text, counting the reference's n-grams only once."""
    known = metric._extract_reference_info([metric._preprocess_segment(reference)])
    scores = []
    for text in texts:
        statistics = metric._compute_segment_statistics(metric._preprocess_segment(text), known)
        scores.append(metric._aggregate_and_compute([statistics]).score)
    return scores


def agreement(metric: CHRF, texts: Sequence[str]) -> List[float]:
    """Each text's mean sentence_score(text, [other]) over all others: the utility in minimum Bayes risk decoding with
    uniform weights (Kumar & Byrne 2004; Eikema & Aziz 2020).

    Counts each text's n-grams once, and each pair's matches once, since they are the same in both directions.
    """
    ngrams = [metric._extract_reference_info([metric._preprocess_segment(text)])["ref_ngrams"][0] for text in texts]
    utilities: List[List[float]] = [[] for _ in texts]
    for i in range(len(texts)):
        for j in range(i):
            there: List[int] = []
            back: List[int] = []
            for ours, theirs in zip(ngrams[i], ngrams[j]):
                hypothesis, reference, matches = metric._get_match_statistics(ours, theirs)
                there += [hypothesis, reference, matches]
                back += [reference, hypothesis, matches]
            utilities[i].append(metric._compute_f_score(there))
            utilities[j].append(metric._compute_f_score(back))
    # fsum: equal texts get equal sums, whatever the order of terms
    return [math.fsum(values) / max(1, len(values)) for values in utilities]


def best(values: Sequence[float], top: int) -> Tuple[int, ...]:
    """Positions of the `top` largest values, largest first; ties keep their order."""
    return tuple(sorted(range(len(values)), key=lambda i: -values[i])[:top])


class Chooser:
    """Returns the positions of the best translations: per reference of a sentence, or once without references."""

    def __init__(self, settings: Settings):
        self._top = settings.top
        self._metric = METRICS[settings.metric](settings)

    def __call__(self, candidates: Candidates) -> List[Tuple[int, ...]]:
        texts = candidates.texts
        if len(texts) < 2:
            return [tuple(range(len(texts)))] * max(1, len(candidates.references))
        if not candidates.references:
            return [best(agreement(self._metric, texts), self._top)]
        return [best(nearness(self._metric, texts, reference), self._top) for reference in candidates.references]
