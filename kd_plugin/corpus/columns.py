"""Which column of a table of translations is what: as --columns says it, as a first line does, or as usual.

What nobody says is not guessed: a table that looks like something else is refused with the flag to say it.
"""

import re
from collections import Counter
from typing import List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.corpus.column_languages import NAMED, language_of
from kd_plugin.corpus.column_looks import NUMBER, SAY, Looks
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
# words that names of columns are made of, whatever they may mean
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


def usual_meaning(name: str, languages: Sequence[str]) -> Optional[str]:
    """The role of a column or key of this name, which may be the language's code; None for any other text."""
    name = re.sub(r"[\s-]+", "_", _bare(name).lower())
    codes = [code.lower().replace("-", "_") for code in languages]
    if name and name in codes:
        return (SOURCE, HYPOTHESIS)[codes.index(name)]
    return MEANING.get(name)


def meaning(name: str, languages: Sequence[str]) -> Optional[str]:
    """The role of a column that a first line calls so: by a usual name, or by words and languages, as in en_text.

    Returns:
        "": a name of a column, but no role's; None: any other text
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
    """Whether texts of these roles name columns: a pair such as No, no or German, Deutsch is one of translations."""
    texts = [name.strip().lower() for name in names]
    if None in roles or len(set(texts)) < 2:
        return False
    if all(text in NAMED for text in texts) and len(set(map(language_of, texts))) < 2:
        return False
    return "in" not in texts or "out" in texts  # a word like any other


class Table:
    """Rows of cells to what they mean.

    Args:
        where: for errors
        columns: of parse_columns; None: nobody says
        languages: source, target
        quotes: marks that fields are refused in, because they would keep them
    """

    def __init__(self, where: str, columns: Optional[Sequence[str]], languages: Sequence[str], quotes: str):
        self._where, self._languages, self._quotes = where, languages, quotes
        self._said, self._columns = columns is not None, list(columns or USUAL)
        self._rows = 0
        self._quoted: Counter[Tuple[str, str]] = Counter()  # by the mark and by the column, or both of them
        self._looks = Looks(where, SAY)

    def takes_as_header(self, cells: Sequence[str]) -> bool:
        """Whether the first row names the columns; it is then gone by, unless --columns says otherwise.

        Raises:
            KDPluginError: it names columns, but not which of them are source and hypothesis, or others than --columns
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
            raise self._names(cells, "--columns in its order, or take the line out")
        return True

    def _names(self, cells: Sequence[str], remedy: str) -> KDPluginError:
        return KDPluginError(f"{self._where}, line 1: names columns: {', '.join(cells)}. Remedy: {remedy}")

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
            self._looks.add(cells.source, cells.hypothesis, cells.system)
        self._look_for_quotes(cells)
        self._rows += 1
        return cells

    def _look_for_quotes(self, cells: Cells) -> None:
        for mark in self._quotes:
            quoted = [len(text) > 1 and QUOTED[mark].fullmatch(text) is not None for text in cells[:2]]
            if mark == '"' and any(q and '""' in text[1:-1] for q, text in zip(quoted, cells)):  # nothing else does so
                raise self._in_quotes(mark)
            self._quoted[mark, "both"] += all(quoted)
            for name, is_quoted, other in zip(USUAL, quoted, (cells.hypothesis, cells.source)):
                # quotations have marks on both sides
                self._quoted[mark, name] += is_quoted and not other.startswith(tuple(QUOTATION_MARKS))

    def _in_quotes(self, mark: str) -> KDPluginError:
        what, remedy = (
            ('in quotes, as in CSV ("…")', "--format csv takes them off, --format tsv keeps them as text")
            if mark == '"'
            else ("in single quotes ('…')", "take them off; --format with its name keeps them as text")
        )
        return KDPluginError(f"{self._where}: its fields are {what}. Remedy: {remedy}")

    def check(self) -> None:
        """After the last row: refuse columns that look like something else."""
        for mark in self._quotes:
            of_one = max(self._quoted[mark, SOURCE], self._quoted[mark, HYPOTHESIS])
            if 2 * self._quoted[mark, "both"] > self._rows or of_one == self._rows > 1:
                raise self._in_quotes(mark)
        self._looks.check()
