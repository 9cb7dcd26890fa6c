"""Which column of a table of translations is what: as --columns says it, as a first line does, or as usual.

What nobody says is not guessed: a table that looks like something else is refused with the flag to say it.
"""

import re
from collections import Counter
from typing import List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.corpus.languages import amount, may_be_the_same
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
# the commonest languages: codes of ISO 639, then names
_LANGUAGES = """
ar ara arabic|bg bul bulgarian|bn ben bengali bangla|ca cat catalan català|cs ces cze czech čeština
da dan danish dansk|de deu ger german deutsch|el ell gre greek ελληνικά|en eng english|es spa spanish español
et est estonian eesti|fa fas per persian farsi|fi fin finnish suomi|fr fra fre french français
gu guj gujarati|ha hau hausa|he heb hebrew|hi hin hindi|hr hrv croatian hrvatski|hu hun hungarian magyar
id ind indonesian|is isl ice icelandic|it ita italian italiano|ja jpn japanese 日本語|ko kor korean 한국어
lt lit lithuanian|lv lav latvian|mr mar marathi|ms msa may malay|nl nld dut dutch nederlands
no nor nb nob norwegian norsk|pl pol polish polski|pt por portuguese português|ro ron rum romanian română
ru rus russian русский|sk slk slo slovak|sl slv slovenian slovene|sr srp serbian|sv swe swedish svenska
sw swa swahili|ta tam tamil|te tel telugu|th tha thai|tr tur turkish türkçe|uk ukr ukrainian українська
ur urd urdu|vi vie vietnamese|zh zho chi cmn chinese 中文
"""
_NAMED = {name: names.split()[0] for names in re.split("[|\n]", _LANGUAGES) for name in names.split()}
COUNTRY = re.compile(r"(?i)\b([a-z]{2,3})[-_](?:[a-z]{4}[-_])?(?:[a-z]{2}|latn|cyrl|arab|deva|hans|hant)\b")
NUMBER = re.compile(r"\s*[-+]?\d+(?:[.,]\d+)*\s*")
QUOTED = {'"': re.compile(r'"(?:[^"]|"")*"'), "'": re.compile(r"'.*\S.*'", re.DOTALL)}
QUOTATION_MARKS = "\"'„“”«»‹›‚‘’「『"
ENDS_SENTENCE = re.compile(r"[.!?…。！？]['\"”“»]?\s*$")
SAY = "say which column is what: --columns source,hypothesis,score (in the file's order, _ for one to leave out)"
SIDES = ("sources", "translations")
FEWEST_SYSTEMS = 4
FEWEST_OF_A_LABEL = 4
FEWEST_WORDS = 4  # of a text that ends without a full stop


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


def language_of(name: str) -> str:
    """One spelling for all of a common language's: its code of two letters; any other one's first part."""
    first = re.split(r"[\W_]", name.strip().lower())[0]
    return _NAMED.get(first, first)


def other_language(said: str, expected: str) -> bool:
    """Whether a code or an English name cannot mean the language of this code."""
    one, other = language_of(said), language_of(expected)
    if one in _NAMED and other in _NAMED:
        return one != other
    return bool(one) and not may_be_the_same(said.strip(), expected)


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
        elif word not in WORDS and not (word in _NAMED and len(word) > 3):
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
    if all(text in _NAMED for text in texts) and len(set(map(language_of, texts))) < 2:
        return False
    return "in" not in texts or "out" in texts  # a word like any other


class Looks:
    """What the rows look like together; nothing is wrong with any one of them.

    Args:
        where: for errors
        remedy: what to do where they look like something else
        fewest: rows from which on numbers are too many
    """

    def __init__(self, where: str, remedy: str, fewest: int = 1):
        self._where, self._remedy, self._fewest = where, remedy, fewest
        self._rows = 0
        self._labels, self._numbers = [0, 0], [0, 0]
        self._first: List[str] = []
        self._same, self._amounts = [True, True], [0.0, 0.0]
        self._systems: Counter[str] = Counter()

    def add(self, source: str, hypothesis: str, system: str) -> None:
        self._rows += 1
        pair = (source, hypothesis)
        self._first = self._first or list(pair)
        for side, (one, other) in enumerate((pair, pair[::-1])):
            self._numbers[side] += _is_number_for_text(one, other)
            self._labels[side] += _is_number_for_text(one, other) or _is_identifier_for_text(one, other)
            self._same[side] &= one == self._first[side]
            self._amounts[side] += amount("".join(one.split()))
        if system:
            self._systems[system] += 1

    def check(self) -> None:
        """After the last row: refuse columns that look like something else."""
        for side, what in enumerate(SIDES):
            if 2 * self._numbers[side] > self._rows >= self._fewest:
                raise self._error(f"{self._numbers[side]:,} of {self._rows:,} {what} are numbers", tatoeba=not side)
        named, different = sum(self._systems.values()), len(self._systems)
        sentences = sum(map(_is_sentence, self._systems))
        if 2 * different > named and (named >= FEWEST_SYSTEMS or different > 1 and 2 * sentences > different):
            raise self._error(f"{different:,} different systems in {named:,} rows: what names them is something else")
        for side, what in enumerate(SIDES):
            if 2 * self._labels[side] > self._rows >= max(2, self._fewest):
                raise self._error(f"{self._labels[side]:,} of {self._rows:,} {what} are numbers or identifiers")
            if self._rows >= FEWEST_OF_A_LABEL and self._same[side] and self._is_label(side):
                raise self._error(f"all {self._rows:,} {what} are {self._first[side]!r}")

    def _is_label(self, side: int) -> bool:
        """Whether what is the same in all rows is far too short for what stands beside it."""
        label = self._first[side]
        each = self._amounts[1 - side] / self._rows
        return len(label.split()) == 1 and not self._same[1 - side] and each > max(2.5, 2 * amount(label))

    def _error(self, what: str, tatoeba: bool = False) -> KDPluginError:
        like, remedy = "", self._remedy
        if tatoeba and remedy == SAY:
            like, remedy = ", as in Tatoeba's exports", f"{SAY}; for Tatoeba's pairs --columns _,source,_,hypothesis"
        return KDPluginError(f"{self._where}: {what}{like}. Remedy: {remedy}")


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


def _is_number_for_text(one: str, other: str) -> bool:
    return NUMBER.fullmatch(one) is not None and any(map(str.isalpha, other))


def _is_identifier_for_text(one: str, other: str) -> bool:
    """sent_0001, #7, 7., a UUID."""
    is_one = one.isascii() and len(one.split()) == 1 and any(map(str.isdigit, one))
    return is_one and any(map(str.isalpha, other)) and (len(other.split()) > 1 or not other.isascii())


def _is_sentence(name: str) -> bool:
    """Whether what should name a system is a text: not nllb 600M, opus-mt or GPT 4."""
    words = name.split()
    if len(words) < 2:
        return ENDS_SENTENCE.search(name) is not None and not name.isascii()
    return ENDS_SENTENCE.search(name) is not None or len(words) >= FEWEST_WORDS and not any(map(str.isdigit, name))
