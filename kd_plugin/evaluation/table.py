"""An evaluation as Markdown."""

from typing import Any, Dict, List, Optional

BASELINE, NONE = "baseline", "–"
P_SIGNIFICANT = 0.05
LOWER_IS_BETTER = {"TER"}
WORSE = "↓"  # beside a score that is significantly worse than the baseline's


def markdown(evaluation: Dict[str, Any]) -> str:
    """The tables of what evaluation.json holds: one a test set, one of speed and size, and the signatures."""
    machine, settings = evaluation["machine"], evaluation["settings"]
    parts = [
        f"# Evaluation, {evaluation['date']}",
        f"{machine['cpu']} ({machine['cores']} cores); GPU: {machine['gpu'] or 'none'}. "
        + ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items())
        + ". Search: "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if value is not None)
        + ".",
    ]
    parts += [_scores(evaluation, test) for test in evaluation["tests"]]
    parts.append(_speed(evaluation))
    parts.append(_signatures(evaluation))
    return "\n\n".join(parts) + "\n"


def _table(title: str, head: List[str], rows: List[List[str]], notes: str = "") -> str:
    rule = ["---"] + ["--:"] * (len(head) - 1)
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, rule, *rows)]
    return "\n".join([f"## {title}", "", *lines] + (["", notes] if notes else []))


def _scores(evaluation: Dict[str, Any], test: Dict[str, Any]) -> str:
    metrics: List[str] = []
    rows, notes = [], []
    for model in evaluation["models"]:
        scores = [score for score in model["scores"] if score["test"] == test["name"]]
        metrics = metrics or [score["metric"] for score in scores]
        is_baseline = model["name"] == evaluation["baseline"]
        cells = [_cell(score, _baseline_score(evaluation, score)) for score in scores]
        rows.append([model["name"] + (f" ({BASELINE})" if is_baseline else ""), *cells])
        notes += [f"{score['metric']}: {score['note']}" for score in scores if score["note"]]
    lines = [f"{test['lines']:,} sentences. ± is half of the 95 % interval of the bootstrap."]
    if evaluation["baseline"] is not None:
        lines.append(
            f"p is that of a paired bootstrap against {evaluation['baseline']}; where p < {P_SIGNIFICANT}, better "
            f"scores are bold and worse ones have a {WORSE}."
        )
    return _table(test["name"], ["model", *metrics], rows, " ".join(lines + sorted(set(notes))))


def _baseline_score(evaluation: Dict[str, Any], score: Dict[str, Any]) -> Optional[float]:
    """The baseline's value of the same metric on the same test set."""
    models = (model for model in evaluation["models"] if model["name"] == evaluation["baseline"])
    same = (
        s for model in models for s in model["scores"] if (s["test"], s["metric"]) == (score["test"], score["metric"])
    )
    return next((found["value"] for found in same), None)


def comparison(metric: str, value: float, baseline: Optional[float], p_value: Optional[float]) -> int:
    """1: significantly better than the baseline, -1: significantly worse, 0: neither.

    Of equal values sacreBLEU's bootstrap gives the smallest p that it has.
    """
    if baseline is None or p_value is None or not p_value < P_SIGNIFICANT or value == baseline:
        return 0
    return 1 if (value < baseline) == (metric in LOWER_IS_BETTER) else -1


def _cell(score: Dict[str, Any], baseline: Optional[float]) -> str:
    if score["value"] is None:
        return NONE
    digits = 4 if score["metric"] == "COMET" else 1  # most of COMET's are between 0 and 1
    text = f"{score['value']:.{digits}f}"
    if score["confidence"] is not None:
        text += f" ± {score['confidence']:.{digits}f}"
    if score["p_value"] is None:
        return text
    text += f" (p = {score['p_value']:.4f})"
    sign = comparison(score["metric"], score["value"], baseline, score["p_value"])
    return f"**{text}**" if sign > 0 else f"{text} {WORSE}" if sign < 0 else text


def _speed(evaluation: Dict[str, Any]) -> str:
    head = ["model", "engine", "parameters", "MB"]
    head += ["tokens/s, CPU", "sentences/s, CPU", "tokens/s, GPU", "sentences/s, GPU"]
    rows = []
    for model in evaluation["models"]:
        parameters = model["parameters"]
        types = dict.fromkeys(speed["compute_type"] for speed in model["speed"].values() if "compute_type" in speed)
        cells = [
            model["name"],
            f"{model['engine']} ({', '.join(types)})",
            NONE if parameters is None else f"{parameters:,}",
        ]
        cells.append(f"{model['bytes'] / 1e6:.2f}")
        for device in ("cpu", "cuda"):
            speed = model["speed"][device]
            cells += [_number(speed.get("tokens_per_second")), _number(speed.get("sentences_per_second"))]
        rows.append(cells)
    threads = evaluation["settings"]["threads"]
    notes = f"CPU: {threads} thread{'s' * (threads > 1)}. Of the search alone: no start, no subwords; tokens are target"
    notes += " tokens with end of sentence. MB (10⁶ bytes): a checkpoint's weights without optimizer state;"
    notes += " a CTranslate2 model with its vocabularies."
    notes += "".join(f" {model['name']}: {model['note']}." for model in evaluation["models"] if model["note"])
    return _table("Speed and size", head, rows, notes)


def _number(value: Optional[float]) -> str:
    return "not measured" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _signatures(evaluation: Dict[str, Any]) -> str:
    scores = [score for model in evaluation["models"] for score in model["scores"] if score["signature"]]
    lines = dict.fromkeys(f"* {score['metric']}: `{score['signature']}`" for score in scores)
    return "\n".join(["## Signatures", "", *lines])
