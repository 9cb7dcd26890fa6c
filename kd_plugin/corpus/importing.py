"""Imports translations made elsewhere (by a large language model, an API, another toolkit).

It holds the file's sources and translations in memory, and writes nothing before it has checked the last row.
"""

import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Set

from kd_plugin.corpus.columns import parse_columns
from kd_plugin.corpus.destination import Destination
from kd_plugin.corpus.hypotheses import Hypothesis, Record
from kd_plugin.corpus.languages import check_languages, family, family_of_text
from kd_plugin.corpus.raw_text import checked_sha256, numbered_lines
from kd_plugin.corpus.tables import COLUMNS, FORMATS, OBJECT, Row, join_lines, read_rows
from kd_plugin.corpus.translations import Writer
from kd_plugin.errors import KDPluginError
from kd_plugin.runners.progress import progress


class Table(NamedTuple):
    """The options of `kd-plugin import`."""

    file: str
    format: Optional[str]
    columns: Optional[str]
    source_lang: str
    target_lang: str
    source: Optional[str]
    to: Destination


class Entry(NamedTuple):
    """A source during the import. ids: its lines; systems: of all its rows"""

    ids: List[int]
    hypotheses: List[Hypothesis]
    systems: Set[Optional[str]]


def take_in(table: Table) -> None:
    """Writes a table's translations as a folder."""
    check_languages(table.source_lang, table.target_lang)
    path, languages = Path(table.file), [table.source_lang, table.target_lang]
    format_name = table.format or _format_of(path)
    columns = parse_columns(table.columns)
    if columns is not None and format_name == "jsonl":
        raise KDPluginError("--columns: JSON lines have keys instead. Remedy: leave it out, or --format tsv or csv")
    identity = {
        "verb": "import",
        "format": format_name,
        **({} if columns is None else {"columns": columns}),
        "languages": languages,
        "file_sha256": checked_sha256(path, "import"),
        "source_sha256": checked_sha256(Path(table.source), "--source") if table.source else None,
    }
    table.to.check(languages, identity)
    entries = _corpus(Path(table.source)) if table.source else {}
    counts = {"rows": 0, "line_breaks_joined": 0, "empty_dropped": 0, "repeated_dropped": 0}
    rows = read_rows(
        path,
        format_name,
        languages,
        columns,
        quotes={"tsv": "\"'", "csv": "'"}.get(format_name, "") if table.format is None else "",
        said=lambda text: print(f"kd-plugin import: {path}: {text}", file=sys.stderr),
    )
    for row in progress(rows, None, "import", "row"):
        counts["rows"] += 1
        _add(entries, row, path, table.source, counts)
    counts["lines_without_translation"] = sum(len(e.ids) for e in entries.values() if not e.hypotheses)
    lines = sum(len(entry.ids) for entry in entries.values())
    if not any(entry.hypotheses for entry in entries.values()):
        what = "is empty" if not counts["rows"] else f"has no translation in its {counts['rows']:,} rows"
        raise KDPluginError(f"import {path}: {what}. Remedy: {OBJECT if format_name == 'jsonl' else COLUMNS}")
    _check_sides(entries, languages, path)
    writer = Writer(Path(table.to.output), identity, languages, lines)
    for source, entry in entries.items():
        writer.add(record_of(source, entry, counts))
    table.to.finish(writer.finish(counts))


def _check_sides(entries: Dict[str, Entry], languages: List[str], path: Path) -> None:
    """Refuses columns in the wrong order, which different scripts give away."""
    known = [family(language) for language in languages]
    hypotheses = (hypothesis.text for entry in entries.values() for hypothesis in entry.hypotheses)
    found = [family_of_text(entries), family_of_text(hypotheses)]
    if known[0] != known[1] and found == known[::-1]:
        raise KDPluginError(
            f"import {path}: its sources look like {languages[1]}, its translations like {languages[0]}. Remedy: "
            "--columns hypothesis,source, or swap the languages"
        )


def _format_of(path: Path) -> str:
    suffix = Path(path.stem if path.suffix == ".gz" else path.name).suffix[1:]
    if suffix not in FORMATS:
        raise KDPluginError(
            f"import {path}: its name does not show its format. Remedy: --format {{{','.join(FORMATS)}}}"
        )
    return suffix


def _corpus(path: Path) -> Dict[str, Entry]:
    """The distinct lines of the corpus, in the order of first occurrence."""
    entries: Dict[str, Entry] = {}
    for number, line in numbered_lines(path, "--source"):
        text = line.replace("\r", " ")  # as kd-plugin decode does
        entries.setdefault(text, Entry([], [], set())).ids.append(number - 1)
    return entries


def _add(entries: Dict[str, Entry], row: Row, path: Path, corpus: Optional[str], counts: Dict[str, int]) -> None:
    entry = entries.get(row.source)
    if entry is None:
        if corpus is not None:
            raise KDPluginError(
                f"import {path}, line {row.number}: its source is not a line of --source {corpus}: {row.source!r}. "
                "Remedy: the corpus that was translated, with exactly the same sources"
            )
        if not row.source.strip():
            raise KDPluginError(f"import {path}, line {row.number}: its source is empty. Remedy: remove the line")
        entry = entries[row.source] = Entry([len(entries)], [], set())
    for hypothesis in row.hypotheses:
        text = join_lines(hypothesis.text)
        counts["line_breaks_joined"] += text != hypothesis.text
        if text.strip():
            entry.hypotheses.append(hypothesis._replace(text=text))
            entry.systems.add(row.system)
        else:
            counts["empty_dropped"] += 1


def record_of(source: str, entry: Entry, counts: Dict[str, int]) -> Record:
    """A record with translations best first if all have scores, else in their order; duplicates keep the best score.

    Duplicates occur if a corpus contains a source several times and it was translated each time.
    """
    different: Dict[str, Hypothesis] = {}
    for hypothesis in entry.hypotheses:
        known = different.setdefault(hypothesis.text, hypothesis)
        if hypothesis.score is not None and (known.score is None or hypothesis.score > known.score):
            different[hypothesis.text] = hypothesis
    counts["repeated_dropped"] += len(entry.hypotheses) - len(different)
    hypotheses = list(different.values())
    if all(hypothesis.score is not None for hypothesis in hypotheses):
        hypotheses.sort(key=lambda hypothesis: -(hypothesis.score or 0.0))
    system = next(iter(entry.systems)) if len(entry.systems) == 1 else None
    return Record(entry.ids, source, hypotheses, system)
