"""Where the names of points in a chart go, so that they lie neither on one another nor outside."""

import math
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.report.svg import text_width

# Around a point, the best places first: to the right, to the left, above, below, then in between.
ANGLES = (0, 180, 270, 90, 315, 45, 225, 135, 292.5, 67.5, 337.5, 22.5, 202.5, 157.5, 247.5, 112.5)
GAPS = (3.0, 8.0, 15.0, 24.0, 36.0, 52.0, 72.0)
# From this gap on a line leads from the label to its point.
LEADER = 8.0
MARGIN = 2.0


Segment = Tuple[Tuple[float, float], Tuple[float, float]]


class Box(NamedTuple):
    """A rectangle in pixels; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box", margin: float = MARGIN) -> bool:
        return (
            self.left < other.right + margin
            and other.left < self.right + margin
            and self.top < other.bottom + margin
            and other.top < self.bottom + margin
        )

    def inside(self, other: "Box") -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )

    def distance(self, x: float, y: float) -> float:
        """From a point to the nearest of the rectangle; 0 within."""
        return math.hypot(max(self.left - x, 0, x - self.right), max(self.top - y, 0, y - self.bottom))

    def nearest(self, x: float, y: float) -> Tuple[float, float]:
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)


class Bubble(NamedTuple):
    """A disc with its label, all in pixels."""

    x: float
    y: float
    radius: float
    label: str
    bold: bool = False


class Label(NamedTuple):
    """leader: a line to the bubble, where the label is not beside it; anchor: the side of the text next to it.

    distance: a penalty for being far off, and for lying aslant
    """

    box: Box
    leader: Optional[Segment]
    anchor: str
    distance: float

    def x(self) -> float:
        """Where the text is anchored: its true width is known to the browser alone."""
        return {"start": self.box.left, "end": self.box.right}.get(self.anchor, (self.box.left + self.box.right) / 2)


def place_labels(bubbles: Sequence[Bubble], plot: Box, size: float, lines: Sequence[Segment] = ()) -> Dict[int, Label]:
    """A place for the label of each bubble, by its number, within the plot and clear of the other labels.

    One for which there is no such place is missing. size: of the type, in pixels; lines: better not written across
    """
    placed: Dict[int, Label] = {}
    order = sorted(range(len(bubbles)), key=lambda index: -_crowding(bubbles, index))
    for index in order:
        best: Optional[Tuple[float, Label]] = None
        for label in _candidates(bubbles[index], size):
            if not label.box.inside(plot) or any(label.box.overlaps(other.box) for other in placed.values()):
                continue
            cost = _cost(label, bubbles, index, list(placed.values()), lines)
            if best is None or cost < best[0]:
                best = cost, label
        if best:
            placed[index] = best[1]
    return placed


def _crowding(bubbles: Sequence[Bubble], index: int) -> float:
    here = bubbles[index]
    return sum(1 / (10 + math.hypot(here.x - there.x, here.y - there.y)) for there in bubbles)


def _candidates(bubble: Bubble, size: float) -> List[Label]:
    width, height = text_width(bubble.label, size, bubble.bold), 1.15 * size
    found = []
    for gap in GAPS:
        for rank, angle in enumerate(ANGLES):
            across, down = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            reach = bubble.radius + gap
            x, y = bubble.x + reach * across, bubble.y + reach * down
            # the rectangle touches the circle around the bubble from outside
            side = _share(across)
            left = x - width * (1 - side)
            top = y - height * (1 - _share(down))
            box = Box(left, top, left + width, top + height)
            end = box.nearest(bubble.x, bubble.y)
            start = _towards(bubble, end)
            anchor = "start" if side == 1 else "end" if side == 0 else "middle"
            found.append(Label(box, (start, end) if gap >= LEADER else None, anchor, 1.5 * gap + 0.7 * rank))
    return found


def _share(direction: float) -> float:
    """0.5: centred on the point; 1: right of (below) it; 0: left of (above) it."""
    return 0.5 if abs(direction) < 0.3 else 1.0 if direction > 0 else 0.0


def _towards(bubble: Bubble, end: Tuple[float, float]) -> Tuple[float, float]:
    length = math.hypot(end[0] - bubble.x, end[1] - bubble.y) or 1.0
    share = min(1.0, bubble.radius / length)
    return bubble.x + share * (end[0] - bubble.x), bubble.y + share * (end[1] - bubble.y)


def _cost(
    label: Label, bubbles: Sequence[Bubble], own: int, placed: Sequence[Label], lines: Sequence[Segment]
) -> float:
    cost = label.distance
    for index, bubble in enumerate(bubbles):
        overlap = bubble.radius + (1 if index == own else 3) - label.box.distance(bubble.x, bubble.y)
        cost += 60 + 20 * overlap if overlap > 0 else 0
        # a label as near to another bubble as to its own is read as that one's
        if index != own and label.leader is None and overlap > -3:
            cost += 15
        if index != own and label.leader and _near(label.leader, (bubble.x, bubble.y), bubble.radius):
            cost += 50
    cost += sum(10 for line in lines if _crosses(line, label.box))
    cost += sum(80 for other in placed if label.leader and _crosses(label.leader, other.box))
    cost += sum(80 for other in placed if other.leader and _crosses(other.leader, label.box))
    return cost


def _near(segment: Segment, point: Tuple[float, float], distance: float) -> bool:
    return any(math.hypot(x - point[0], y - point[1]) < distance for x, y in _along(segment))


def _crosses(segment: Segment, box: Box) -> bool:
    return any(box.distance(x, y) < 3 for x, y in _along(segment))


def _along(segment: Segment) -> List[Tuple[float, float]]:
    """Points of a line, close together: enough for deciding what it runs through."""
    (x1, y1), (x2, y2) = segment
    steps = max(1, int(math.hypot(x2 - x1, y2 - y1) / 3))
    return [(x1 + (x2 - x1) * step / steps, y1 + (y2 - y1) * step / steps) for step in range(steps + 1)]
