"""Scores of translations: sacreBLEU's BLEU, chrF and TER with confidence and significance, and COMET on request."""

import importlib.util
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import PairedTest

from kd_plugin.errors import KDPluginError

COMET = "COMET"
INSTALL_COMET = "pip install unbabel-comet"


class Score(NamedTuple):
    """One number of one model on one test set.

    Args:
        signature: with which anybody gets the same number
        p_value: of a paired bootstrap against the baseline; None for the baseline itself, or without one
        mean, confidence: of the bootstrap resamples: mean ± confidence is the 95 % interval
        note: why there is no value
    """

    metric: str
    value: Optional[float]
    signature: str = ""
    p_value: Optional[float] = None
    mean: Optional[float] = None
    confidence: Optional[float] = None
    note: str = ""


def sacrebleu_scores(
    systems: Sequence[Tuple[str, List[str]]],
    references: List[str],
    baseline: Optional[str],
    samples: int,
    tokenize: Optional[str] = None,
    lowercase: bool = False,
) -> Dict[str, List[Score]]:
    """BLEU, chrF2 and TER of each system: the values of `sacrebleu --paired-bs`.

    Args:
        systems: (name, hypotheses); names are different
        baseline: the name that the others are compared with; None: no significance
        samples: of the bootstrap; 0: neither confidence nor significance
        tokenize: sacreBLEU's tokenizer of BLEU; None: its default
        lowercase: BLEU and chrF without case, as TER is always

    Returns:
        name -> scores
    """
    metrics = {
        "BLEU": BLEU(tokenize=tokenize, lowercase=lowercase, references=[references]),
        "chrF2": CHRF(lowercase=lowercase, references=[references]),
        "TER": TER(references=[references]),
    }
    if samples == 0:
        return {
            name: [
                Score(metric, scorer.corpus_score(hypotheses, None).score, str(scorer.get_signature()))
                for metric, scorer in metrics.items()
            ]
            for name, hypotheses in systems
        }
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


def check_comet(model: Optional[str]) -> None:
    """Raises KDPluginError where --comet asks for what is not installed."""
    if model and importlib.util.find_spec("comet") is None:
        raise KDPluginError(f"--comet {model}: COMET is not installed. Remedy: {INSTALL_COMET}")


def no_comet() -> Score:
    """The row of a run without --comet."""
    hint = "--comet MODEL" if importlib.util.find_spec("comet") else f"{INSTALL_COMET}, then --comet MODEL"
    return Score(COMET, None, note=f"not measured: {hint}")


def comet_scores(
    systems: Sequence[Tuple[str, List[str]]], sources: List[str], references: List[str], model: str, gpus: int
) -> Dict[str, Score]:
    """COMET of each system.

    Args:
        model: path of a checkpoint, or a name to download
        gpus: how many to use

    Raises:
        KDPluginError: not installed, or no such model
    """
    check_comet(model)
    import comet

    try:
        scorer = comet.load_from_checkpoint(model if Path(model).is_file() else comet.download_model(model))
    except Exception as error:  # a download raises anything
        raise KDPluginError(
            f"--comet {model}: cannot be loaded ({' '.join(str(error).split())[:200]}). Remedy: a name of the COMET "
            "project, such as Unbabel/wmt22-comet-da, or the path of a downloaded checkpoint"
        ) from error
    found = {}
    for name, hypotheses in systems:
        rows = [{"src": s, "mt": h, "ref": r} for s, h, r in zip(sources, hypotheses, references)]
        value = float(scorer.predict(rows, batch_size=16, gpus=gpus).system_score)
        found[name] = Score(COMET, value, f"model:{Path(model).name}|version:{getattr(comet, '__version__', '?')}")
    return found
