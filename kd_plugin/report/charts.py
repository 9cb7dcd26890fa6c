"""The charts of a report: Vega-Lite specifications with their data in them; how they look is the page's affair."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

from kd_plugin.report.evaluation import LOWER_IS_BETTER, Evaluation, Model

Spec = Dict[str, Any]
Row = Dict[str, Any]
DATA = {"content": "data"}  # a tooltip of all that is known of the mark


def side_by_side(panels: List[Spec], description: str, margin: int, by: str = "") -> Spec:
    """by: the field that the legend names; a click on a name hides it in all panels, another one shows it again.

    margin: pixels that a panel needs beside its plot
    """
    spec: Spec = {"description": description, "usermeta": {"margin": margin}, "concat": panels}
    if by:
        views = [f"panel{number}" for number in range(len(panels))]
        for view, panel in zip(views, panels):
            panel["layer"][-1]["name"] = view
        # at the top: Vega-Lite loses what a line with points says of its own
        zooms = [{"name": f"zoom_{view}", "select": "interval", "bind": "scales", "views": [view]} for view in views]
        hidden = {"name": "hidden", "select": {"type": "point", "fields": [by], "toggle": "true"}, "bind": "legend"}
        spec["params"] = [{**hidden, "views": views}, *zooms]
        spec["resolve"] = {"scale": {"color": "shared", "shape": "shared", "strokeDash": "shared"}}
    return spec


def _unless_hidden(opacity: float = 1) -> Spec:
    return {"condition": {"param": "hidden", "empty": False, "value": 0}, "value": opacity}


def _panel(title: str, remark: str, rows: List[Row], layers: List[Spec], **encoding: Spec) -> Spec:
    title_lines = {"text": title, "subtitle": remark or " "}
    return {"title": title_lines, "data": {"values": rows}, "encoding": encoding, "layer": layers}


def _series(field: str, names: Sequence[str], **more: Any) -> Spec:
    """The same name looks the same in every chart."""
    return {"field": field, "type": "nominal", "title": None, "scale": {"domain": list(names)}, **more}


def _number(field: str, title: str = "", **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title or None, **more}


def curves_panel(title: str, remark: str, rows: List[Row], names: Sequence[str]) -> Spec:
    """A term by number of update, a line a run.

    rows: run, update, value (None leaves a gap), and low and high where it stands for several; names: of all runs
    """
    skewed = is_skewed([row["value"] for row in rows if row["value"] is not None])
    scale = {"type": "log"} if skewed else {"zero": False}
    dense = any("low" in row for row in rows)
    run, shown = _series("run", names), _unless_hidden()
    line = {
        "mark": {"type": "line", "strokeWidth": 1.5, "point": {"size": 6 if dense else 22, "tooltip": DATA}},
        "encoding": {"y": _number("value", scale=scale), "opacity": shown, "strokeDash": run, "shape": run},
    }
    band = {
        "mark": {"type": "area", "fillOpacity": 0.2},
        "encoding": {"y": _number("low", scale=scale), "y2": {"field": "high"}, "opacity": shown},
    }
    layers = [band, line] if dense else [line]
    return _panel(title, remark, rows, layers, x=_number("update", "updates"), color=run)


def is_skewed(values: Sequence[float]) -> bool:
    """Whether most of them crowd into a tenth of the range, as a perplexity's do: for a logarithmic axis."""
    low, high = min(values), max(values)
    return low > 0 and high / low >= 30 and sorted(values)[len(values) // 2] <= high / 10


def speed_panels(evaluation: Evaluation, device: str) -> List[Spec]:
    """For each test set quality against speed, a mark a model, its area the model's size; and the Pareto front."""
    engines = list(dict.fromkeys(model.engine for model in evaluation.models))
    front, shown = [{"filter": "datum.front"}], _unless_hidden()
    size = _number(
        "bytes", scale={"domainMin": 0, "range": [0, 900]}, legend={"title": "bytes", "format": "~s", "tickCount": 3}
    )
    mark_encoding = {
        "size": {"condition": {"test": "datum.bytes > 0", **size}, "value": 40},
        "color": _series("model", evaluation.names()),
        "shape": _series("engine", engines),
        "opacity": shown,
    }
    label_encoding = {"text": {"field": "model"}, "opacity": shown}
    interval = {"y": _number("low"), "y2": {"field": "high"}, "opacity": _unless_hidden(0.6)}
    layers: List[Spec] = [
        {"mark": {"type": "line", "interpolate": "step-before", "strokeDash": [1, 3]}, "transform": front},
        {"mark": "rule", "encoding": interval},
        {"mark": {"type": "text", "fontWeight": 600, "dy": -18}, "transform": front, "encoding": label_encoding},
        {"mark": {"type": "point", "filled": True, "invalid": None, "tooltip": DATA}, "encoding": mark_encoding},
    ]
    x = _number("speed", "tokens per second, log scale", scale={"type": "log", "padding": 25})
    panels = []
    for test, _ in evaluation.tests:
        metric, rows = evaluation.main_metric(test), speed_rows(evaluation, device, test)
        y = _number("score", metric, scale={"zero": False, "padding": 20})
        if rows:
            panels.append(_panel(test, f"{metric} against speed", rows, [dict(layer) for layer in layers], x=x, y=y))
    return panels


def _score_row(model: Model, test: str, metric: str) -> Optional[Row]:
    score = model.score(test, metric)
    if score is None or score.value is None:
        return None
    low, high = score.interval or (None, None)
    return {"model": model.name, "score": score.value, "low": low, "high": high}


def speed_rows(evaluation: Evaluation, device: str, test: str) -> List[Row]:
    """The models that have a speed and a score. front: no other equals it in both and exceeds it in one."""
    metric, rows = evaluation.main_metric(test), []
    for model in evaluation.models:
        row, speed = _score_row(model, test, metric), model.speed(device).tokens
        if row and speed and speed > 0:
            rows.append({**row, "engine": model.engine, "speed": speed, "bytes": model.bytes})
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


def score_panels(evaluation: Evaluation) -> List[Spec]:
    """For each test set and metric a bar a model, with its confidence interval."""
    layers: List[Spec] = [
        {
            "mark": {"type": "bar", "tooltip": DATA},
            "encoding": {"x": _number("score"), "color": _series("model", evaluation.names(), legend=None)},
        },
        {"mark": "rule", "encoding": {"x": _number("low"), "x2": {"field": "high"}}},
    ]
    y = {"field": "model", "type": "nominal", "title": None, "sort": None}
    panels = []
    for test, metric in ((name, metric) for name, _ in evaluation.tests for metric in evaluation.metrics(name)):
        rows = list(filter(None, (_score_row(model, test, metric) for model in evaluation.models)))
        panels.append(_panel(test, evaluation.metric_name(metric), rows, layers, y=y))
    return panels
