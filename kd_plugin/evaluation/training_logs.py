"""Extracts the numbers from a log of fairseq-train, with any --log-format and among any other output."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Tuple

from kd_plugin.errors import KDPluginError

# fairseq's names for its two training loggers; any other kind is the name of a validation subset
INTERVAL, EPOCH = "train_inner", "train"
POSITION = "num_updates"
Key = Tuple[str, str]  # kind and term

# Matches anywhere in a line: `--log-file` writes no date and no logger, and a progress bar may come first.
# Possible prefixes: fairseq-train's own format, hydra's (`[DATE][LOGGER][INFO] - `), and that of Python's logging.
BEFORE = r"(?:^|\| |\] - |\b[A-Z]+:[\w.]+:)"
LINE = re.compile(
    r"epoch \d+: +(?:\d+ / \d+ |.*\|.*\[(?=.*num_updates=))(?P<interval>.+)"  # simple, or behind the bar of tqdm
    + rf"|{BEFORE}epoch \d+ \| (?:valid on '(?P<subset>[^']*)' subset \| |(?!valid on))(?P<summary>.+)"
    + rf"|{BEFORE}(?P<json>\{{.*)"
)
NUMBER = re.compile(r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|(?i:inf(?:inity)?|nan))")
FIELD = re.compile(rf"(?:^|[,|]) *([A-Za-z_][\w.\-/]*)[= ] *({NUMBER.pattern}) *(?=$|[,|\]])")
DATE = re.compile(r"^\[?(\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d)?)")
SIGNATURE = re.compile(r"\bkd\|\S+")


def parse_line(text: str) -> Optional[Tuple[str, int, Dict[str, float]]]:
    """A line's kind (train_inner, train, or the validation subset), update and terms; None if it reports none.

    Raises:
        ValueError, OverflowError, RecursionError: it starts like one of fairseq's lines but is truncated or garbled
    """
    match = LINE.search(text.rstrip()) if POSITION in text or "epoch " in text else None
    if match is None:
        return None
    kind = match["subset"] or (INTERVAL if match["interval"] else EPOCH)
    fields = FIELD.findall(match["interval"] or match["summary"] or "")
    if match["json"]:
        content = json.loads(match["json"]) if POSITION in text else {}
        before = [key[: -len(POSITION)] for key in content if re.fullmatch(f"(.+_)?{POSITION}", key)]
        if not before:
            return None
        start = min(before, key=len)  # a prefix such as valid_, or ""
        kind, fields = start[:-1] or INTERVAL, [(k[len(start) :], v) for k, v in content.items() if k.startswith(start)]
    # fairseq also writes None, lists and text; the epoch and, in JSON, its fraction are dropped as redundant
    terms = {key: float(value) for key, value in fields if NUMBER.fullmatch(str(value).strip())}
    update = int(terms.pop(POSITION, -1))
    if update < 0:
        raise ValueError(f"no {POSITION}")
    return kind, update, {key: value for key, value in terms.items() if key not in ("epoch", "update")}


def is_finite(value: float) -> bool:
    """Whether a value is finite and small enough for a chart's arithmetic."""
    return abs(value) < 1e300


@dataclass
class Run:
    """A training run: for each (kind, term), the values by update, in ascending order.

    Values may be infinite or NaN, as logged. `malformed` counts lines that look like fairseq's but cannot be parsed.
    """

    name: str
    files: List[str] = field(default_factory=list)
    series: Dict[Key, Dict[int, float]] = field(default_factory=dict)
    signatures: List[str] = field(default_factory=list)
    dates: List[str] = field(default_factory=list)
    malformed: int = 0
    resumed: int = 0
    updates: int = 0

    def read(self, lines: Iterable[str]) -> int:
        """Reads the lines of a log; returns how many of them report numbers.

        If the log jumps back to an earlier update, training was resumed there: values after that update were logged
        before the restart, belong to no checkpoint, and are replaced.
        """
        found = 0
        for text in lines:
            self.signatures += [signature for signature in SIGNATURE.findall(text) if signature not in self.signatures]
            try:
                kind, update, terms = parse_line(text) or ("", 0, {})
            except (ValueError, OverflowError, RecursionError):  # garbled, or JSON with endless digits or brackets
                self.malformed += 1
                continue
            if kind:
                found += 1
                if update < self.updates:
                    self.resumed += 1
                    for key, points in self.series.items():
                        self.series[key] = {before: points[before] for before in points if before < update}
                self.updates = update
                self.dates[1:] = DATE.findall(text)[:1] or self.dates[1:]
                for term, value in terms.items():
                    self.series.setdefault((kind, term), {})[update] = value
        return found

    def finite(self, key: Key) -> List[Tuple[int, float]]:
        """(update, value) where the value is finite."""
        return [(update, value) for update, value in self.series.get(key, {}).items() if is_finite(value)]


def _whole_lines(path: Path) -> Iterator[str]:
    """All lines, including those that a progress bar ends with a carriage return.

    If the last line has no line end, the process died while writing it, and its last number, which may be truncated, is
    removed.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line if line.endswith("\n") else re.sub(r"[^\s,|=}\]\"]+$", "", line)


def read_runs(arguments: Iterable[str]) -> List[Run]:
    """The runs of `--log NAME=FILE …`; a repeated name continues its run.

    Raises:
        KDPluginError: a name is missing, a file cannot be read, or none of its lines comes from fairseq-train
    """
    runs: Dict[str, Run] = {}
    for argument in arguments:
        splits = [
            (argument[:at], Path(argument[at + 1 :])) for at in range(1, len(argument) - 1) if argument[at] == "="
        ]
        if not splits:
            raise KDPluginError(f"--log {argument}: not NAME=FILE. Remedy: for example, --log baseline=train.log")
        # `k=4=train.log`: both names and files may contain "="
        name, path = next((split for split in splits if split[1].is_file()), splits[0])
        run = runs.setdefault(name, Run(name))
        try:
            found = run.read(_whole_lines(path))
        except OSError as error:
            raise KDPluginError(
                f"--log {name}={path}: {error.strerror or error}. Remedy: the file with fairseq-train's output"
            ) from error
        if not found:
            raise KDPluginError(
                f"--log {name}={path}: contains no numbers from fairseq-train. Remedy: a log of a training that "
                "reached its first --log-interval, with --log-format simple or json"
            )
        run.files.append(str(path))
    return list(runs.values())
