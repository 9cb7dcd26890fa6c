"""Quality against speed, one bubble a model, its area the model's size; the Pareto front among them."""

import math
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.report.axes import Axis, byte_size, exact, linear_axis, log_axis, plain
from kd_plugin.report.labels import Box, Bubble, Segment, place_labels
from kd_plugin.report.svg import Look, escape, line, marker, polyline, shorten, svg, text

WIDTH, HEIGHT = 440, 330
LEFT, TOP, RIGHT, BOTTOM = 44, 24, 430, 46  # of the plot; the last from the lower edge
# More models than that make the picture taller, each by a line of type: their names need the room.
ROOMY = 8
LARGEST, SMALLEST = 20.0, 4.0
LABEL_SIZE, LABEL_LETTERS = 12.0, 30


class Point(NamedTuple):
    """A model in the picture. speed: tokens a second, above 0; bytes: None if unknown; interval: of the quality."""

    name: str
    speed: float
    quality: float
    bytes: Optional[float]
    interval: Optional[Tuple[float, float]]
    look: Look


def pareto_front(points: Sequence[Tuple[float, float]]) -> List[int]:
    """Numbers of the (speed, quality) that no other equals or exceeds in both and exceeds in one, by rising speed."""
    best = -math.inf
    front: List[int] = []
    for index in sorted(range(len(points)), key=lambda index: (-points[index][0], -points[index][1])):
        speed, quality = points[index]
        if quality > best:
            best = quality
            front.append(index)
        elif front and points[front[-1]] == (speed, quality):
            front.append(index)
    return front[::-1]


def radius(size: Optional[float], largest: float) -> float:
    """Pixels: the area in proportion to the bytes, down to what can still be seen."""
    if not size or size <= 0 or largest <= 0:
        return SMALLEST
    return max(SMALLEST, LARGEST * math.sqrt(size / largest))


def scatter_chart(
    identity: str,
    metric: str,
    points: Sequence[Point],
    speeds: Tuple[float, float],
    largest: float,
    lower_is_better: bool,
    heading: str,
) -> Tuple[str, List[str]]:
    """The SVG, and the names for which it had no room.

    speeds: the slowest and the fastest of all panels that stand side by side; largest: bytes of the largest model
    """
    height = HEIGHT + LABEL_SIZE * max(0, len(points) - ROOMY)
    plot = Box(LEFT, TOP, RIGHT, height - BOTTOM)
    x_axis = log_axis(speeds[0], speeds[1], plot.left + LARGEST + 3, plot.right - LARGEST - 3, count=8)
    heights = [value for point in points for value in (point.quality, *(point.interval or ()))]
    y_axis = linear_axis(min(heights), max(heights), plot.bottom - 8, plot.top + 8)
    sign = -1 if lower_is_better else 1
    front = pareto_front([(point.speed, sign * point.quality) for point in points])
    bubbles = [
        Bubble(
            x_axis.at(point.speed),
            y_axis.at(point.quality),
            radius(point.bytes, largest),
            shorten(point.name, LABEL_LETTERS),
            index in front,
        )
        for index, point in enumerate(points)
    ]
    steps = _staircase([(bubbles[index].x, bubbles[index].y) for index in front])
    whiskers = [_whisker(point, bubble.x, y_axis) for point, bubble in zip(points, bubbles)]
    segments: List[Segment] = list(zip(steps, steps[1:])) + [whisker for whisker in whiskers if whisker]
    labels = place_labels(bubbles, plot, LABEL_SIZE, segments)

    parts = _frame(metric, plot, x_axis, y_axis)
    parts.append(polyline(steps, 'class="front"'))
    for whisker in filter(None, whiskers):
        (x, top), (_, bottom) = whisker
        parts.append(line(x, top, x, bottom, "whisker"))
    # the small ones last, on top of the large ones
    for index in sorted(range(len(points)), key=lambda index: -bubbles[index].radius):
        parts.append(_bubble(points[index], bubbles[index], metric, index in front))
    for index, label in sorted(labels.items()):
        if label.leader:
            (x1, y1), (x2, y2) = label.leader
            parts.append(line(x1, y1, x2, y2, "leader"))
        name = "label front-label" if index in front else "label"
        parts.append(text(label.x(), label.box.bottom - 0.25 * LABEL_SIZE, bubbles[index].label, name, label.anchor))
    best = ", ".join(points[index].name for index in front)
    description = (
        ". ".join(_in_words(point, metric) for point in points) + f". Pareto front, from slow to fast: {best}."
    )
    unplaced = [points[index].name for index in range(len(points)) if index not in labels]
    return svg(WIDTH, height, identity, heading, description, parts, "scatter"), unplaced


def _staircase(front: Sequence[Tuple[float, float]]) -> List[Tuple[float, float]]:
    """Between two models there is none: the front goes down at the slower one and on to the faster one."""
    steps: List[Tuple[float, float]] = []
    for x, y in front:
        if steps:
            steps.append((steps[-1][0], y))
        steps.append((x, y))
    return steps


def _whisker(point: Point, x: float, axis: Axis) -> Optional[Segment]:
    if not point.interval:
        return None
    return (x, axis.at(max(point.interval))), (x, axis.at(min(point.interval)))


def _frame(metric: str, plot: Box, x_axis: Axis, y_axis: Axis) -> List[str]:
    parts = []
    for tick, label in zip(y_axis.ticks, y_axis.labels):
        y = y_axis.at(tick)
        parts.append(line(plot.left, y, plot.right, y, "grid"))
        parts.append(text(plot.left - 6, y + 4, label, "tick", "end"))
    for tick, label in zip(x_axis.ticks, x_axis.labels):
        x = x_axis.at(tick)
        parts.append(line(x, plot.bottom, x, plot.bottom + 4, "axis"))
        parts.append(text(x, plot.bottom + 17, label, "tick", "middle"))
    parts.append(line(plot.left, plot.bottom, plot.right, plot.bottom, "axis"))
    parts.append(text(0, 13, metric, "axis-name"))
    parts.append(text(plot.right, plot.bottom + BOTTOM - 8, "tokens per second, log scale", "axis-name", "end"))
    return parts


def _in_words(point: Point, metric: str) -> str:
    size = "size unknown" if point.bytes is None else byte_size(point.bytes)
    return f"{point.name}: {metric} {plain(point.quality, 2)}, {exact(point.speed)} tokens/s, {size}"


def _bubble(point: Point, bubble: Bubble, metric: str, on_front: bool) -> str:
    names = f"bubble c{point.look.colour}" + (" on-front" if on_front else "")
    return (
        f'<g><title>{escape(_in_words(point, metric))}</title><circle class="{names}" cx="{bubble.x:.1f}" '
        f'cy="{bubble.y:.1f}" r="{bubble.radius:.1f}"/>'
        + marker(point.look.marker, bubble.x, bubble.y, point.look.colour, 2.4)
        + "</g>"
    )


def size_key(largest: float) -> str:
    """Bubbles of two or three round sizes for the legend, as HTML."""
    power = 10 ** math.floor(math.log10(largest))
    sizes = [size for size in (0.1 * power, 0.5 * power, power, 5 * power) if size <= largest][-2:]
    items: Dict[str, float] = {byte_size(size): radius(size, largest) for size in sizes}
    drawn = "".join(
        f'<li><svg class="swatch" viewBox="0 0 {2 * pixels + 2:.1f} {2 * pixels + 2:.1f}" width="{2 * pixels + 2:.1f}" '
        f'height="{2 * pixels + 2:.1f}" aria-hidden="true"><circle class="bubble plain" cx="{pixels + 1:.1f}" '
        f'cy="{pixels + 1:.1f}" r="{pixels:.1f}"/></svg>{name}</li>'
        for name, pixels in items.items()
    )
    return f'<ul class="legend">{drawn}</ul>'
