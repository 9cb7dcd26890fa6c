"""The numbers in a log of fairseq-train, in `--log-format simple` or `json`, among whatever else was printed there."""

import json
import math
import re
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from kd_plugin.errors import KDPluginError

# fairseq's names of its two training loggers; every other kind is the name of a validation subset
INTERVAL, EPOCH = "train_inner", "train"
POSITION = "num_updates"

# Found anywhere in a line: `--log-file` writes no date and no logger, and a progress bar may stand before them.
# Before them: fairseq-train's own format, hydra's (`[DATE][LOGGER][INFO] - `), and that of Python's logging.
PREFIX = r"(?:^|\| |\] - |\b[A-Z]+:[\w.]+:)"
SIMPLE_INTERVAL = re.compile(r"epoch \d+: +\d+ / \d+ (?P<fields>.+)$")
SIMPLE_SUMMARY = re.compile(PREFIX + r"epoch \d+ \| (?:valid on '(?P<subset>[^']*)' subset \| )?(?P<fields>.+)$")
JSON_OBJECT = re.compile(PREFIX + r"(\{.*)$")
NUMBER = re.compile(r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|inf(?:inity)?|nan)", re.IGNORECASE)
TERM = re.compile(r"[A-Za-z_][\w.\-/]*")
DATE = re.compile(r"\[?(\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d)?)")
SIGNATURE = re.compile(r"\bkd\|\S+")


class Line(NamedTuple):
    """What one line reports. kind: train_inner, train, or the validation subset."""

    kind: str
    update: int
    terms: Dict[str, float]


class Run:
    """A training: for each (kind, term) the values by number of update, in ascending order.

    Values may be infinite or NaN, as logged. `malformed` counts lines that look like fairseq's and cannot be read.
    """

    def __init__(self, name: str):
        self.name = name
        self.files: List[str] = []
        self.series: Dict[Tuple[str, str], Dict[int, float]] = {}
        self.signatures: List[str] = []
        self.first_date: Optional[str] = None
        self.last_date: Optional[str] = None
        self.malformed = 0
        self.resumed = 0
        self.updates = 0

    def read(self, lines: Iterable[str]) -> int:
        """Take in the lines of a log; returns how many of them report numbers.

        A log that goes back to an earlier update is that of a resumed training: what was logged from there on belongs
        to a past that no checkpoint remembers, and is replaced.
        """
        found = 0
        for text in lines:
            self._note(text)
            try:
                line = parse_line(text)
            except (ValueError, OverflowError, RecursionError):  # JSON of endless digits or brackets
                self.malformed += 1
                continue
            if line is None:
                continue
            found += 1
            if line.update < self.updates:
                self.resumed += 1
                self._forget_from(line.update)
            self.updates = line.update
            date = DATE.match(text)
            if date:
                self.first_date, self.last_date = self.first_date or date.group(1), date.group(1)
            for term, value in line.terms.items():
                self.series.setdefault((line.kind, term), {})[line.update] = value
        return found

    def _note(self, text: str) -> None:
        match = SIGNATURE.search(text)
        if match and match.group() not in self.signatures:
            self.signatures.append(match.group())

    def _forget_from(self, update: int) -> None:
        for points in self.series.values():
            for later in [known for known in points if known >= update]:
                del points[later]

    def finite(self, kind: str, term: str) -> List[Tuple[int, float]]:
        """(update, value) where the value is finite."""
        points = self.series.get((kind, term), {})
        return [(update, value) for update, value in points.items() if is_finite(value)]


def is_finite(value: float) -> bool:
    """Also not so large that a chart's arithmetic overflows."""
    return abs(value) < 1e300


def parse_line(text: str) -> Optional[Line]:
    """The numbers of a line; None if it reports none.

    Raises:
        ValueError: it begins as fairseq's do and is cut off or garbled
    """
    if POSITION not in text and "epoch " not in text:
        return None
    text = text.rstrip()
    json_match = JSON_OBJECT.search(text) if '"' in text else None
    if json_match:
        return _from_json(json_match.group(1)) if POSITION in text else None
    match = SIMPLE_INTERVAL.search(text)
    if match:
        return _line(INTERVAL, (field.partition("=")[::2] for field in match.group("fields").split(", ")))
    match = SIMPLE_SUMMARY.search(text)
    if match:
        kind = EPOCH if match.group("subset") is None else match.group("subset")
        return _line(kind, (field.strip().rpartition(" ")[::2] for field in match.group("fields").split(" | ")))
    return None


def _from_json(text: str) -> Optional[Line]:
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("no object")
    if POSITION in content:
        return _line(INTERVAL, content.items())
    prefixed = [key for key in content if key.endswith(f"_{POSITION}")]
    if not prefixed:
        return None
    kind = prefixed[0][: -len(f"_{POSITION}")]
    start = len(kind) + 1
    return _line(kind, ((key[start:], value) for key, value in content.items() if key.startswith(f"{kind}_")))


def _line(kind: str, fields: Iterable[Tuple[str, Any]]) -> Line:
    terms = {key: number for key, value in fields for number in _number(value) if TERM.fullmatch(key)}
    position = terms.pop(POSITION, math.nan)
    if not math.isfinite(position) or position < 0:
        raise ValueError(f"no {POSITION}")
    # JSON gives the epoch and its fraction too: other names for the position
    return Line(kind, int(position), {key: value for key, value in terms.items() if key not in ("epoch", "update")})


def _number(value: Any) -> Iterator[float]:
    """The number, if it is one: fairseq writes None, lists and text too."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)
    elif isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        yield float(value)


def _whole_lines(path: Path) -> Iterator[str]:
    """Lines, also those that a progress bar ends with a carriage return.

    A last one without its end is that of a process that died while it wrote: its last number may have lost digits.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line if line.endswith("\n") else re.sub(r"[^\s,|=}\"]+$", "", line)


def read_run(run: Run, path: Path) -> Run:
    """Add a log to a run.

    Raises:
        KDPluginError: it cannot be read, or no line of it is one of fairseq-train's
    """
    try:
        found = run.read(_whole_lines(path))
    except OSError as error:
        raise KDPluginError(
            f"--log {run.name}={path}: {error.strerror or error}. Remedy: the file that fairseq-train's output went to"
        ) from error
    if not found:
        raise KDPluginError(
            f"--log {run.name}={path}: no line with numbers of fairseq-train in it. Remedy: a log of a training that "
            "reached its first --log-interval, with --log-format simple or json"
        )
    run.files.append(str(path))
    return run


def _name_and_path(argument: str) -> Tuple[str, str]:
    parts = argument.split("=")
    splits = [("=".join(parts[:index]), "=".join(parts[index:])) for index in range(1, len(parts))]
    splits = [(name, path) for name, path in splits if name and path]
    if not splits:
        raise KDPluginError(f"--log {argument}: not NAME=FILE. Remedy: --log baseline=train.log, say")
    # `k=4=train.log`: both names and files may hold the sign
    return next((split for split in splits if Path(split[1]).is_file()), splits[0])


def read_runs(arguments: Iterable[str]) -> List[Run]:
    """The runs of `--log NAME=FILE …`; a name that comes again continues its run.

    Raises:
        KDPluginError: no name, or a file that is no log of a training
    """
    runs: Dict[str, Run] = {}
    for argument in arguments:
        name, path = _name_and_path(argument)
        read_run(runs.setdefault(name, Run(name)), Path(path))
    return list(runs.values())
