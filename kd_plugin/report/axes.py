"""Axes of a chart: ticks at round numbers, and numbers in as few characters as say them."""

import math
from typing import List, NamedTuple, Sequence, Tuple

SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
ROUND = (1, 2, 5)


class Axis(NamedTuple):
    """A range of values on a range of pixels. ticks: at round values, in ascending order, within the range."""

    low: float
    high: float
    start: float
    end: float
    ticks: List[float]
    labels: List[str]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def _widened(low: float, high: float) -> Tuple[float, float]:
    """A range with room for ticks: floats this close together have none between them."""
    if high - low > 1e-9 * max(abs(low), abs(high)) and high - low > 1e-300:
        return low, high
    room = 0.1 * abs(low) or 1.0
    return low - room, high + room


def round_ticks(low: float, high: float, count: int = 5) -> List[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten, the outer ones at or beyond low and high."""
    low, high = _widened(low, high)
    exponent = math.floor(math.log10((high - low) / count))
    steps = [(mantissa, power) for power in (exponent, exponent + 1) for mantissa in ROUND]
    for mantissa, power in steps:
        # as a quotient, since 10 ** -5 is not a float and its multiples drift
        units = [value / 10.0**power / mantissa for value in (low, high)]
        first, last = math.floor(units[0] + 1e-9), math.ceil(units[1] - 1e-9)
        if last - first <= count:
            break
    return [float(f"{index * mantissa}e{power}") for index in range(first, last + 1)]


def round_log_ticks(low: float, high: float, count: int = 6) -> List[float]:
    """1, 2 and 5 times powers of ten where they are few, else powers of ten, the outer ones at or beyond low and high.

    low, high: above 0
    """
    low, high = (low / 1.25, high * 1.25) if high / low < 1.0001 else (low, high)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for mantissas in (ROUND, (1, 3), (1,)):
        ticks = [float(f"{mantissa}e{power}") for power in range(first - 1, last + 1) for mantissa in mantissas]
        ticks = _covering(ticks, low, high)
        if len(ticks) <= count:
            return ticks
    every = math.ceil((last - first) / count)
    return _covering([float(f"1e{power}") for power in range(first, last + every, every)], low, high)


def _covering(ticks: Sequence[float], low: float, high: float) -> List[float]:
    """Those from the last at or below low to the first at or above high."""
    below = [tick for tick in ticks if tick <= low * (1 + 1e-9)]
    above = [tick for tick in ticks if tick >= high * (1 - 1e-9)]
    return [tick for tick in ticks if below[-1] <= tick <= above[0]]


def tick_labels(ticks: Sequence[float]) -> List[str]:
    """All in one notation, with as many decimals as the finest needs: 0.5, 1.0 or 50k, 100k or 5×10⁻⁵."""
    largest = max(abs(tick) for tick in ticks)
    if largest >= 1e12 or (0 < largest < 1e-3):
        return [scientific(tick) for tick in ticks]
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= 10 * unit:
            return [plain(tick / unit, 6) + (letter if tick else "") for tick in ticks]
    texts = [plain(tick, 6) for tick in ticks]
    decimals = max(len(text.partition(".")[2]) for text in texts)
    return [plain(tick, decimals, keep=True) for tick in ticks]


def log_tick_labels(ticks: Sequence[float]) -> List[str]:
    """Each as short as it can be: an even number of decimals would only repeat zeros."""
    if ticks[0] < 1e-3 or ticks[-1] >= 1e9:
        return [scientific(tick) for tick in ticks]
    return [shortened(tick) for tick in ticks]


def plain(value: float, decimals: int, keep: bool = False) -> str:
    """With thousands separated and a true minus sign; keep: the zeros at the end too."""
    text = f"{value:,.{decimals}f}"
    if "." in text and not keep:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text.replace("-", "−")


def scientific(value: float) -> str:
    """3×10⁻⁵."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".").replace("-", "−")
    return f"{mantissa}×10" + str(int(exponent)).translate(SUPERSCRIPTS)


def shortened(value: float) -> str:
    """A size in three or four digits: 423k, 1.84M, 950, 0.05."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * (10 if letter == "k" else 1):
            scaled = value / unit
            return plain(scaled, 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2) + letter
    return plain(value, 0 if abs(value) >= 100 else 4)


def byte_size(value: float) -> str:
    """1.84 MB, with a megabyte of a million bytes."""
    text = shortened(value)
    return f"{text[:-1]} {text[-1]}B" if text[-1].isalpha() else f"{text} B"


def exact(value: float) -> str:
    """A logged value, with all of its digits, up to six or seven."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and (abs(value) < 1e-4 or abs(value) >= 1e12):
        return scientific(value)
    return plain(value, max(0, 6 - len(str(int(abs(value))))))


def linear_axis(low: float, high: float, start: float, end: float, count: int = 5) -> Axis:
    """From one outer tick to the other."""
    ticks = round_ticks(low, high, count)
    return Axis(ticks[0], ticks[-1], start, end, ticks, tick_labels(ticks))


def log_axis(low: float, high: float, start: float, end: float, count: int = 6) -> Axis:
    """The same with equal room for equal factors; low and high above 0."""
    ticks = round_log_ticks(low, high, count)
    return Axis(ticks[0], ticks[-1], start, end, ticks, log_tick_labels(ticks), logarithmic=True)
