"""Scores translations: sacreBLEU's BLEU, chrF and TER with confidence and significance, and COMET on request."""

import importlib.util
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

from kd_plugin.corpus.languages import SPACED, WITHOUT_SPACES, Tokenizer
from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.comet import INSTALL_COMET, open_comet
from kd_plugin.files.atomic import sha256_of

COMET = "COMET"
SEED = 12345  # sacreBLEU's
TER_KNOWS = ("zh", "ja")
NO_WORDS = "not measured: sacreBLEU's TER needs words, but the target language has no spaces between them"


class Score(NamedTuple):
    """One model's score by one metric on one test set.

    Args:
        signature: makes the number reproducible
        p_value: of a paired bootstrap against the baseline; None for the baseline itself, or without one
        mean, confidence: of the bootstrap resamples; mean ± confidence is the 95 % interval
        note: why there is no value, or what a reader must know about it
    """

    metric: str
    value: Optional[float]
    signature: str = ""
    p_value: Optional[float] = None
    mean: Optional[float] = None
    confidence: Optional[float] = None
    note: str = ""


def check_tokenizer(tokenize: Optional[str]) -> None:
    """Refuses a tokenizer that does not work here: some of sacreBLEU's need further packages or a download."""
    try:
        BLEU(tokenize=tokenize).corpus_score(["a b"], [["a b"]])
    except Exception as error:  # a missing package, a failed download, anything
        raise KDPluginError(
            f"--tokenize {tokenize}: does not work here ({' '.join(str(error).split())[:200]}). Remedy: pip install "
            "'sacrebleu[ja,ko]' for mecab, a network for tokenizers that need a download, or another tokenizer"
        ) from error


def sacrebleu_scores(
    systems: Sequence[Tuple[str, List[str]]],
    references: List[str],
    baseline: Optional[str],
    samples: int,
    tokenize: Optional[str] = None,
    lowercase: bool = False,
    language: Tokenizer = SPACED,
) -> Dict[str, List[Score]]:
    """BLEU, chrF2 and TER of each system, with the values of `sacrebleu --paired-bs`.

    Args:
        systems: (name, hypotheses); names must be distinct
        baseline: the name of the system to compare the others with; None: no significance
        samples: of the bootstrap; 0: neither confidence nor significance
        tokenize: sacreBLEU's tokenizer for BLEU; None: that of `language`
        lowercase: ignore case in BLEU and chrF, as TER always does
        language: the target language's tokenizer

    Returns:
        name -> scores
    """
    metrics = {
        "BLEU": BLEU(tokenize=tokenize or language.name, lowercase=lowercase, references=[references]),
        "chrF2": CHRF(lowercase=lowercase, references=[references]),
    }
    spaces = language.family not in WITHOUT_SPACES or tokenize == "none"
    if spaces or language.family in TER_KNOWS:
        # with asian_support, sacreBLEU's TER treats Chinese and Japanese characters as words
        metrics["TER"] = TER(normalized=not spaces, asian_support=not spaces, references=[references])
    found = _with_confidence(systems, metrics, baseline, samples) if samples else _plain(systems, metrics)
    for scores in found.values():
        if tokenize is None:
            scores[0] = scores[0]._replace(note=language.note)
        if "TER" not in metrics:
            scores.append(Score("TER", None, note=NO_WORDS))
    return found


def _plain(systems: Sequence[Tuple[str, List[str]]], metrics: Dict[str, Any]) -> Dict[str, List[Score]]:
    return {
        name: [
            Score(metric, scorer.corpus_score(hypotheses, None).score, str(scorer.get_signature()))
            for metric, scorer in metrics.items()
        ]
        for name, hypotheses in systems
    }


def _with_confidence(
    systems: Sequence[Tuple[str, List[str]]], metrics: Dict[str, Any], baseline: Optional[str], samples: int
) -> Dict[str, List[Score]]:
    # without a baseline, each system is its own group: PairedTest then returns only its confidence
    first = [system for system in systems if system[0] == baseline]
    others = [system for system in systems if system[0] != baseline]
    groups = [first + others] if first else [[system] for system in systems]
    found: Dict[str, List[Score]] = {}
    for group in groups:
        signatures, results = PairedTest(group, metrics, references=None, test_type="bs", n_samples=samples)()
        for place, (name, _) in enumerate(group):
            found[name] = [_score(m, results[m][place], signatures[m]) for m in metrics]
    return found


def _score(metric: str, result: Any, signature: Any) -> Score:
    p_value = None if result.p_value is None else float(result.p_value)
    return Score(metric, float(result.score), str(signature), p_value, float(result.mean), float(result.ci))


def no_comet() -> Score:
    """COMET's entry in a run without --comet."""
    hint = "--comet MODEL" if importlib.util.find_spec("comet") else f"{INSTALL_COMET}, then --comet MODEL"
    return Score(COMET, None, note=f"not measured: {hint}")


class Comet:
    """A COMET model (Rei et al. 2020, https://aclanthology.org/2020.emnlp-main.213), which scores after all decoding.

    Args:
        model: path of a checkpoint, or a name to download
        gpus: how many to use

    Raises:
        KDPluginError: COMET is not installed, or the model cannot be loaded; before any decoding
    """

    def __init__(self, model: str, gpus: int) -> None:
        opened = open_comet(f"--comet {model}", model)
        self._scorer, path = opened.model, opened.path
        # all downloaded models are called model.ckpt
        name = Path(model).name if path != Path(model) else f"{path.name}:{sha256_of(path)[:7]}"
        self.signature = f"model:{name}|version:{opened.version}"
        self._gpus = gpus

    def of_sentences(self, hypotheses: Sequence[str], sources: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """(sentences,): the score of each."""
        rows = [{"src": s, "mt": h, "ref": r} for s, h, r in zip(sources, hypotheses, references)]
        return np.array(self._scorer.predict(rows, batch_size=16, gpus=self._gpus).scores)

    def scores(
        self,
        systems: Sequence[Tuple[str, List[str]]],
        sources: List[str],
        references: List[str],
        baseline: Optional[str],
        samples: int,
    ) -> Dict[str, Score]:
        """Each system's COMET score; baseline and samples as in sacrebleu_scores."""
        of_sentences = {name: self.of_sentences(hypotheses, sources, references) for name, hypotheses in systems}
        of_baseline = None if baseline is None else of_sentences[baseline]
        return {
            name: mean_score(COMET, values, self.signature, samples, None if name == baseline else of_baseline)
            for name, values in of_sentences.items()
        }


def mean_score(
    metric: str, values: np.ndarray, signature: str, samples: int, baseline: Optional[np.ndarray] = None
) -> Score:
    """The mean of sentence scores, with the same bootstrap as sacreBLEU's for its own metrics.

    Args:
        values: (sentences,)
        samples: of the bootstrap; 0: neither confidence nor significance
        baseline: (sentences,) of the system to compare with; None: no significance
    """
    mean = float(values.mean())
    if samples == 0:
        return Score(metric, mean, signature)
    drawn = draws(len(values), samples)
    of_baseline = None
    if baseline is not None:
        of_baseline = float(baseline.mean()), baseline[drawn].mean(axis=1)
    return resampled_score(metric, mean, values[drawn].mean(axis=1), signature, of_baseline)


def draws(sentences: int, samples: int) -> np.ndarray:
    """(samples, sentences) the numbers of the sentences in each resample, the same for all systems."""
    return np.random.default_rng(SEED).choice(sentences, size=(samples, sentences))


def resampled_score(
    metric: str,
    value: float,
    resampled: np.ndarray,
    signature: str,
    baseline: Optional[Tuple[float, np.ndarray]] = None,
) -> Score:
    """A score with its interval and significance, as sacreBLEU computes them.

    Args:
        value: of the whole test set
        resampled: (samples,) of each resample
        baseline: the same two of the system to compare with; None: no significance
    """
    samples, p_value = len(resampled), None
    if baseline is not None:
        gaps = np.abs(resampled - baseline[1])
        beyond = np.sum(gaps - gaps.mean() > abs(value - baseline[0]))
        p_value = float((beyond + 1) / (samples + 1))
    ordered, tail = np.sort(resampled), samples // 40
    confidence = float(ordered[samples - tail - 1] - ordered[tail]) / 2
    return Score(metric, value, signature, p_value, float(resampled.mean()), confidence)
