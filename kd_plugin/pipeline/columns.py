"""Which column of a table of translations is what: as --columns says it, as a first line does, or as usual.

What nobody says is not guessed: a table that looks like something else is refused with the flag to say it.
"""

import re
from typing import Dict, List, NamedTuple, Optional, Sequence

from kd_plugin.errors import KDPluginError

SOURCE, HYPOTHESIS, SCORE, SYSTEM = "source", "hypothesis", "score", "system"
USUAL = (SOURCE, HYPOTHESIS, SCORE, SYSTEM)
SKIPPED = "_"  # and "-", which has to be written --columns=-,…
# what others call them, in a first line, in --columns and as keys of JSON
NAMES = {
    SOURCE: "source src source_text src_text source_sentence sourcetext original input",
    HYPOTHESIS: "hypothesis hyp target tgt trg translation mt output prediction target_text tgt_text",
    SCORE: "score scores logprob log_prob",
    SYSTEM: "system model engine",
    SKIPPED: "id ids index line no number source_id src_id target_id tgt_id sentence_id segment",
}
MEANING = {name: role for role, names in NAMES.items() for name in names.split()}
NUMBER = re.compile(r"\s*[-+]?\d+(?:[.,]\d+)*\s*")
QUOTED = re.compile(r'"(?:[^"]|"")*"')
SAY = "say which column is what: --columns source,hypothesis,score (in the file's order, _ for one to leave out)"
FEWEST_SYSTEMS = 4


class Cells(NamedTuple):
    """A row's texts; empty where it has no such column."""

    source: str
    hypothesis: str
    score: str
    system: str


def parse_columns(value: Optional[str]) -> Optional[List[str]]:
    """The roles that --columns names.

    Raises:
        KDPluginError: another word, one twice, or no source or hypothesis
    """
    if value is None:
        return None
    found = []
    for name in value.split(","):
        role = SKIPPED if name.strip() in ("-", "_") else MEANING.get(name.strip().lower(), "")
        if not role:
            raise KDPluginError(f"--columns {value}: {name!r} is none of {', '.join(USUAL)} and _. Remedy: {SAY}")
        found.append(role)
    roles = [role for role in found if role != SKIPPED]
    if len(set(roles)) < len(roles) or not {SOURCE, HYPOTHESIS} <= set(roles):
        raise KDPluginError(f"--columns {value}: needs source and hypothesis, and none twice. Remedy: {SAY}")
    return found


def meaning(name: str, languages: Sequence[str]) -> Optional[str]:
    """The role of a column of this name, which may be the language's code; None for any other text."""
    name = name.strip().strip('"').lower().lstrip("#").strip().replace(" ", "_")
    codes = [code.lower() for code in languages]
    if name and name in codes:
        return (SOURCE, HYPOTHESIS)[codes.index(name)]
    return MEANING.get(name)


class Table:
    """Rows of cells to what they mean.

    Args:
        where: for errors
        columns: of parse_columns; None: nobody says
        languages: source, target
        quotes: whether fields in quotes are an error, because they would keep them
    """

    def __init__(self, where: str, columns: Optional[Sequence[str]], languages: Sequence[str], quotes: bool):
        self._where, self._languages, self._quotes = where, languages, quotes
        self._said, self._columns = columns is not None, list(columns or USUAL)
        self._rows = self._numeric = self._numeric_texts = self._quoted = 0
        self._systems: Dict[str, int] = {}

    def takes_as_header(self, cells: Sequence[str]) -> bool:
        """Whether the first row names the columns; it is then gone by, unless --columns says otherwise.

        Raises:
            KDPluginError: it names columns, but not which of them are source and hypothesis
        """
        roles = [meaning(cell, self._languages) for cell in cells]
        if len(cells) < 2 or None in roles:
            return False
        named = [role for role in roles if role and role != SKIPPED]
        if self._said:
            return roles[: len(self._columns)] == self._columns
        if len(set(named)) < len(named) or not {SOURCE, HYPOTHESIS} <= set(named):
            raise KDPluginError(f"{self._where}, line 1: names columns: {', '.join(cells)}. Remedy: {SAY}")
        self._columns, self._said = [role or SKIPPED for role in roles], True
        return True

    def cells(self, row: Sequence[str]) -> Optional[Cells]:
        """What the row says; None where it has too few or too many columns."""
        found = list(row)
        while len(found) > len(self._columns) and not found[-1]:  # a tab at the end
            found.pop()
        last = max(self._columns.index(SOURCE), self._columns.index(HYPOTHESIS))
        if not last < len(found) <= len(self._columns):
            return None
        of = dict(zip(self._columns, found))
        cells = Cells(*(of.get(role, "") for role in USUAL))
        if not self._said:
            self._look_at(cells)
        if self._quotes:
            self._quoted += all(map(_is_quoted, cells[:2]))
            if any(_is_quoted(text) and '""' in text[1:-1] for text in cells[:2]):  # nothing else doubles them
                raise self._in_quotes()
        self._rows += 1
        return cells

    def _look_at(self, cells: Cells) -> None:
        self._numeric += _is_number_for_text(cells.source, cells.hypothesis)
        self._numeric_texts += _is_number_for_text(cells.hypothesis, cells.source)
        if cells.system:
            self._systems[cells.system] = self._systems.get(cells.system, 0) + 1

    def _in_quotes(self) -> KDPluginError:
        return KDPluginError(
            f'{self._where}: its fields are in quotes, as in CSV ("…"). Remedy: --format csv takes them off, --format '
            "tsv keeps them as text"
        )

    def check(self) -> None:
        """After the last row.

        Raises:
            KDPluginError: it looks like another table than source, hypothesis, score and system
        """
        if 2 * self._quoted > self._rows:
            raise self._in_quotes()
        if 2 * self._numeric > self._rows:
            raise KDPluginError(
                f"{self._where}: {self._numeric:,} of {self._rows:,} sources are numbers, as in Tatoeba's exports. "
                f"Remedy: {SAY}; for Tatoeba's pairs --columns _,source,_,hypothesis"
            )
        if 2 * self._numeric_texts > self._rows:
            raise KDPluginError(
                f"{self._where}: {self._numeric_texts:,} of {self._rows:,} translations are numbers. Remedy: {SAY}"
            )
        named = sum(self._systems.values())
        if named >= FEWEST_SYSTEMS and 2 * len(self._systems) > named:
            raise KDPluginError(
                f"{self._where}: {len(self._systems):,} different systems in {named:,} rows: its fourth column is "
                f"something else. Remedy: {SAY}"
            )


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and QUOTED.fullmatch(text) is not None


def _is_number_for_text(one: str, other: str) -> bool:
    return NUMBER.fullmatch(one) is not None and any(map(str.isalpha, other))
