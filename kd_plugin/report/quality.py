"""The figures and tables of an evaluation: scores with their uncertainty, against speed and size."""

from typing import Dict, Iterable, List, Optional, Sequence, Tuple

from kd_plugin.evaluation.results import Evaluation
from kd_plugin.evaluation.scores import Score
from kd_plugin.evaluation.table import LOWER_IS_BETTER, P_SIGNIFICANT, WORSE, comparison
from kd_plugin.report.charts import Row, Spec, bars_panel, side_by_side, speed_panel
from kd_plugin.report.tables import NONE, Best, Cells, Table, plain


def pictures(evaluation: Evaluation) -> List[Tuple[str, Spec, str]]:
    """Quality against speed on each test set: a device, the picture, and models that have no mark in it."""
    found = []
    for device in evaluation.devices():
        panels, missing = [], dict.fromkeys(evaluation.names())
        for test, metrics in evaluation.metrics().items():
            metric = "BLEU" if "BLEU" in metrics else metrics[0]
            rows = speed_rows(evaluation, test, metric, device)
            panels += [speed_panel(test, metric, rows, evaluation.names())] if rows else []
            missing = {name: None for name in missing if name not in {row["model"] for row in rows}}
        if panels:
            name = evaluation.device_name(device)
            found.append(
                (name, side_by_side(panels, f"Quality against speed: {name}", 75, "model"), ", ".join(missing))
            )
    return found


def bars(evaluation: Evaluation) -> Spec:
    """A panel for each test set and metric."""
    pairs = [(test, metric) for test, metrics in evaluation.metrics().items() for metric in metrics]
    rows = {pair: score_rows(evaluation, *pair) for pair in pairs}
    panels = [bars_panel(test, _in_words(metric), rows[test, metric], evaluation.names()) for test, metric in pairs]
    return side_by_side(panels, "Scores, with their 95 % confidence intervals.", 200)


def _in_words(metric: str) -> str:
    return metric + " (lower is better)" * (metric in LOWER_IS_BETTER)


def score_rows(evaluation: Evaluation, test: str, metric: str) -> List[Row]:
    """Of the models that have a score. low, high: the ends of its 95 % interval."""
    rows: List[Row] = []
    for model, score in zip(evaluation.models, evaluation.scores(test, metric)):
        if score.value is not None:
            row = {"model": model.name, "engine": model.engine, "bytes": model.bytes, "score": score.value}
            middle, half = score.value if score.mean is None else score.mean, score.confidence
            rows.append({**row, **({} if half is None else {"low": middle - half, "high": middle + half})})
    return rows


def speed_rows(evaluation: Evaluation, test: str, metric: str, device: str) -> List[Row]:
    """Of those that have a speed too. front: no other equals it in both and exceeds it in one."""
    speeds = dict(zip(evaluation.names(), (speed.tokens_per_second for speed in evaluation.speeds(device))))
    rows = [{**row, "speed": speeds[row["model"]]} for row in score_rows(evaluation, test, metric)]
    rows = [row for row in rows if row["speed"] and row["speed"] > 0]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    front = pareto_front([(row["speed"], sign * row["score"]) for row in rows])
    return [{**row, "front": index in front} for index, row in enumerate(rows)]


def pareto_front(points: Sequence[Tuple[float, float]]) -> List[int]:
    """Numbers of the (speed, quality) that no other equals or exceeds in both and exceeds in one."""
    return [
        index
        for index, (speed, quality) in enumerate(points)
        if not any(s >= speed and q >= quality and (s, q) != (speed, quality) for s, q in points)
    ]


def _names(evaluation: Evaluation) -> List[Cells]:
    return [{"model": name + " (baseline)" * (name == evaluation.baseline)} for name in evaluation.names()]


def score_table(evaluation: Evaluation, test: str) -> Table:
    """All metrics of a test set: value, confidence, difference to the baseline, p-value."""
    groups, said = {"": _names(evaluation)}, []
    for metric in evaluation.metrics()[test]:
        groups[_in_words(metric)] = _score_cells(evaluation, metric, evaluation.scores(test, metric))
    for model in evaluation.models:
        scores = [score for key, score in model.scores.items() if key[0] == test]
        said += [(score.metric, text, model.name) for score in scores for text in (score.signature, score.note)]
    lines = evaluation.tests[test]
    caption = f"{f'{lines:,.0f} sentences. ' if lines else ''}Bold: the best value."
    if any("p" in rows[0] for rows in groups.values()):
        caption += (
            f" Difference: to {evaluation.baseline}; p: of a paired test against it; where p\u00a0<\u00a0"
            f"{P_SIGNIFICANT:g}, *\u00a0marks what is better and {WORSE}\u00a0what is worse."
        )
    return Table(test, caption, groups, _remarks(evaluation, said))


def _score_cells(evaluation: Evaluation, metric: str, scores: Sequence[Score]) -> List[Cells]:
    digits = 4 if metric.upper().startswith("COMET") else 1  # COMET's are between 0 and 1
    known = [score.value for score in scores if score.value is not None]
    best = (min if metric in LOWER_IS_BETTER else max)(known) if len(known) > 1 else None
    base, rows = evaluation.of_baseline(scores) if len(scores) > 1 else None, []
    for score in scores:
        value, text = score.value, plain(score.value, digits)
        row = {"value": Best(text) if value == best else text, "± 95 %": plain(score.confidence, digits)}
        if base is not None and base.value is not None:
            row.update(difference=NONE, p=NONE)
            if value is not None and score is not base:
                text = plain(value - base.value, digits)
                sign = ("", "*", WORSE)[comparison(metric, value, base.value, score.p_value)]
                row["difference"] = "+" * (text[0] != "−") + text + sign
                row["p"] = "< 0.001" if (score.p_value or 1) < 0.001 else plain(score.p_value, 3)
        rows.append(row)
    return rows


def size_table(evaluation: Evaluation) -> Table:
    """Engine, parameters, bytes and speeds of each model; the speed of the baseline's too, as a factor."""
    groups, said = {"": _names(evaluation)}, []
    for row, model in zip(groups[""], evaluation.models):
        row["engine"] = model.engine + (f" ({model.compute})" if model.compute else "") or NONE
        row["parameters"] = plain(model.parameters, 0)
        row["MB"] = plain(None if model.bytes is None else model.bytes / 1e6, 2)
        said += [(evaluation.device_name(device), speed.note, model.name) for device, speed in model.speed.items()]
    for device in evaluation.devices():
        speeds = evaluation.speeds(device)
        base = evaluation.of_baseline([speed.tokens_per_second for speed in speeds])
        groups[evaluation.device_name(device)] = [_speed_cells(*speed[:2], base) for speed in speeds]
    said += [(model.name, model.note, "") for model in evaluation.models]
    caption = (
        "Of the weights as they are stored, without optimizer state. Speed: one pass over the test sets, on a machine "
        "that other work may have shared."
    )
    return Table("Size and speed", caption, groups, _remarks(evaluation, said))


def _speed_cells(tokens: Optional[float], sentences: Optional[float], base: Optional[float]) -> Cells:
    digits = [0 if value is not None and value >= 100 else 1 for value in (tokens, sentences)]
    factor = {"× baseline": plain(tokens / base if tokens is not None else None, 2)} if base else {}
    return {"tokens/s": plain(tokens, digits[0]), "sentences/s": plain(sentences, digits[1]), **factor}


def _remarks(evaluation: Evaluation, said: Iterable[Tuple[str, str, str]]) -> List[str]:
    """From (what about, text, model): each remark once, with the models it is about unless that is all of them."""
    lines: Dict[Tuple[str, str], List[str]] = {}
    for about, text, name in said:
        lines.setdefault((about, text), []).append(name)
    all_of_them = len(evaluation.models)
    whose = [f" ({', '.join(names)})" if any(names) and len(names) < all_of_them else "" for names in lines.values()]
    return [f"{about}{names}: {text}" for (about, text), names in zip(lines, whose) if text]
