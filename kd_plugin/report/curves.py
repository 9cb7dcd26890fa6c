"""A small chart of one logged term: its value by number of update, one line a run."""

import math
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

from kd_plugin.report.axes import Axis, exact, linear_axis, log_axis
from kd_plugin.report.svg import Look, escape, line, marker, polyline, svg, text

WIDTH, HEIGHT = 300, 178
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 8, 34
# More columns than the chart has pixels on common screens; in each, first, last, lowest and highest are kept.
COLUMNS = 300
# A line with more points than this is a band where it is noisy: medians of so many stretches run through it.
DENSE, STRETCHES = 300, 75
# A line with at most so many points shows each of them
MARKED = 14

Points = List[Tuple[int, float]]


class Curve(NamedTuple):
    """points: (update, value) in ascending order; values may be infinite or NaN, which leaves a gap."""

    name: str
    look: Look
    points: Points


def update_axis(updates: int) -> Axis:
    """From 0 to the last update of any run, for all charts of a figure."""
    return linear_axis(0, max(1, updates), LEFT, WIDTH - RIGHT, count=4)


def value_axis(values: Sequence[float]) -> Axis:
    """Logarithmic where most values crowd into a tenth of the range or less, as a perplexity's do."""
    low, high = min(values), max(values)
    median = sorted(values)[len(values) // 2]
    if low > 0 and high / low >= 30 and median <= high / 10:
        return log_axis(low, high, HEIGHT - BOTTOM, TOP)
    return linear_axis(low, high, HEIGHT - BOTTOM, TOP)


def thinned(points: Points, columns: int = COLUMNS) -> Points:
    """At most four points a column, by which its line looks as that of all points does; what is not finite stays."""
    if len(points) <= 2 * columns:
        return points
    first, last = points[0][0], points[-1][0]
    width = max(1.0, (last - first) / columns)
    kept: Points = []
    column: Points = []
    for point in points + [(last + int(2 * width) + 1, math.nan)]:
        if column and (not _drawable(point) or int((point[0] - first) / width) != int((column[0][0] - first) / width)):
            lowest, highest = min(column, key=_value), max(column, key=_value)
            kept += sorted({column[0], lowest, highest, column[-1]})
            column = []
        if _drawable(point):
            column.append(point)
        else:
            kept.append(point)
    return kept[:-1]


def _value(point: Tuple[int, float]) -> float:
    return point[1]


def medians(points: Points, stretches: int = STRETCHES) -> Points:
    """One point for each stretch of equally many updates: the (lower) median of its values, at its middle update."""
    finite = list(filter(_drawable, points))
    width = max(1, math.ceil((finite[-1][0] - finite[0][0] + 1) / stretches))
    parts: Dict[int, Points] = {}
    for point in finite:
        parts.setdefault((point[0] - finite[0][0]) // width, []).append(point)
    return [(part[(len(part) - 1) // 2][0], sorted(map(_value, part))[(len(part) - 1) // 2]) for part in parts.values()]


def is_dense(points: Points) -> bool:
    return sum(map(_drawable, points)) > DENSE


def _drawable(point: Tuple[int, float]) -> bool:
    return abs(point[1]) < 1e300


def curves_chart(identity: str, term: str, curves: Sequence[Curve], updates: Axis) -> str:
    """The SVG of a term. Some value of some curve must be finite.

    Each line carries its updates and values as text for the page's readout, in the order of its points.
    """
    values = [value for curve in curves for value in map(_value, filter(_drawable, curve.points))]
    axis = value_axis(values)
    scale = ", logarithmic" if axis.logarithmic else ""
    parts = _frame(updates, axis)
    for number, curve in enumerate(curves):
        parts.append(_curve(curve, updates, axis, number, len(curves)))
    return svg(
        WIDTH,
        HEIGHT,
        identity,
        f"{term} by update",
        f"{term}{scale}, from {exact(min(values))} to {exact(max(values))}. "
        + "; ".join(filter(None, map(_in_words, curves))),
        parts,
        "curves",
    )


def _in_words(curve: Curve) -> str:
    points = list(filter(_drawable, curve.points))
    if not points:
        return f"{curve.name}: no finite value"
    (first, start), (last, end) = points[0], points[-1]
    return f"{curve.name}: {exact(start)} at update {first:,}, {exact(end)} at {last:,}"


def _frame(updates: Axis, axis: Axis) -> List[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick, label in zip(axis.ticks, axis.labels):
        y = axis.at(tick)
        parts.append(line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(text(LEFT - 6, y + 3.5, label, "tick", "end"))
    for tick, label in zip(updates.ticks, updates.labels):
        x = updates.at(tick)
        parts.append(line(x, bottom, x, bottom + 3.5, "axis"))
        parts.append(text(x, bottom + 15, label, "tick", "middle"))
    parts.append(line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
    parts.append(text(WIDTH - RIGHT, bottom + 28, "updates", "tick", "end"))
    if axis.logarithmic:
        parts.append(text(LEFT, bottom + 28, "log scale", "tick"))
    return parts


def _curve(curve: Curve, updates: Axis, axis: Axis, number: int, count: int) -> str:
    parts: List[str] = []
    points = curve.points
    if is_dense(points):
        for segment in _segments(thinned(points)):
            parts.append(polyline(_pixels(segment, updates, axis), f'class="line raw c{curve.look.colour}"'))
        points = medians(points)
    marked = _marked(points, number, count)
    for segment in _segments(points):
        pixels = _pixels(segment, updates, axis)
        data = " ".join(f"{update}:{exact(value)}" for update, value in segment)
        parts.append(polyline(pixels, f'{curve.look.stroke()} data-points="{data}"'))
        for (update, _), (x, y) in zip(segment, pixels):
            if len(segment) == 1 or update in marked:
                parts.append(marker(curve.look.marker, x, y, curve.look.colour, 2.6))
    return f'<g class="curve" data-name="{escape(curve.name)}">{"".join(parts)}</g>'


def _pixels(segment: Points, updates: Axis, axis: Axis) -> List[Tuple[float, float]]:
    return [(updates.at(update), axis.at(value)) for update, value in segment]


def _segments(points: Points) -> Iterator[Points]:
    """What lies between two values that are not finite."""
    segment: Points = []
    for point in points:
        if _drawable(point):
            segment.append(point)
        elif segment:
            yield segment
            segment = []
    if segment:
        yield segment


def _marked(points: Points, number: int, count: int) -> "set[int]":
    """The updates with a marker: all of few, else about six, not at the same place as those of the other curves."""
    if len(points) <= MARKED:
        return {update for update, _ in points}
    every = len(points) / 6
    return {points[int(every * (index + (number + 0.5) / count))][0] for index in range(6)}


def constant_value(curves: Sequence[Curve]) -> str:
    """The one value that every run logged every time, '' where there are several or none."""
    values = {value if math.isfinite(value) else str(value) for curve in curves for _, value in curve.points}
    if len(values) != 1:
        return ""
    value = values.pop()
    return value if isinstance(value, str) else exact(value)
