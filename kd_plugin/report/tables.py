"""The tables of an evaluation: scores with their uncertainty, sizes and speeds."""

from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.evaluation.table import LOWER_IS_BETTER, P_SIGNIFICANT, WORSE, comparison
from kd_plugin.report.evaluation import Evaluation, Model, Score

NONE = "–"
Cell = Tuple[str, str]  # text, and classes of its td


class Table(NamedTuple):
    """name, caption: above it. top: texts with the columns that they span; the first cell of a row names the row."""

    name: str
    caption: str
    top: Sequence[Tuple[str, int]]
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


def plain(value: Optional[float], decimals: int) -> str:
    """With thousands separated and a true minus sign."""
    return NONE if value is None else f"{value:,.{decimals}f}".replace("-", "−")


def exact(value: float) -> str:
    """A logged value, with up to seven digits."""
    return f"{value:,.7g}"


def _row(evaluation: Evaluation, model: Model) -> List[Cell]:
    return [(model.name + " (baseline)" * (model.name == evaluation.baseline), "")]


def score_table(evaluation: Evaluation, test: str, lines: Optional[float]) -> Table:
    """All metrics of a test set: value, confidence, difference to the baseline, p-value."""
    top, head, rows = [("", 1)], ["model"], [_row(evaluation, model) for model in evaluation.models]
    said: List[Tuple[str, str, str]] = []
    for metric in evaluation.metrics(test):
        scores = [model.score(test, metric) for model in evaluation.models]
        base = evaluation.baseline_score(test, metric)
        compared = base is not None and base.value is not None and len(scores) > 1
        columns = ["value", "± 95 %", "difference", "p"][: 4 if compared else 2]
        values = [score.value for score in scores if score and score.value is not None]
        best = (min if metric in LOWER_IS_BETTER else max)(values) if len(values) > 1 else None
        for row, score in zip(rows, scores):
            row += _score_cells(score, metric, best, None if score is base else base)[: len(columns)]
        top.append((evaluation.metric_name(metric), len(columns)))
        head += columns
    for model in evaluation.models:
        for score in (score for score in model.scores if score.test == test):
            said += [(score.metric, text, model.name) for text in (score.signature, score.note) if text]
    caption = f"{f'{lines:,.0f} sentences. ' if lines else ''}Bold: the best value."
    if "difference" in head:
        caption += (
            f" Difference: to {evaluation.baseline}; p: of a paired test against it; where p\u00a0<\u00a0"
            f"{P_SIGNIFICANT:g}, *\u00a0marks what is better and {WORSE}\u00a0what is worse."
        )
    return Table(test, caption, top, head, rows, _remarks(said, len(evaluation.models)))


def _score_cells(score: Optional[Score], metric: str, best: Optional[float], base: Optional[Score]) -> List[Cell]:
    if score is None or score.value is None:
        return [(NONE, "")] * 4
    digits = 4 if metric.upper().startswith("COMET") else 1  # COMET's are between 0 and 1
    half = plain(score.half, digits)
    if score.half is None and score.interval:
        half = "–".join(plain(end, digits) for end in score.interval)
    cells = [(plain(score.value, digits), "first best" if score.value == best else "first"), (half, "muted")]
    if base is None or base.value is None:
        return cells + [(NONE, "")] * 2
    difference, p = score.value - base.value, score.p_value
    sign = ("", "*", WORSE)[comparison(metric, score.value, base.value, p)]
    signed = "+" * (not plain(difference, digits).startswith("−")) + plain(difference, digits)
    return [*cells, (signed + sign, ""), ("< 0.001" if p is not None and p < 0.001 else plain(p, 3), "muted")]


def _remarks(said: Iterable[Tuple[str, str, str]], count: int) -> List[str]:
    """From (what about, text, model): each remark once, with the models it is about unless that is all `count`."""
    lines: Dict[Tuple[str, str], List[str]] = {}
    for about, text, name in said:
        lines.setdefault((about, text), []).append(name)
    whose = (f" ({', '.join(names)})" if any(names) and len(names) < count else "" for names in lines.values())
    return [f"{about}{who}: {text}" for (about, text), who in zip(lines, whose)]


def size_table(evaluation: Evaluation) -> Table:
    """Engine, parameters, bytes and speeds of each model; the speed of the baseline's too, as a factor."""
    top, head, rows = [("", 4)], ["model", "engine", "parameters", "MB"], []
    for model in evaluation.models:
        engine = model.engine + (f" ({model.compute})" if model.compute else "")
        size = None if model.bytes is None else model.bytes / 1e6
        cells = [(engine or NONE, "text"), (plain(model.parameters, 0), ""), (plain(size, 2), "")]
        rows.append(_row(evaluation, model) + cells)
    base = next((model for model in evaluation.models if model.name == evaluation.baseline), None)
    for device in evaluation.devices():
        reference = base.speed(device).tokens if base else None
        columns = ["tokens/s", "sentences/s", "× baseline"][: 3 if reference else 2]
        for row, model in zip(rows, evaluation.models):
            tokens, sentences = model.speed(device)
            factor = tokens / reference if tokens is not None and reference else None
            row += [(_rate(tokens), "first"), (_rate(sentences), ""), (plain(factor, 2), "")][: len(columns)]
        top.append((evaluation.device_name(device), len(columns)))
        head += columns
    said = [
        (evaluation.device_name(device), note, model.name)
        for model in evaluation.models
        for device, note in model.speed_notes.items()
    ]
    said += [(model.name, model.note, "") for model in evaluation.models if model.note]
    caption = (
        "Of the weights as they are stored, without optimizer state. Speed: one pass over the test sets, on a machine "
        "that other work may have shared."
    )
    return Table("Size and speed", caption, top, head, rows, _remarks(said, len(evaluation.models)))


def _rate(value: Optional[float]) -> str:
    return plain(value, 0 if value is not None and value >= 100 else 1)


def flattened(settings: Dict[str, Any], prefix: str = "") -> Dict[str, str]:
    """Nested settings, one a line."""
    found: Dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            found.update(flattened(value, f"{prefix}{key}."))
        elif isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
            found[f"{prefix}{key}"] = ", ".join(map(str, value))
        else:
            found[f"{prefix}{key}"] = NONE if value is None else str(value)
    return found
