"""Scores of translations: sacreBLEU's BLEU, chrF and TER with confidence and significance, and COMET on request."""

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
NO_WORDS = "not measured: sacreBLEU's TER counts words, and no spaces part the target language's"


class Score(NamedTuple):
    """One number of one model on one test set.

    Args:
        signature: with which anybody gets the same number
        p_value: of a paired bootstrap against the baseline; None for the baseline itself, or without one
        mean, confidence: of the bootstrap resamples: mean ± confidence is the 95 % interval
        note: why there is no value, or what a reader of it has to know
    """

    metric: str
    value: Optional[float]
    signature: str = ""
    p_value: Optional[float] = None
    mean: Optional[float] = None
    confidence: Optional[float] = None
    note: str = ""


def check_tokenizer(tokenize: Optional[str]) -> None:
    """Refuse one that cannot be used here: some of sacreBLEU's need further packages, or a download."""
    try:
        BLEU(tokenize=tokenize).corpus_score(["a b"], [["a b"]])
    except Exception as error:  # a missing package, a download that failed, anything
        raise KDPluginError(
            f"--tokenize {tokenize}: cannot be used here ({' '.join(str(error).split())[:200]}). Remedy: pip install "
            "'sacrebleu[ja,ko]' for mecab, a network for the tokenizers that are downloaded, or another one"
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
    """BLEU, chrF2 and TER of each system: the values of `sacrebleu --paired-bs`.

    Args:
        systems: (name, hypotheses); names are different
        baseline: the name that the others are compared with; None: no significance
        samples: of the bootstrap; 0: neither confidence nor significance
        tokenize: sacreBLEU's tokenizer of BLEU; None: that of `language`
        lowercase: BLEU and chrF without case, as TER is always
        language: how the target language is cut into words

    Returns:
        name -> scores
    """
    metrics = {
        "BLEU": BLEU(tokenize=tokenize or language.name, lowercase=lowercase, references=[references]),
        "chrF2": CHRF(lowercase=lowercase, references=[references]),
    }
    spaces = language.family not in WITHOUT_SPACES or tokenize == "none"
    if spaces or language.family in TER_KNOWS:
        # sacreBLEU's TER takes characters for words where it is told to look for Chinese and Japanese ones
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
    # without a baseline each system is its own: PairedTest then gives its confidence alone
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
    """The row of a run without --comet."""
    hint = "--comet MODEL" if importlib.util.find_spec("comet") else f"{INSTALL_COMET}, then --comet MODEL"
    return Score(COMET, None, note=f"not measured: {hint}")


class Comet:
    """A COMET model (Rei et al. 2020, https://aclanthology.org/2020.emnlp-main.213), which scores after all decoding.

    Args:
        model: path of a checkpoint, or a name to download
        gpus: how many to use

    Raises:
        KDPluginError: not installed, or no such model; before anything is decoded
    """

    def __init__(self, model: str, gpus: int) -> None:
        opened = open_comet(f"--comet {model}", model)
        self._scorer, path = opened.model, opened.path
        # downloaded ones are all called model.ckpt
        name = Path(model).name if path != Path(model) else f"{path.name}:{sha256_of(path)[:7]}"
        self._signature = f"model:{name}|version:{opened.version}"
        self._gpus = gpus

    def scores(
        self,
        systems: Sequence[Tuple[str, List[str]]],
        sources: List[str],
        references: List[str],
        baseline: Optional[str],
        samples: int,
    ) -> Dict[str, Score]:
        """COMET of each system; baseline and samples as in sacrebleu_scores."""
        of_sentences = {}
        for name, hypotheses in systems:
            rows = [{"src": s, "mt": h, "ref": r} for s, h, r in zip(sources, hypotheses, references)]
            of_sentences[name] = np.array(self._scorer.predict(rows, batch_size=16, gpus=self._gpus).scores)
        of_baseline = None if baseline is None else of_sentences[baseline]
        return {
            name: mean_score(COMET, values, self._signature, samples, None if name == baseline else of_baseline)
            for name, values in of_sentences.items()
        }


def mean_score(
    metric: str, values: np.ndarray, signature: str, samples: int, baseline: Optional[np.ndarray] = None
) -> Score:
    """The mean of sentences' scores, with the bootstrap that sacreBLEU has for the metrics it knows.

    Args:
        values: (sentences,)
        samples: of the bootstrap; 0: neither confidence nor significance
        baseline: (sentences,) of the system to compare with; None: no significance
    """
    mean = float(values.mean())
    if samples == 0:
        return Score(metric, mean, signature)
    drawn = np.random.default_rng(SEED).choice(len(values), size=(samples, len(values)))  # the same for all systems
    means = values[drawn].mean(axis=1)
    p_value = None
    if baseline is not None:
        gaps = np.abs(means - baseline[drawn].mean(axis=1))
        beyond = np.sum(gaps - gaps.mean() > abs(mean - baseline.mean()))
        p_value = float((beyond + 1) / (samples + 1))
    ordered, tail = np.sort(means), samples // 40
    confidence = float(ordered[samples - tail - 1] - ordered[tail]) / 2
    return Score(metric, mean, signature, p_value, float(means.mean()), confidence)
