"""Draw the pictures of README and docs/ into docs/pictures/: `python docs/tools/pictures.py`. A test compares them.

Text and lines take the colour of the page where they are a part of it (docs/tools/hooks.py), else that of the reader's
light or dark mode.
"""

import json
import math
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple
from xml.sax.saxutils import escape

FOLDER = Path(__file__).resolve().parents[1] / "pictures"
STYLE = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
TEACHER, STUDENT, PLAIN, RESULT = "#d97706", "#2563eb", "currentColor", "#059669"
Point = Tuple[float, float]


class Picture:
    def __init__(self, width: int, height: int):
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" fill="currentColor" '
            'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="14">'
        )
        self._parts: List[str] = []

    def text(self, x: float, y: float, text: str, anchor: str = "middle", **attributes: object) -> None:
        more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
        self._parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{more}>{escape(text)}</text>')

    def box(self, x: float, y: float, width: float, height: float, lines: Sequence[str], color: str = PLAIN) -> None:
        """The first line is bold."""
        strength = 0.05 if color == PLAIN else 0.14
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{color}" '
            f'fill-opacity="{strength}" stroke="{color}" stroke-opacity="0.7"/>'
        )
        top = y + height / 2 - 18 * (len(lines) - 1) / 2 + 5
        for number, line in enumerate(lines):
            style: Dict[str, object] = {"font_weight": 600} if number == 0 else {"font_size": 12, "opacity": 0.85}
            self.text(x + width / 2, top + 18 * number, line, **style)

    def line(self, points: Sequence[Point], color: str = PLAIN, dashed: bool = False, arrow: bool = False) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-opacity="0.8" stroke-width="1.5"{dash}/>'
        )
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            angle = math.atan2(y - y0, x - x0)
            corners = [(x - 9 * math.cos(angle + turn), y - 9 * math.sin(angle + turn)) for turn in (-0.4, 0.4)]
            self._parts.append(
                f'<polygon points="{x:g},{y:g} '
                + " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
                + f'" fill="{color}"/>'
            )

    def circle(self, x: float, y: float, radius: float, color: str) -> None:
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{color}"/>')

    def svg(self) -> str:
        return "\n".join([self._head, STYLE, *self._parts, "</svg>", ""])


def overview() -> str:
    picture = Picture(760, 330)
    picture.text(20, 24, "Beside the student, in every update", anchor="start", font_weight=600)
    picture.box(20, 40, 130, 60, ["batch", "source, reference"])
    picture.box(230, 40, 150, 60, ["teacher", "frozen"], TEACHER)
    picture.box(230, 120, 150, 60, ["student", "trained"], STUDENT)
    picture.box(460, 80, 130, 60, ["loss", "one pass"])
    picture.box(650, 80, 90, 60, ["update", "fairseq's"], STUDENT)
    picture.line([(150, 70), (230, 70)], arrow=True)
    picture.line([(190, 70), (190, 150), (230, 150)], arrow=True)
    picture.line([(380, 70), (420, 70), (420, 100), (460, 100)], TEACHER, arrow=True)
    picture.line([(380, 150), (420, 150), (420, 122), (460, 122)], STUDENT, arrow=True)
    picture.line([(590, 110), (650, 110)], arrow=True)
    picture.text(20, 206, "Or asked once, beforehand", anchor="start", font_weight=600)
    picture.box(20, 240, 130, 60, ["teacher", "or an ensemble"], TEACHER)
    picture.box(250, 208, 190, 52, ["cache", "66 bytes per token"], TEACHER)
    picture.box(250, 272, 190, 52, ["translations", "selected and filtered"], TEACHER)
    picture.box(500, 240, 110, 60, ["student", "trained"], STUDENT)
    picture.box(650, 240, 90, 60, ["export", "int8"], RESULT)
    picture.line([(150, 262), (215, 262), (215, 234), (250, 234)], TEACHER, arrow=True)
    picture.line([(150, 278), (215, 278), (215, 298), (250, 298)], TEACHER, arrow=True)
    picture.line([(440, 234), (470, 234), (470, 262), (500, 262)], TEACHER, arrow=True)
    picture.line([(440, 298), (470, 298), (470, 278), (500, 278)], TEACHER, arrow=True)
    picture.line([(610, 270), (650, 270)], arrow=True)
    return picture.svg()


def multi30k() -> str:
    data = json.loads((FOLDER / "multi30k.json").read_text(encoding="utf-8"))
    picture = Picture(760, 400)
    left, right, top, bottom = 70.0, 730.0, 40.0, 340.0
    slow, fast, low, high = 50.0, 1000.0, 40.6, 42.4

    def at(speed: float, bleu: float) -> Point:
        share = math.log(speed / slow) / math.log(fast / slow)
        return round(left + share * (right - left), 1), round(bottom - (bleu - low) / (high - low) * (bottom - top), 1)

    for speed in (50, 100, 200, 500, 1000):
        x, _ = at(speed, low)
        picture.line([(x, bottom), (x, bottom + 5)])
        picture.text(x, bottom + 22, f"{speed:,}", font_size=12)
    for tenths in range(410, 425, 5):
        _, y = at(slow, tenths / 10)
        if y >= top:
            picture.line([(left - 5, y), (left, y)])
            picture.text(left - 10, y + 4, f"{tenths / 10:.1f}", anchor="end", font_size=12)
    picture.line([(left, top), (left, bottom), (right, bottom)])
    picture.text((left + right) / 2, 385, "sentences per second, one CPU thread (logarithmic)", font_size=13)
    picture.text(left - 50, 22, "BLEU4, test_2016_flickr", anchor="start", font_size=13)
    for reference, color in ((data["teacher"], TEACHER), (data["published"], PLAIN)):
        _, y = at(slow, reference["bleu"])
        picture.line([(left, y), (right, y)], color, dashed=True)
        picture.text(left + 8, y - 6, f"{reference['label']}: {reference['bleu']}", anchor="start", font_size=12)
    models = data["models"]
    for label, color in (("student, 2.57M", STUDENT), ("student, 0.63M", RESULT)):
        rows = [row for row in models if row["label"] == label]
        points = [at(row["sentences_per_second"], row["bleu"]) for row in rows]
        picture.line(points, color)
        for row, (x, y) in zip(rows, points):
            picture.circle(x, y, 6, color)
            above = y - 30 if label == "student, 2.57M" else y + 24
            middle = max(x, left + 92)
            picture.text(middle, above, f"{row['label']}, {row['engine']}", font_weight=600, font_size=12)
            picture.text(middle, above + 16, f"{row['bleu']}, {row['megabytes']:.1f} MB", font_size=12)
    return picture.svg()


def one_pass() -> str:
    picture = Picture(760, 318)
    picture.text(20, 24, "The usual way: every box is a tensor of tokens × vocabulary, written and read again", "start")
    names = [
        "log-softmax z",
        "log-softmax z/τ",
        "softmax t/τ",
        "log-softmax t/τ",
        "q (log q − log p)",
        "its gradients …",
    ]
    for number, name in enumerate(names):
        picture.box(20 + 122 * number, 40, 110, 50, [], PLAIN)
        picture.text(75 + 122 * number, 70, name, font_size=12)
        if number:
            picture.line([(8 + 122 * number + 2, 65), (20 + 122 * number, 65)])
    picture.text(740, 112, "6 times the logits in memory", "end", font_size=12)
    picture.text(20, 156, "kd_plugin: a few rows at a time, in the processor's cache", "start")
    for number in range(6):
        color = STUDENT if number == 2 else PLAIN
        picture.box(20, 170 + 20 * number, 220, 16, [], color)
        picture.box(500, 170 + 20 * number, 240, 16, [], RESULT if number < 2 else color if number == 2 else PLAIN)
    picture.box(290, 190, 160, 60, ["p, q, loss, gradient", "from one visit"], STUDENT)
    picture.line([(240, 218), (290, 218)], STUDENT, arrow=True)
    picture.line([(450, 218), (500, 218)], RESULT, arrow=True)
    picture.text(130, 308, "logits of the student", font_size=12)
    picture.text(740, 308, "the gradient, over the logits", "end", font_size=12)
    return picture.svg()


def batch() -> str:
    picture = Picture(760, 250)
    picture.box(20, 90, 110, 56, ["Trainer", "fairseq"])
    picture.box(170, 90, 110, 56, ["criterion", "forward"])
    picture.box(330, 20, 150, 56, ["student", "one forward pass"], STUDENT)
    picture.box(330, 164, 150, 56, ["teacher.answer", "once, no gradient"], TEACHER)
    picture.box(330, 92, 150, 56, ["distiller"])
    picture.box(530, 92, 100, 56, ["terms", "sums"], RESULT)
    picture.box(660, 92, 80, 56, ["loss"], RESULT)
    picture.line([(130, 118), (170, 118)], arrow=True)
    picture.line([(280, 110), (305, 110), (305, 48), (330, 48)], STUDENT, arrow=True)
    picture.line([(280, 124), (330, 124)], arrow=True)
    picture.line([(405, 148), (405, 164)], TEACHER, arrow=True)
    picture.line([(480, 48), (580, 48), (580, 92)], STUDENT, arrow=True)
    picture.line([(480, 192), (580, 192), (580, 148)], TEACHER, arrow=True)
    picture.line([(480, 120), (530, 120)], arrow=True)
    picture.line([(630, 120), (660, 120)], arrow=True)
    picture.line([(700, 148), (700, 238), (75, 238), (75, 146)], arrow=True)
    picture.text(200, 230, "divide, all-reduce, step", font_size=12)
    return picture.svg()


# in the order of imports, from top to bottom
ROOMS = (
    ("user interface", ["cli", "tasks", "criterions"]),
    ("work", ["distill", "pipeline", "sweep", "report", "curate", "export", "initialise", "evaluation", "decoding"]),
    ("models and text", ["teachers", "checkpoints", "models", "corpus"]),
    ("no fairseq needed", ["runners", "cache", "losses"]),
    ("the base", ["files"]),
)


def rooms() -> str:
    picture = Picture(760, 350)
    for row, (title, names) in enumerate(ROOMS):
        y = 14 + 68 * row
        picture.text(20, y + 28, title, anchor="start", font_size=12)
        width = (590 - 6 * (len(names) - 1)) / len(names)
        for number, name in enumerate(names):
            x = 150 + number * (width + 6)
            color = (PLAIN, TEACHER, STUDENT, RESULT, PLAIN)[row]
            picture.box(round(x, 1), y, round(width, 1), 46, [f"{name}/"], color)
        if row:
            picture.line([(445, y - 20), (445, y - 2)], arrow=True)
    return picture.svg()


PICTURES: Dict[str, Callable[[], str]] = {
    "overview": overview,
    "multi30k": multi30k,
    "one-pass": one_pass,
    "batch": batch,
    "rooms": rooms,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
