"""Reads and checks rows of translations made elsewhere, as TSV, CSV or JSON lines."""

import csv
import itertools
import math
import re
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.corpus.column_languages import other_language
from kd_plugin.corpus.column_looks import SAY, Looks
from kd_plugin.corpus.columns import HYPOTHESIS, SCORE, SOURCE, Table, usual_meaning
from kd_plugin.corpus.hypotheses import Hypothesis
from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.errors import KDPluginError
from kd_plugin.files.json_text import RefusedJson, parse_json

FORMATS = ("tsv", "csv", "jsonl")
DELIMITERS = ("\t", ",", ";")
LINES_LOOKED_AT = 50  # to detect the delimiter of CSV
COLUMNS = "source TAB hypothesis [TAB score [TAB system]]"
OBJECT = '{"source": …, "hypothesis": … or "hypotheses": […], "score": …, "system": …}'
KEYS = "rename its keys to match their meaning: source, hypothesis, system; if they already do, use TSV with --columns"
LANGUAGE_KEYS = [[f"{side}_{lang}" for side in sides for lang in ("lang", "language")] for sides in (
    ("source", "src"), ("target", "tgt", "trg", "hypothesis"),
)]  # fmt: skip
PAIR_KEYS = ("lang_pair", "langpair", "language_pair", "lp", "direction")
LINE_BREAKS = re.compile(r"[ \t]*[\r\n][ \t\r\n]*")


class Row(NamedTuple):
    """A source and its translations from one line of the file. number: of that line, from 1."""

    number: int
    source: str
    hypotheses: List[Hypothesis]
    system: Optional[str]


class RowError(ValueError):
    """An error in a row; its message includes the remedy."""


def read_rows(
    path: Path,
    format_name: str,
    languages: Sequence[str] = ("", ""),
    columns: Optional[Sequence[str]] = None,
    quotes: str = "",
    said: Callable[[str], Any] = lambda text: None,
) -> Iterator[Row]:
    """Yields all rows; skips empty lines of JSON.

    Args:
        format_name: one of FORMATS
        languages: source, target; may also name columns and keys
        columns: of a table, from `columns.parse_columns`; None: USUAL, or as its first line says
        quotes: quotation marks; a table with fields in them is refused
        said: called with a message about a first line that names the columns
    """
    where = f"import {path}"
    if format_name == "jsonl":
        rows = _objects(path, where, languages)
    else:
        rows = _table(path, where, format_name, Table(where, columns, languages, quotes), said)
    for row in rows:
        try:
            for text in (row.source, row.system or "", *(hypothesis.text for hypothesis in row.hypotheses)):
                _check_text(text)
        except RowError as error:
            raise KDPluginError(f"{where}, line {row.number}: {error}") from error
        yield row._replace(source=row.source.replace("\r", " "))


def _table(path: Path, where: str, format_name: str, table: Table, said: Callable[[str], Any]) -> Iterator[Row]:
    lines = numbered_lines(path, "import", table=True)
    rows = _csv(lines, where) if format_name == "csv" else ((n, line.split("\t")) for n, line in lines)
    for count, (number, found) in enumerate(rows):
        if count == 0 and table.takes_as_header(found):
            said(f"line {number} names the columns ({', '.join(found)}) and is not a translation")
            continue
        cells = table.cells(found)
        try:
            if cells is None:
                raise RowError(f"{len(found)} columns. Remedy: {COLUMNS}, or {SAY}; a tab in a text becomes a space")
            if "\n" in cells.source:
                raise RowError("a line break inside the source. Remedy: split it; a source is one line of a corpus")
            score = _score(cells.score) if cells.score else None
        except RowError as error:
            raise KDPluginError(f"{where}, line {number}: {error}") from error
        yield Row(number, cells.source, [Hypothesis(cells.hypothesis, score)], cells.system or None)
    table.check()


def _csv(lines: Iterator[Tuple[int, str]], where: str) -> Iterator[Tuple[int, List[str]]]:
    """Fields with the number of the line that they end in; a quoted field may contain line breaks."""
    first = list(itertools.islice(lines, LINES_LOOKED_AT))
    texts = [text for _, text in first]
    delimiter = next((mark for mark in DELIMITERS if _columns_by(texts, mark)), ",")
    every = (text + "\n" for text in itertools.chain(texts, (text for _, text in lines)))
    reader = csv.reader(every, delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise KDPluginError(
            f"{where}, line {reader.line_num}: not CSV ({error}). Remedy: standard CSV quoting, or TSV"
        ) from error


def _columns_by(lines: Sequence[str], delimiter: str) -> bool:
    """Whether this delimiter splits all lines into the same number of columns."""
    try:
        counts = {len(fields) for fields in csv.reader([f"{line}\n" for line in lines], delimiter=delimiter) if fields}
    except csv.Error:
        return False
    return len(counts) == 1 and counts != {1}


def _objects(path: Path, where: str, languages: Sequence[str]) -> Iterator[Row]:
    looks = Looks(where, KEYS, fewest=4)  # keys are more explicit than columns, so a few numbers may be intended
    for number, line in numbered_lines(path, "import", table=True):
        if not line.strip():
            continue
        try:
            row = _jsonl(line, number, languages)
        except RowError as error:
            raise KDPluginError(f"{where}, line {number}: {error}") from error
        for hypothesis in row.hypotheses[:1]:
            looks.add(row.source, hypothesis.text, row.system or "")
        yield row
    looks.check()


def join_lines(text: str) -> str:
    """The text with each line break, and the blanks around it, replaced by a space."""
    return LINE_BREAKS.sub(" ", text).strip(" ") if "\n" in text or "\r" in text else text


def _jsonl(line: str, number: int, languages: Sequence[str]) -> Row:
    if number == 1 and line.lstrip().startswith(("[{", "[\n")) or line.strip() == "[":
        raise RowError(f"a JSON array. Remedy: one object per line: {OBJECT} (jq -c '.[]' FILE)")
    try:
        content = parse_json(line)
    except RefusedJson as error:
        raise RowError(f"{error}. Remedy: create the file again") from error
    except ValueError as error:
        raise RowError(f"not JSON ({error}). Remedy: one object per line: {OBJECT}") from error
    if not isinstance(content, dict):
        raise RowError(f"not an object. Remedy: {OBJECT}")
    _check_languages(content, languages)
    content = _usual_names(content, languages)
    source = _text(content, "source")
    if "\n" in source:
        raise RowError("a line break inside the source. Remedy: split it; a source is one line of a corpus")
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


def _check_languages(content: Dict[str, Any], languages: Sequence[str]) -> None:
    said = [(key, content.get(key), flag) for keys, flag in zip(LANGUAGE_KEYS, "st") for key in keys]
    for key in PAIR_KEYS:
        codes = re.split(r"\W+(?:to\W+)?", str(content.get(key, "")).strip())
        said += [(key, code, flag) for code, flag in zip(codes, "st") if len(codes) == 2]
    for key, value, flag in said:
        expected = languages["st".index(flag)]
        if isinstance(value, str) and expected and other_language(value, expected):
            raise RowError(f"{key} is {content[key]!r}, but -{flag} is {expected}. Remedy: the languages of the file")


def _usual_names(content: Dict[str, Any], languages: Sequence[str]) -> Dict[str, Any]:
    """The object with its keys renamed to source, hypothesis and score, unless it already has these names."""
    if SOURCE in content and (HYPOTHESIS in content or "hypotheses" in content):
        return content
    pair = content.get("translation")
    if isinstance(pair, dict):  # {"translation": {"en": …, "de": …}}, as in Hugging Face datasets
        content = {**{name: value for name, value in content.items() if name != "translation"}, **pair}
    found = dict(content)
    for role in (SOURCE, HYPOTHESIS, SCORE):
        names = [name for name in content if usual_meaning(name, languages) == role]
        if len(names) > 1:
            raise RowError(f"{' and '.join(names)} are both {role}. Remedy: {OBJECT}")
        if names and names[0] != role:
            found[role] = found.pop(names[0])
    if SOURCE not in found:
        raise RowError(f"source is missing among its keys {', '.join(content)}. Remedy: {OBJECT}")
    return found


def _several(content: Any) -> List[Hypothesis]:
    if not isinstance(content, list):
        raise RowError(f"hypotheses is not a list. Remedy: {OBJECT}")
    hypotheses = []
    for entry in content:
        if isinstance(entry, str):
            hypotheses.append(Hypothesis(entry))
        elif isinstance(entry, dict):
            hypotheses.append(Hypothesis(_text(entry, "text"), _optional_score(entry)))
        else:
            raise RowError(f"hypothesis {entry!r} is not text. Remedy: texts, or objects with text and score")
    return hypotheses


def _text(content: Dict[str, Any], name: str) -> str:
    if not isinstance(content.get(name), str):
        what = f"{name} is not text: {content[name]!r}" if name in content else f"{name} is missing"
        raise RowError(f"{what}. Remedy: {OBJECT}")
    return content[name]


def _optional_score(content: Dict[str, Any]) -> Optional[float]:
    value = content.get("score")
    if isinstance(value, (bool, str)):  # float() would accept these
        raise RowError(f"score {value!r} is not a number. Remedy: a number, or no score at all")
    return None if value is None else _score(value)


def _score(value: Any) -> float:
    try:
        score = float("" if "_" in str(value) else value)  # Python's 1_000
    except (TypeError, ValueError, OverflowError) as error:
        raise RowError(f"score {value!r} is not a number. Remedy: a number, or no score at all; or {SAY}") from error
    if not math.isfinite(score):
        raise RowError(f"score {value!r} is not finite. Remedy: a number, or no score at all")
    return score


def _check_text(text: str) -> None:
    if "\0" in text:
        raise RowError("a NUL character inside a text. Remedy: remove it; if the file is UTF-16, convert it to UTF-8")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON's \ud800
        raise RowError(f"half of a surrogate pair at character {error.start}. Remedy: create the file again") from error
