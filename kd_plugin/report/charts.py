"""The charts of a report: Vega-Lite specifications with their data in them; how they look is the page's affair."""

from typing import Any, Dict, List, Sequence

Spec = Dict[str, Any]
Row = Dict[str, Any]
TOLD = {"tooltip": {"content": "data"}}  # all that is known of the mark
SHOWN = {"condition": {"param": "hidden", "empty": False, "value": 0}, "value": 1}


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


def _panel(title: str, remark: str, rows: List[Row], layers: List[Spec], **encoding: Spec) -> Spec:
    title_lines = {"text": title, "subtitle": remark or " "}
    return {"title": title_lines, "data": {"values": rows}, "encoding": encoding, "layer": layers}


def _layer(mark: str, style: Spec, **encoding: Spec) -> Spec:
    return {"mark": {"type": mark, **style}, "encoding": encoding}


def _name(field: str, **more: Any) -> Spec:
    return {"field": field, "type": "nominal", "title": None, **more}


def _number(field: str, title: str = "", **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title or None, **more}


def curves_panel(title: str, remark: str, rows: List[Row], names: Sequence[str]) -> Spec:
    """A term by number of update, a line a run.

    rows: run, update, value (None leaves a gap), and low and high where it stands for several; names: of all runs
    """
    skewed = is_skewed([row["value"] for row in rows if row["value"] is not None])
    scale = {"padding": 8, **({"type": "log"} if skewed else {"zero": False})}
    dense, run = any("low" in row for row in rows), _name("run", scale={"domain": names})
    band = _layer("area", {"fillOpacity": 0.2}, y=_number("low", scale=scale), y2={"field": "high"}, opacity=SHOWN)
    points = {"point": {"size": 6 if dense else 22, **TOLD}}
    line = _layer("line", points, y=_number("value", scale=scale), opacity=SHOWN, strokeDash=run, shape=run)
    x = _number("update", "updates", scale={"padding": 8})
    return _panel(title, remark, rows, [band, line] if dense else [line], x=x, color=run)


def is_skewed(values: Sequence[float]) -> bool:
    """Whether most of them crowd into a tenth of the range, as a perplexity's do: for a logarithmic axis."""
    low, high = min(values), max(values)
    return low > 0 and high / low >= 30 and sorted(values)[len(values) // 2] <= high / 10


def speed_panel(title: str, metric: str, rows: List[Row], models: Sequence[str]) -> Spec:
    """Quality against speed, a mark a model, its area the model's size; and the Pareto front.

    rows: model, engine, bytes, score, low, high, speed, front; models: of all panels
    """
    front = {"transform": [{"filter": "datum.front"}]}
    # where no other mark of the front can be, unless a low score is the better one
    label = {"fontWeight": 600, "align": "left", "dx": 8, "dy": -14}
    legend = {"title": "bytes", "format": "~s", "tickCount": 3, "columns": 5}
    area = _number("bytes", scale={"domainMin": 0, "range": [0, 900]}, legend=legend)
    point = _layer("point", {"filled": True, "invalid": None, **TOLD}, opacity=SHOWN)
    point["encoding"]["size"] = {"condition": {"test": "datum.bytes > 0", **area}, "value": 40}
    point["encoding"]["color"] = _name("model", scale={"domain": models})
    point["encoding"]["shape"] = _name("engine")
    layers = [
        {**_layer("line", {"interpolate": "step-before", "strokeDash": [1, 3]}), **front},
        _layer("rule", {}, y=_number("low"), y2={"field": "high"}, opacity={**SHOWN, "value": 0.6}),
        {**_layer("text", label, text={"field": "model"}, opacity=SHOWN), **front},
        point,
    ]
    speeds = [row["speed"] for row in rows]  # the fastest model needs room for its name
    room = {"padding": 25, "domainMax": max(speeds) * (max(speeds) / min(speeds)) ** 0.5}
    x = _number("speed", "tokens per second, log scale", scale={"type": "log", **room})
    y = _number("score", metric, scale={"zero": False, "padding": 20})
    return _panel(title, f"{metric} against speed", rows, layers, x=x, y=y)


def bars_panel(title: str, metric: str, rows: List[Row], models: Sequence[str]) -> Spec:
    """A bar a model, with its confidence interval. rows: model, score, low, high; models: of all panels."""
    bar = _layer("bar", TOLD, x=_number("score"), color=_name("model", scale={"domain": models}, legend=None))
    interval = _layer("rule", {}, x=_number("low"), x2={"field": "high"})
    return _panel(title, metric, rows, [bar, interval], y=_name("model", sort=None))
