"""The tables of a report: scores with their uncertainty, sizes and speeds, and what there is to know of each run."""

from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from kd_plugin.evaluation.table import P_SIGNIFICANT, WORSE, comparison
from kd_plugin.report.axes import byte_size, exact, plain
from kd_plugin.report.evaluation import LOWER_IS_BETTER, Evaluation, Model, Score
from kd_plugin.report.svg import escape

NONE = "–"

Cell = Tuple[str, str]  # HTML, and the class of its td


def table(number: int, caption: str, head: Sequence[Sequence[Tuple[str, int]]], rows: Iterable[Sequence[Cell]]) -> str:
    """caption: HTML. head: rows of (text, columns that it spans); the first cell of a row names the row."""
    heads, rows = [], list(rows)
    for cells in head:
        drawn = []
        for column, (title, span) in enumerate(cells):
            spans = f' colspan="{span}" class="group"' if span > 1 else ""
            if not spans and cells is head[-1] and rows and rows[0][column][1] == "text":
                spans = ' class="text"'
            scope = "colgroup" if span > 1 else "col"
            drawn.append(f'<th scope="{scope}"{spans}>{escape(title)}</th>' if title else f"<td{spans}></td>")
        heads.append(f"<tr>{''.join(drawn)}</tr>")
    body = []
    for first, *others in rows:
        cells_html = "".join(f'<td class="{name}">{content}</td>' for content, name in others)
        body.append(f'<tr><th scope="row" class="{first[1]}">{first[0]}</th>{cells_html}</tr>')
    # the caption outside of what scrolls: on a phone it keeps the width of the screen
    return (
        f'<p class="caption" id="table-{number}"><b>Table {number}.</b> {caption}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="table-{number}"><table>'
        f"<thead>{''.join(heads)}</thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def model_name(evaluation: Evaluation, model: Model) -> str:
    mark = ' <span class="muted">(baseline)</span>' if model.name == evaluation.baseline else ""
    return f"<bdi>{escape(model.name)}</bdi>{mark}"


def score_table(evaluation: Evaluation, test: str, lines: Optional[float], number: int) -> str:
    """All metrics of a test set: value, confidence, difference to the baseline, p-value."""
    metrics = evaluation.metrics(test)
    compared = {metric: _compared(evaluation, test, metric) for metric in metrics}
    top: List[Tuple[str, int]] = [("", 1)]
    second: List[Tuple[str, int]] = [("model", 1)]
    for metric in metrics:
        arrow = " (lower is better)" if metric in LOWER_IS_BETTER else ""
        columns = ["value", "± 95 %"] + (["difference", "p"] if compared[metric] else [])
        top.append((metric + arrow, len(columns)))
        second += [(column, 1) for column in columns]
    best = {metric: _best(evaluation, test, metric) for metric in metrics}
    rows = []
    for model in evaluation.models:
        row: List[Cell] = [(model_name(evaluation, model), "")]
        for metric in metrics:
            row += _score_cells(evaluation, model, test, metric, best[metric], compared[metric])
        rows.append(row)
    sentences = f", {lines:,.0f} sentences" if lines else ""
    baseline = ""
    if any(compared.values()) and evaluation.baseline is not None:
        baseline = (
            f" Difference: to <bdi>{escape(evaluation.baseline)}</bdi>; p: of a paired test against it; "
            f"where p\u00a0&lt;\u00a0{P_SIGNIFICANT:g}, *\u00a0marks what is better and {WORSE}\u00a0what is worse."
        )
    caption = f"<bdi>{escape(test)}</bdi>{sentences}. Bold: the best value.{baseline}"
    return table(number, caption, [top, second], rows) + _notes(evaluation, test)


def _compared(evaluation: Evaluation, test: str, metric: str) -> bool:
    score = evaluation.baseline_score(test, metric)
    return score is not None and score.value is not None and len(evaluation.models) > 1


def _best(evaluation: Evaluation, test: str, metric: str) -> Optional[float]:
    scores = filter(None, (model.score(test, metric) for model in evaluation.models))
    values = [score.value for score in scores if score.value is not None]
    pick: Callable[[List[float]], float] = min if metric in LOWER_IS_BETTER else max
    return pick(values) if len(values) > 1 else None


def _digits(metric: str) -> int:
    """Decimals of a score: COMET's are between 0 and 1."""
    return 4 if metric.upper().startswith("COMET") else 1


def _score_cells(
    evaluation: Evaluation, model: Model, test: str, metric: str, best: Optional[float], compared: bool
) -> List[Cell]:
    score = model.score(test, metric)
    if score is None or score.value is None:
        return [(NONE, "number")] * (4 if compared else 2)
    digits = _digits(metric)
    value = plain(score.value, digits, keep=True)
    cells = [
        (f"<b>{value}</b>" if score.value == best else value, "number first"),
        (_half(score, digits), "number muted"),
    ]
    if not compared:
        return cells
    reference = evaluation.baseline_score(test, metric)
    if model.name == evaluation.baseline or reference is None or reference.value is None:
        return cells + [(NONE, "number"), (NONE, "number")]
    difference = plain(score.value - reference.value, digits, keep=True)
    difference = difference if difference.startswith("−") else f"+{difference}"
    sign = comparison(metric, score.value, reference.value, score.p_value)
    mark = f'<span class="star">{"*" if sign > 0 else WORSE}</span>' if sign else ""
    return cells + [(difference + mark, "number"), (p_text(score.p_value), "number muted")]


def p_text(p_value: Optional[float]) -> str:
    """The p-value itself, as it belongs beside every mark of significance."""
    if p_value is None:
        return NONE
    return "&lt; 0.001" if p_value < 0.001 else plain(p_value, 3, keep=True)


def _half(score: Score, digits: int) -> str:
    if score.half is not None:
        return plain(score.half, digits, keep=True)
    ends = score.ends()
    return NONE if ends is None else "–".join(plain(end, digits, keep=True) for end in ends)


def _notes(evaluation: Evaluation, test: str) -> str:
    """Signatures and remarks below a table."""
    said = []
    for model in evaluation.models:
        for score in (score for score in model.scores if score.test == test):
            if score.signature:
                said.append((score.metric, f"<code>{escape(score.signature)}</code>", model.name))
            if score.note:
                said.append((score.metric, escape(score.note), model.name))
    return _remarks(said, len(evaluation.models))


def _remarks(said: Iterable[Tuple[str, str, str]], count: int) -> str:
    """From (what about, HTML, model): each remark once, with the models it is about unless that is all `count`."""
    lines: Dict[Tuple[str, str], List[str]] = {}
    for about, content, name in said:
        lines.setdefault((about, content), []).append(name)
    drawn = []
    for (about, content), names in lines.items():
        who = ", ".join(names) if len(names) < count else ""
        drawn.append(f"<li>{escape(about)}{escape(f' ({who})' if who and about else who)}: {content}</li>")
    return f'<ul class="notes">{"".join(drawn)}</ul>' if drawn else ""


def size_table(evaluation: Evaluation, number: int) -> str:
    """Engine, parameters, bytes and speeds of each model; the speed of the baseline's too, as a factor."""
    devices = evaluation.devices()
    head: List[Tuple[str, int]] = [("model", 1), ("engine", 1), ("parameters", 1), ("size", 1)]
    top: List[Tuple[str, int]] = [("", 1)] * 4
    base = next((model for model in evaluation.models if model.name == evaluation.baseline), None)
    for device in devices:
        columns = ["tokens/s", "sentences/s"] + (["× baseline"] if base and device in base.speeds else [])
        top.append((evaluation.device_name(device), len(columns)))
        head += [(column, 1) for column in columns]
    rows = []
    for model in evaluation.models:
        row: List[Cell] = [(model_name(evaluation, model), ""), (escape(_engine(model)) or NONE, "text")]
        row.append((NONE if model.parameters is None else plain(model.parameters, 0), "number"))
        row.append((NONE if model.bytes is None else byte_size(model.bytes), "number"))
        for device in devices:
            row += _speed_cells(model, base, device)
        rows.append(row)
    caption = "Size of the weights as they are stored, without optimizer state, and speed of translation."
    said = [
        (evaluation.device_name(device), escape(note), model.name)
        for model in evaluation.models
        for device, note in model.speed_notes.items()
    ]
    said += [(model.name, escape(model.note), "") for model in evaluation.models if model.note]
    return table(number, caption, [top, head] if devices else [head], rows) + _remarks(said, len(evaluation.models))


def _engine(model: Model) -> str:
    return model.engine + (f" ({model.compute})" if model.compute else "")


def _speed_cells(model: Model, base: Optional[Model], device: str) -> List[Cell]:
    speed = model.speeds.get(device)
    values = (speed.tokens, speed.sentences) if speed else (None, None)
    cells = [
        (NONE if value is None else _rate(value), "number first" if not i else "number")
        for i, value in enumerate(values)
    ]
    reference = base.speeds.get(device) if base else None
    if base and reference:
        factor = values[0] / reference.tokens if values[0] is not None and reference.tokens else None
        cells.append((NONE if factor is None else plain(factor, 2, keep=True), "number"))
    return cells


def _rate(value: float) -> str:
    return plain(value, 0) if value >= 100 else plain(value, 1, keep=True)


def settings_list(settings: Dict[str, Any]) -> str:
    """Nested settings, one a line."""
    items = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in _flattened(settings))
    return f'<dl class="settings">{items}</dl>'


def _flattened(settings: Dict[str, Any], prefix: str = "") -> List[Tuple[str, str]]:
    found: List[Tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            found += _flattened(value, f"{name}.")
        elif isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
            found.append((name, ", ".join(map(str, value))))
        else:
            found.append((name, NONE if value is None else exact(value) if isinstance(value, float) else str(value)))
    return found
