"""Small parts of inline SVG and HTML: escaped text, markers, the look of a series, an estimate of a text's width."""

import html
import re
import unicodedata
from typing import Iterable, List, NamedTuple, Sequence, Tuple

# Runs differ in colour, dashes and marker at once; the three lengths have no common divisor, so that 105 looks differ.
COLOURS = 7
DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "4 2")
MARKERS = ("circle", "square", "triangle")

# What HTML forbids, and what would let a name reorder the text around it
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


class Look(NamedTuple):
    """How a series is drawn. colour: number of a colour of the style sheet."""

    colour: int
    dash: str
    marker: str

    def stroke(self) -> str:
        """Attributes of its line."""
        dash = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        return f'class="line c{self.colour}"{dash}'


def look(index: int) -> Look:
    return Look(index % COLOURS, DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)])


def escape(value: object) -> str:
    """Text for HTML, attributes too; what cannot be shown becomes a replacement character."""
    return html.escape(CONTROL.sub("\ufffd", str(value)), quote=True)


def at(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def marker(kind: str, x: float, y: float, colour: int, size: float = 3.0) -> str:
    """A filled shape of equal area, whichever it is."""
    if kind == "circle":
        return f'<circle class="mark c{colour}" cx="{at(x)}" cy="{at(y)}" r="{at(size)}"/>'
    if kind == "square":
        half = 0.89 * size
        return (
            f'<rect class="mark c{colour}" x="{at(x - half)}" y="{at(y - half)}" width="{at(2 * half)}" '
            f'height="{at(2 * half)}"/>'
        )
    up, side = 1.55 * size, 1.35 * size
    return f'<path class="mark c{colour}" d="M{at(x)} {at(y - up)}l{at(side)} {at(1.5 * up)}h{at(-2 * side)}z"/>'


def text(x: float, y: float, content: str, name: str = "", anchor: str = "start") -> str:
    names = f' class="{name}"' if name else ""
    anchors = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{at(x)}" y="{at(y)}"{names}{anchors}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{at(x1)}" y1="{at(y1)}" x2="{at(x2)}" y2="{at(y2)}"/>'


def polyline(points: Iterable[Tuple[float, float]], attributes: str) -> str:
    return f'<polyline {attributes} points="{" ".join(f"{at(x)},{at(y)}" for x, y in points)}"/>'


def text_width(content: str, size: float, bold: bool = False) -> float:
    """Pixels that a text takes at most in a common sans-serif: what a page without scripts has to go by."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in content)
    capitals = sum(letter.isupper() or letter in "mw@%—" for letter in content)
    narrow = sum(letter in "iljtfI.,:;|'()[] " for letter in content)
    others = len(content) - wide - capitals - narrow
    return size * (1.12 if bold else 1) * (1.02 * wide + 0.78 * capitals + 0.38 * narrow + 0.62 * others)


def shorten(content: str, letters: int) -> str:
    return content if len(content) <= letters else content[: letters - 1] + "…"


def svg(
    width: float, height: float, identity: str, title: str, description: str, parts: Sequence[str], name: str
) -> str:
    """A picture that scales with its column. identity: unique on the page; title, description: what a reader hears."""
    return (
        f'<svg class="{name}" viewBox="0 0 {at(width)} {at(height)}" role="img" '
        f'aria-labelledby="{identity}-title {identity}-desc" xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{identity}-title">{escape(title)}</title><desc id="{identity}-desc">{escape(description)}</desc>'
        + "".join(parts)
        + "</svg>"
    )


def swatch(style: Look, with_line: bool = True) -> str:
    """The sample in a legend, beside a name that is HTML."""
    stroke = f'<line {style.stroke()} x1="1" y1="6" x2="33" y2="6"/>' if with_line else ""
    width = 34 if with_line else 12
    mark = marker(style.marker, width / 2, 6, style.colour, 3.4)
    size = f'viewBox="0 0 {width} 12" width="{width}" height="12"'
    return f'<svg class="swatch" {size} aria-hidden="true">{stroke}{mark}</svg>'


def legend(entries: Sequence[Tuple[str, Look]], with_line: bool = True) -> str:
    items: List[str] = [f"<li>{swatch(style, with_line)}{escape(name)}</li>" for name, style in entries]
    return f'<ul class="legend">{"".join(items)}</ul>'
