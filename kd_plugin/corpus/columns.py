"""The meaning of a table's columns: from --columns, from a first line that names them, or by default.

Nothing is guessed: if a table does not look like the default, it is refused, and the error names the flag to use.
"""

import re
from collections import Counter
from typing import List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.corpus.column_languages import NAMED, language_of
from kd_plugin.corpus.column_looks import NUMBER, SAY, Looks
from kd_plugin.errors import KDPluginError

SOURCE, HYPOTHESIS, SCORE, SYSTEM = "source", "hypothesis", "score", "system"
USUAL = (SOURCE, HYPOTHESIS, SCORE, SYSTEM)
SKIPPED = "_"  # or "-", which must be written --columns=-,…
# their names in a first line, in --columns and as JSON keys
NAMES = {
    SOURCE: "source src source_text src_text source_sentence sourcetext original input",
    HYPOTHESIS: "hypothesis hyp target tgt trg translation mt output prediction target_text tgt_text",
    SCORE: "score scores logprob log_prob",
    SYSTEM: "system model engine",
    SKIPPED: "id ids index line no number source_id src_id target_id tgt_id sentence_id segment",
}
MEANING = {name: role for role, names in NAMES.items() for name in names.split()}
# words that column names consist of, whatever their meaning
WORDS = frozenset(
    "reference references ref refs sentence sentences sent text texts txt out output in input n num lang language raw "
    "post edited pe gold human machine translated string seg doc domain".split()
    + [word for name in MEANING for word in name.split("_")]
)
NO_TEXT = frozenset(("lang", "language", "n", "num", "doc", "domain"))
COUNTRY = re.compile(r"(?i)\b([a-z]{2,3})[-_](?:[a-z]{4}[-_])?(?:[a-z]{2}|latn|cyrl|arab|deva|hans|hant)\b")
QUOTED = {'"': re.compile(r'"(?:[^"]|"")*"'), "'": re.compile(r"'.*\S.*'", re.DOTALL)}
QUOTATION_MARKS = "\"'„“”«»‹›‚‘’「『"


class Cells(NamedTuple):
    """A row's texts; empty for a missing column."""

    source: str
    hypothesis: str
    score: str
    system: str


def parse_columns(value: Optional[str]) -> Optional[List[str]]:
    """The roles that --columns names.

    Raises:
        KDPluginError: an unknown or repeated role, or no source or hypothesis
    """
    if value is None:
        return None
    found = []
    for name in value.split(","):
        role = SKIPPED if name.strip() in ("-", "_") else MEANING.get(name.strip().lower(), "")
        if not role:
            raise KDPluginError(f"--columns {value}: {name!r} is not one of {', '.join(USUAL)} and _. Remedy: {SAY}")
        found.append(role)
    roles = [role for role in found if role != SKIPPED]
    if len(set(roles)) < len(roles) or not {SOURCE, HYPOTHESIS} <= set(roles):
        raise KDPluginError(f"--columns {value}: needs source and hypothesis, and no role twice. Remedy: {SAY}")
    return found


def usual_meaning(name: str, languages: Sequence[str]) -> Optional[str]:
    """The role of a column or key with this name, which may also be a language code; None for any other text."""
    name = re.sub(r"[\s-]+", "_", _bare(name).lower())
    codes = [code.lower().replace("-", "_") for code in languages]
    if name and name in codes:
        return (SOURCE, HYPOTHESIS)[codes.index(name)]
    return MEANING.get(name)


def meaning(name: str, languages: Sequence[str]) -> Optional[str]:
    """The role of a column with this name in the first line: a usual name, or words and languages as in en_text.

    Returns:
        the role; "": a column name without a role; None: any other text
    """
    usual = usual_meaning(name, languages)
    if usual is not None:
        return usual
    name = _bare(name)
    known = [language_of(code) for code in languages]
    found = set()
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", COUNTRY.sub(lambda match: _without_country(match, known), name))
    if not re.fullmatch(r"[\w\s().:/-]+", text):
        return None
    words = re.findall(r"[^\W\d_]+", text.lower())
    for word in words:
        language = language_of(word)
        if language in known:
            found.add((SOURCE, HYPOTHESIS)[known.index(language)])
        elif word not in WORDS and not (word in NAMED and len(word) > 3):
            return None
    roles = {MEANING[word] for word in words if word in MEANING and language_of(word) not in known}
    if not words or NO_TEXT & set(words) or not roles <= {SOURCE, HYPOTHESIS} or len(found | roles) != 1:
        return "" if words else None
    return (found | roles).pop()


def _bare(name: str) -> str:
    return name.strip().strip("\"'").lstrip("#").strip()


def _without_country(match: "re.Match[str]", known: Sequence[str]) -> str:
    return match[1] if language_of(match[1]) in known else match[0]


def names_columns(names: Sequence[str], roles: Sequence[Optional[str]]) -> bool:
    """Whether texts with these roles name columns; a pair such as No, no or German, Deutsch is a translation."""
    texts = [name.strip().lower() for name in names]
    if None in roles or len(set(texts)) < 2:
        return False
    if all(text in NAMED for text in texts) and len(set(map(language_of, texts))) < 2:
        return False
    return "in" not in texts or "out" in texts  # "in" alone is an ordinary word


class Table:
    """Maps rows of cells to their meaning.

    Args:
        where: for errors
        columns: from parse_columns; None: not given
        languages: source, target
        quotes: quotation marks; a table with fields in them is refused, because they would become part of the text
    """

    def __init__(self, where: str, columns: Optional[Sequence[str]], languages: Sequence[str], quotes: str):
        self._where, self._languages, self._quotes = where, languages, quotes
        self._said, self._columns = columns is not None, list(columns or USUAL)
        self._rows = 0
        self._quoted: Counter[Tuple[str, str]] = Counter()  # by mark and by column or "both"
        self._looks = Looks(where, SAY)

    def takes_as_header(self, cells: Sequence[str]) -> bool:
        """Whether the first row names the columns; if so, it defines them, unless --columns does.

        Raises:
            KDPluginError: it does not tell source and hypothesis apart, or contradicts --columns
        """
        roles = [meaning(cell, self._languages) for cell in cells]
        if self._said:
            return self._is_header_of_said(cells, roles)
        if len(cells) < 2 or not names_columns(cells, roles):
            return False
        named = [role for role in roles if role and role != SKIPPED]
        if len(set(named)) < len(named) or not {SOURCE, HYPOTHESIS} <= set(named):
            raise self._names(cells, SAY)
        self._columns, self._said = [role or SKIPPED for role in roles], True
        return True

    def _is_header_of_said(self, cells: Sequence[str], roles: Sequence[Optional[str]]) -> bool:
        if len(cells) <= max(map(self._columns.index, (SOURCE, HYPOTHESIS))):
            return False
        used = {said: at for at, said in enumerate(self._columns) if said != SKIPPED and at < len(cells)}
        pair = [used[SOURCE], used[HYPOTHESIS]]
        if not names_columns([cells[at] for at in pair], [roles[at] for at in pair]):
            return False
        if SCORE in used and (not cells[used[SCORE]] or NUMBER.fullmatch(cells[used[SCORE]])):
            return False
        if [roles[at] for at in pair] == [HYPOTHESIS, SOURCE]:
            raise self._names(cells, "--columns in this order, or remove the line")
        return True

    def _names(self, cells: Sequence[str], remedy: str) -> KDPluginError:
        return KDPluginError(f"{self._where}, line 1: names columns: {', '.join(cells)}. Remedy: {remedy}")

    def cells(self, row: Sequence[str]) -> Optional[Cells]:
        """The row's cells; None if it has too few or too many columns."""
        found = list(row)
        while len(found) > len(self._columns) and not found[-1]:  # trailing tabs
            found.pop()
        last = max(self._columns.index(SOURCE), self._columns.index(HYPOTHESIS))
        if not last < len(found) <= len(self._columns):
            return None
        of = dict(zip(self._columns, found))
        cells = Cells(*(of.get(role, "") for role in USUAL))
        if not self._said:
            self._looks.add(cells.source, cells.hypothesis, cells.system)
        self._look_for_quotes(cells)
        self._rows += 1
        return cells

    def _look_for_quotes(self, cells: Cells) -> None:
        for mark in self._quotes:
            quoted = [len(text) > 1 and QUOTED[mark].fullmatch(text) is not None for text in cells[:2]]
            if mark == '"' and any(q and '""' in text[1:-1] for q, text in zip(quoted, cells)):  # surely CSV
                raise self._in_quotes(mark)
            self._quoted[mark, "both"] += all(quoted)
            for name, is_quoted, other in zip(USUAL, quoted, (cells.hypothesis, cells.source)):
                # a real quotation has marks on both sides
                self._quoted[mark, name] += is_quoted and not other.startswith(tuple(QUOTATION_MARKS))

    def _in_quotes(self, mark: str) -> KDPluginError:
        what, remedy = (
            ('in quotes, as in CSV ("…")', "--format csv removes them, --format tsv keeps them as text")
            if mark == '"'
            else ("in single quotes ('…')", "remove them, or name the --format to keep them as text")
        )
        return KDPluginError(f"{self._where}: its fields are {what}. Remedy: {remedy}")

    def check(self) -> None:
        """Call after the last row; refuses columns that look like something else."""
        for mark in self._quotes:
            of_one = max(self._quoted[mark, SOURCE], self._quoted[mark, HYPOTHESIS])
            if 2 * self._quoted[mark, "both"] > self._rows or of_one == self._rows > 1:
                raise self._in_quotes(mark)
        self._looks.check()
