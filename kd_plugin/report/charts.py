"""A report's charts as Vega-Lite specifications that include their data; the page defines their style."""

from typing import Any, Dict, Iterator, List, Sequence, Tuple

from kd_plugin.evaluation.results import Evaluation
from kd_plugin.evaluation.table import LOWER_IS_BETTER, in_words

Spec = Dict[str, Any]
Row = Dict[str, Any]
TOLD = {"tooltip": {"content": "data"}}  # shows all data of the mark
SHOWN = {"condition": {"param": "hidden", "empty": False, "value": 0}, "value": 1}


def side_by_side(panels: List[Spec], description: str, by: str = "") -> Spec:
    """Panels in a row. by: the legend's field; a click on a name hides it in all panels, a second one shows it."""
    spec: Spec = {"description": description, "concat": panels}
    if by:
        views = [f"panel{number}" for number in range(len(panels))]
        for view, panel in zip(views, panels):
            panel["layer"][-1]["name"] = view
        # zoom parameters at the top level, because Vega-Lite loses those of a line with points
        zooms = [{"name": f"zoom_{view}", "select": "interval", "bind": "scales", "views": [view]} for view in views]
        hidden = {"name": "hidden", "select": {"type": "point", "fields": [by], "toggle": "true"}, "bind": "legend"}
        spec["params"] = [{**hidden, "views": views}, *zooms]
        spec["resolve"] = {"scale": {"color": "shared", "shape": "shared", "strokeDash": "shared"}}
    return spec


def panel(title: str, remark: str, rows: List[Row], layers: List[Spec], **encoding: Spec) -> Spec:
    title_lines = {"text": title, "subtitle": remark or " "}
    return {"title": title_lines, "data": {"values": rows}, "encoding": encoding, "layer": layers}


def layer(mark: str, style: Spec, **encoding: Spec) -> Spec:
    return {"mark": {"type": mark, **style}, "encoding": encoding}


def name(field: str, **more: Any) -> Spec:
    return {"field": field, "type": "nominal", "title": None, **more}


def number(field: str, title: str = "", **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title or None, **more}


def curves_panel(title: str, remark: str, rows: List[Row], names: Sequence[str]) -> Spec:
    """A term over the updates, one line per run.

    rows: run, update, value (None leaves a gap), plus low and high if it stands for several; names: of all runs
    """
    skewed = is_skewed([row["value"] for row in rows if row["value"] is not None])
    scale = {"padding": 8, **({"type": "log"} if skewed else {"zero": False})}
    dense, run = any("low" in row for row in rows), name("run", scale={"domain": names})
    band = layer("area", {"fillOpacity": 0.2}, y=number("low", scale=scale), y2={"field": "high"}, opacity=SHOWN)
    points = {"point": {"size": 6 if dense else 22, **TOLD}}
    line = layer("line", points, y=number("value", scale=scale), opacity=SHOWN, strokeDash=run, shape=run)
    x = number("update", "updates", scale={"padding": 8})
    return panel(title, remark, rows, [band, line] if dense else [line], x=x, color=run)


def is_skewed(values: Sequence[float]) -> bool:
    """Whether most values crowd into a tenth of the range, as with perplexity: then the axis should be logarithmic."""
    low, high = min(values), max(values)
    return low > 0 and high / low >= 30 and sorted(values)[len(values) // 2] <= high / 10


def speed_figures(evaluation: Evaluation) -> Iterator[Tuple[str, Spec, str]]:
    """For each device, its name, the figure, and the models that are missing from it."""
    for device in evaluation.devices():
        panels = [_speed_panel(evaluation, device, test, metrics) for test, metrics in evaluation.metrics().items()]
        panels = [panel for panel in panels if panel["data"]["values"]]
        shown = {row["model"] for panel in panels for row in panel["data"]["values"]}
        if panels:
            name, missing = evaluation.device_name(device), [name for name in evaluation.names() if name not in shown]
            yield name, side_by_side(panels, f"Quality against speed: {name}", "model"), ", ".join(missing)


def _speed_panel(evaluation: Evaluation, device: str, test: str, metrics: Sequence[str]) -> Spec:
    """One mark per model, with the model's size as its area, and the Pareto front."""
    metric = "BLEU" if "BLEU" in metrics else metrics[0]
    rows, front = speed_rows(evaluation, test, metric, device), {"transform": [{"filter": "datum.front"}]}
    legend = {"title": "bytes", "format": "~s", "tickCount": 3, "columns": 5}
    area = number("bytes", scale={"domainMin": 0, "range": [0, 900]}, legend=legend)
    size = {"condition": {"test": "datum.bytes > 0", **area}, "value": 40}
    look = {"size": size, "color": name("model", scale={"domain": evaluation.names()}), "shape": name("engine")}
    # upper right, where no other mark of the front can be unless a lower score is better
    label = {"fontWeight": 600, "align": "left", "dx": 4, "dy": -20}
    layers = [
        {**layer("line", {"interpolate": "step-before", "strokeDash": [1, 3]}), **front},
        layer("rule", {}, y=number("low"), y2={"field": "high"}, opacity={**SHOWN, "value": 0.6}),
        {**layer("text", label, text={"field": "model"}, opacity=SHOWN), **front},
        layer("point", {"filled": True, "invalid": None, **TOLD}, opacity=SHOWN, **look),
    ]
    slow, fast = (extreme((row["speed"] for row in rows), default=1) for extreme in (min, max))
    scale = {"type": "log", "padding": 25, "domainMax": fast * (fast / slow) ** 0.5}  # room for the fastest one's name
    x = number("speed", "tokens per second, log scale", scale=scale)
    y = number("score", metric, scale={"zero": False, "padding": 20})
    return panel(test, f"{metric} against speed", rows, layers, x=x, y=y)


def score_rows(evaluation: Evaluation, test: str, metric: str, device: str = "") -> List[Row]:
    """Rows for models with a score. speed: on the device; low, high: the ends of the score's 95 % interval."""
    rows: List[Row] = []
    for model, score, speed in zip(evaluation.models, evaluation.scores(test, metric), evaluation.speeds(device)):
        row = {"model": model.name, "engine": model.engine, "bytes": model.bytes, "speed": speed.tokens_per_second}
        if score.value is not None and score.confidence is not None:
            middle = score.value if score.mean is None else score.mean
            row.update(low=middle - score.confidence, high=middle + score.confidence)
        known = {field: value for field, value in row.items() if value is not None}
        rows += [] if score.value is None else [{**known, "score": score.value}]
    return rows


def speed_rows(evaluation: Evaluation, test: str, metric: str, device: str) -> List[Row]:
    """Rows for models with a score and a speed. front: whether it lies on the Pareto front."""
    rows = [row for row in score_rows(evaluation, test, metric, device) if row.get("speed", 0) > 0]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    front = pareto_front([(row["speed"], sign * row["score"]) for row in rows])
    return [{**row, "front": index in front} for index, row in enumerate(rows)]


def pareto_front(points: Sequence[Tuple[float, float]]) -> List[int]:
    """Indices of the (speed, quality) points that no other point dominates (at least equal in both, better in one)."""

    def dominated(speed: float, quality: float) -> bool:
        return any(s >= speed and q >= quality and (s, q) != (speed, quality) for s, q in points)

    return [index for index, point in enumerate(points) if not dominated(*point)]


def score_figure(evaluation: Evaluation) -> Spec:
    """For each test set and metric, one bar per model with its confidence interval."""
    color = name("model", scale={"domain": evaluation.names()}, legend=None)
    bar = layer("bar", TOLD, x=number("score"), color=color)
    layers = [bar, layer("rule", {}, x=number("low"), x2={"field": "high"})]
    panels = [
        panel(test, in_words(metric), score_rows(evaluation, test, metric), layers, y=name("model", sort=None))
        for test, metrics in evaluation.metrics().items()
        for metric in metrics
    ]
    return side_by_side(panels, "Scores, with their 95 % confidence intervals.")
