"""Rows of translations made elsewhere, as tab-separated values or JSON lines, each checked."""

import json
import math
import re
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

from kd_plugin.errors import KDPluginError
from kd_plugin.pipeline.raw_text import numbered_lines
from kd_plugin.pipeline.translations import Hypothesis

COLUMNS = "source TAB hypothesis [TAB score [TAB system]]"
OBJECT = '{"source": …, "hypothesis": … or "hypotheses": […], "score": …, "system": …}'
LINE_BREAKS = re.compile(r"[ \t]*[\r\n][ \t\r\n]*")


class Row(NamedTuple):
    """A source and its translations as a line of the file has them. number: of that line, from 1."""

    number: int
    source: str
    hypotheses: List[Hypothesis]
    system: Optional[str]


class RowError(ValueError):
    """What is wrong with a row, and the remedy."""


def read_rows(path: Path, format_name: str) -> Iterator[Row]:
    """All rows; empty lines of JSONL are skipped.

    Args:
        format_name: a key of FORMATS

    Raises:
        KDPluginError: names the file, the line, the cause and a remedy
    """
    parse = FORMATS[format_name]
    for number, line in numbered_lines(path, "import"):
        if format_name == "jsonl" and not line.strip():
            continue
        try:
            row = parse(line, number)
            for text in (row.source, row.system or "", *(hypothesis.text for hypothesis in row.hypotheses)):
                _check_text(text)
        except RowError as error:
            raise KDPluginError(f"import {path}, line {number}: {error}") from error
        yield row._replace(source=row.source.replace("\r", " "))


def join_lines(text: str) -> str:
    """A text without line breaks: each, with the blanks around it, is a space."""
    return LINE_BREAKS.sub(" ", text).strip(" ") if "\n" in text or "\r" in text else text


def _tsv(line: str, number: int) -> Row:
    columns = line.split("\t")
    if not 2 <= len(columns) <= 4:
        raise RowError(f"{len(columns)} columns. Remedy: {COLUMNS}; a tab inside a text has to become a space")
    source, text, score, system = columns + [""] * (4 - len(columns))
    return Row(number, source, [Hypothesis(text, _score(score) if score else None)], system or None)


def _jsonl(line: str, number: int) -> Row:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(f"no JSON ({error}). Remedy: one object a line: {OBJECT}") from error
    if not isinstance(content, dict):
        raise RowError(f"no object. Remedy: {OBJECT}")
    source = _text(content, "source")
    if "\n" in source:
        raise RowError("a line break inside the source. Remedy: a source is a line of a corpus; split it")
    if ("hypothesis" in content) == ("hypotheses" in content):
        raise RowError(f"needs either hypothesis or hypotheses. Remedy: {OBJECT}")
    if "hypothesis" in content:
        hypotheses = [Hypothesis(_text(content, "hypothesis"), _optional_score(content))]
    elif "score" in content:
        raise RowError('one score for several hypotheses. Remedy: {"text": …, "score": …} for each of them')
    else:
        hypotheses = _several(content["hypotheses"])
    names = [name for name in ("system", "model") if content.get(name) is not None]
    return Row(number, source, hypotheses, _text(content, names[0]) if names else None)


def _several(content: Any) -> List[Hypothesis]:
    if not isinstance(content, list):
        raise RowError(f"hypotheses is no list. Remedy: {OBJECT}")
    hypotheses = []
    for entry in content:
        if isinstance(entry, str):
            hypotheses.append(Hypothesis(entry))
        elif isinstance(entry, dict):
            hypotheses.append(Hypothesis(_text(entry, "text"), _optional_score(entry)))
        else:
            raise RowError(f"hypothesis {entry!r} is no text. Remedy: texts, or objects with text and score")
    return hypotheses


def _text(content: Dict[str, Any], name: str) -> str:
    if not isinstance(content.get(name), str):
        what = f"{name} is no text: {content[name]!r}" if name in content else f"{name} is missing"
        raise RowError(f"{what}. Remedy: {OBJECT}")
    return content[name]


def _optional_score(content: Dict[str, Any]) -> Optional[float]:
    value = content.get("score")
    if isinstance(value, (bool, str)):  # which float() would take
        raise RowError(f"score {value!r} is no number. Remedy: a number, or none at all")
    return None if value is None else _score(value)


def _score(value: Any) -> float:
    try:
        score = float("" if "_" in str(value) else value)  # Python's 1_000
    except (TypeError, ValueError, OverflowError) as error:
        raise RowError(
            f"score {value!r} is no number. Remedy: a number, or none at all; a tab inside a text has to become a space"
        ) from error
    if not math.isfinite(score):
        raise RowError(f"score {value!r} is not finite. Remedy: a number, or none at all")
    return score


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON's \ud800
        raise RowError(f"half of a surrogate pair at character {error.start}. Remedy: make the file anew") from error


FORMATS: Dict[str, Callable[[str, int], Row]] = {"tsv": _tsv, "jsonl": _jsonl}
