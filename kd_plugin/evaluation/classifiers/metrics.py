"""Scores of classifiers and taggers: scikit-learn's, scipy's and seqeval's numbers, with intervals and significance."""

import importlib
import warnings
from importlib.metadata import version
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.classifiers.confusion import Pairs, accuracy, macro_f1, matthews, of_pairs, pairs_of
from kd_plugin.evaluation.scores import Score, draws, resampled_score

BINS = 15  # of the calibration error, as in its paper
PREFIXES = ("B-", "I-", "E-", "S-", "L-", "U-")  # of tags that make entities
REMEDIES = {
    "sklearn": "pip install 'kd-plugin[classification]'",
    "scipy": "pip install 'kd-plugin[classification]'",
    # seqeval is only released as source, which needs an old setuptools_scm to build
    "seqeval": "echo 'setuptools_scm<8' > old.txt; PIP_CONSTRAINT=old.txt pip install seqeval",
}


class Metric(NamedTuple):
    """A score of one model on a test set, and of resamples.

    Args:
        value: between 0 and 100, or -100 and 100 for a correlation
        resampled: the values, (samples,), of resamples that are given as sentence numbers, (samples, sentences)
        signature: makes the value reproducible
    """

    name: str
    value: float
    resampled: Callable[[np.ndarray], np.ndarray]
    signature: str


def imported(name: str) -> Any:
    """A module of an optional library.

    Raises:
        KDPluginError: it is not installed
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = REMEDIES[name.partition(".")[0]]
        raise KDPluginError(f"evaluate-classifier needs {name} ({error}). Remedy: {remedy}") from error


def of_classes(gold: Sequence[int], probabilities: np.ndarray) -> List[Metric]:
    """Accuracy, macro F1, Matthews' correlation and calibration error of classes of sentences.

    Args:
        gold: the right class of each sentence
        probabilities: (sentences, classes)
    """
    truth, best = np.asarray(gold), probabilities.argmax(axis=1)
    each = np.arange(len(truth))
    pairs = pairs_of(truth, best, probabilities.shape[1], each, len(truth))
    return [*_of_confusion(truth, best, pairs), _calibration(truth, probabilities, each, len(truth))]


def of_tags(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], names: Sequence[str], words: np.ndarray
) -> List[Metric]:
    """Entity F1, precision and recall if the tags make entities, otherwise macro F1 and MCC; accuracy of words;
    calibration error.

    Args:
        gold, predicted: a tag for each word of each sentence
        names: of all tags
        words: (words, tags) probabilities; NaN in the rows of words that the model could not read
    """
    places = {name: at for at, name in enumerate(names)}
    of_word = np.repeat(np.arange(len(gold)), [len(tags) for tags in gold])
    truth, best = (np.array([places[tag] for tags in side for tag in tags]) for side in (gold, predicted))
    pairs = pairs_of(truth, best, len(names), of_word, len(gold))
    accuracy, *others = _of_confusion(truth, best, pairs)
    read = ~np.isnan(words).any(axis=1)
    calibration = _calibration(truth[read], words[read], of_word[read], len(gold))
    if any(name.startswith(PREFIXES) for name in names):
        others = _of_entities(gold, predicted)
    return [*others, accuracy, calibration]


def of_numbers(gold: np.ndarray, predicted: np.ndarray) -> List[Metric]:
    """Pearson's and Spearman's correlation of (sentences,) numbers."""
    stats = imported("scipy.stats")
    found = []
    for name, function in (("Pearson", stats.pearsonr), ("Spearman", stats.spearmanr)):

        def value(truth: np.ndarray, other: np.ndarray, function: Any = function) -> float:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # constant numbers have no correlation, which scipy says with NaN
                return 100 * float(function(truth, other)[0])

        def resampled(drawn: np.ndarray, value: Any = value) -> np.ndarray:
            return np.array([value(gold[rows], predicted[rows]) for rows in drawn])

        found.append(Metric(name, value(gold, predicted), resampled, _signature("scipy")))
    return found


def scores(metrics: Sequence[Metric], sentences: int, samples: int, baseline: Sequence[Metric] = ()) -> List[Score]:
    """The metrics' scores with intervals and significance.

    Args:
        sentences: in the test set
        samples: of the bootstrap; 0: neither intervals nor significance
        baseline: the same metrics of the model to compare with; empty: none
    """
    if not samples:
        return [_score(metric, None, None) for metric in metrics]
    drawn = draws(sentences, samples)
    others: Dict[str, Tuple[float, np.ndarray]] = {
        metric.name: (metric.value, metric.resampled(drawn)) for metric in baseline
    }
    return [_score(metric, metric.resampled(drawn), others.get(metric.name)) for metric in metrics]


def _score(metric: Metric, resampled: Optional[np.ndarray], baseline: Optional[Tuple[float, np.ndarray]]) -> Score:
    name, value, _, signature = metric
    if not np.isfinite(value):
        return Score(name, None, signature, note="not defined: all numbers are equal")
    if resampled is None or not np.isfinite(resampled).all():
        return Score(name, value, signature, note="" if resampled is None else "too few sentences for an interval")
    if baseline is not None and not np.isfinite(baseline[1]).all():
        baseline = None
    return resampled_score(name, value, resampled, signature, baseline)


def _signature(package: str) -> str:
    return f"{package}:{version({'sklearn': 'scikit-learn'}.get(package, package))}|scale:100"


def _summed(parts: np.ndarray, of_sentence: np.ndarray, sentences: int) -> np.ndarray:
    """(sentences, k) sums of (units, k) over the units of each sentence."""
    sums = np.zeros((sentences, parts.shape[1]))
    np.add.at(sums, of_sentence, parts)
    return sums


def _of_sums(parts: np.ndarray, formula: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A resampled metric that is a formula of sums over sentences.

    Args:
        parts: (sentences, k)
        formula: (samples, k) sums -> (samples,) values
    """

    def resampled(drawn: np.ndarray) -> np.ndarray:
        times = np.stack([np.bincount(rows, minlength=len(parts)) for rows in drawn])
        return 100 * formula(times.astype(float) @ parts)

    return resampled


def _of_confusion(truth: np.ndarray, best: np.ndarray, pairs: Pairs) -> List[Metric]:
    """Accuracy, macro F1 and MCC."""
    sklearn, signature = imported("sklearn.metrics"), _signature("sklearn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about test sets with one class, of which every number is defined here
        values = (
            ("accuracy", sklearn.accuracy_score(truth, best), accuracy),
            ("macro F1", sklearn.f1_score(truth, best, average="macro", zero_division=0.0), macro_f1),
            ("MCC", sklearn.matthews_corrcoef(truth, best), matthews),
        )
    return [Metric(name, 100 * float(value), of_pairs(pairs, formula), signature) for name, value, formula in values]


def _calibration(truth: np.ndarray, probabilities: np.ndarray, of_sentence: np.ndarray, sentences: int) -> Metric:
    """The expected calibration error (Guo et al. 2017, https://proceedings.mlr.press/v70/guo17a.html)."""
    top, best = probabilities.max(axis=1), probabilities.argmax(axis=1)
    bins = np.clip(np.ceil(top * BINS).astype(int) - 1, 0, BINS - 1)
    parts = np.zeros((len(truth), BINS + 1))
    parts[np.arange(len(truth)), bins] = top - (best == truth)
    parts[:, BINS] = 1
    parts = _summed(parts, of_sentence, sentences)

    def error(sums: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.abs(sums[:, :BINS]).sum(axis=1) / np.maximum(sums[:, BINS], 1)
        return found

    value = 100 * float(error(parts.sum(axis=0, keepdims=True))[0])
    return Metric("ECE", value, _of_sums(parts, error), f"bins:{BINS}|probability:highest|scale:100")


def _of_entities(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> List[Metric]:
    """Entity F1, precision and recall, as conlleval counts."""
    seqeval, labeling = imported("seqeval.metrics"), imported("seqeval.metrics.sequence_labeling")
    counts = []
    for truth, answer in zip(gold, predicted):
        right, said = set(labeling.get_entities(list(truth))), set(labeling.get_entities(list(answer)))
        counts.append([len(right & said), len(said), len(right)])
    parts, sides = np.array(counts, dtype=float), ([list(tags) for tags in gold], [list(tags) for tags in predicted])
    formulas: Dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "f1": lambda sums: 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1),
        "precision": lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1),
        "recall": lambda sums: sums[:, 0] / np.maximum(sums[:, 2], 1),
    }
    found = []
    for name, formula in formulas.items():
        value = float(getattr(seqeval, f"{name}_score")(*sides, zero_division=0))
        title = f"entity {name.replace('f1', 'F1')}"
        found.append(Metric(title, 100 * value, _of_sums(parts, formula), f"{_signature('seqeval')}|mode:conlleval"))
    return found
