"""CoNLL column files: a word per line with its columns, an empty line between sentences."""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.errors import KDPluginError

DOCUMENT = "-DOCSTART-"
COMMENT = re.compile(r"#(?: |\Z| *[\w-]+ *=)")  # CoNLL-U; a hashtag is a word
TAG = re.compile(r"([BIESLUMO])(?:-(.+))?")
SPACES = re.compile(r"[ \t]+")
REMEDY = "a word and its label on each line, --word-column and --label-column, or remove the line"


class TaggedSentence(NamedTuple):
    """A sentence. line: the number of its first line, from 1; words and labels, one label per word"""

    line: int
    words: List[str]
    labels: List[str]


class Columns(NamedTuple):
    """Which columns hold the word and its label: counted from 1; negative numbers count from the last, -1."""

    word: int = 1
    label: int = -1

    def pick(self, parts: List[str], column: int) -> Optional[str]:
        at = column - 1 if column > 0 else len(parts) + column
        return parts[at] if 0 <= at < len(parts) else None


class Reader:
    """Reads a column file, sentence by sentence, and counts what it meets.

    Columns are separated by tabs if the file's first word has a tab after it, else by spaces. A line of white space
    alone separates sentences, whatever the white space. Only spaces and tabs separate columns: other white space, such
    as a no-break space, is part of a word. A line of -DOCSTART- ends a sentence. A line that begins with # before a
    sentence is a comment, unless it has as many columns, separated by spaces, as the other lines, and one of their
    labels: then # is a word.

    Args:
        flag: that names the file, for messages
        columns: which to read
        remedy: for a line without a word or a label
    """

    def __init__(self, path: Path, flag: str, columns: Columns, remedy: str = REMEDY):
        self._path, self._flag, self._columns, self._remedy = path, flag, columns, remedy
        self.counts: Counter = Counter()
        self._separator: Optional[str] = None

    def __iter__(self) -> Iterator[TaggedSentence]:
        """
        Raises:
            KDPluginError: the file cannot be read, or a line, which is named, lacks a column
        """
        first, words, labels = 0, [], []  # type: ignore[var-annotated]
        lines = list(numbered_lines(self._path, self._flag, table=True))
        shapes = {self._shape(line) for _, line in lines if line.strip() and not line.startswith(("#", DOCUMENT))}
        for number, line in lines:
            document = line.startswith(DOCUMENT)
            if document or not line.strip():
                if words:
                    yield TaggedSentence(first, words, labels)
                elif not document:
                    self.counts["empty"] += 1
                self.counts["comments"] += document
                words, labels = [], []
                continue
            if not words and COMMENT.match(line) and "\t" not in line and self._shape(line) not in shapes:
                self.counts["comments"] += 1
                continue
            word, label = self._parsed(number, line)
            first = first if words else number
            words.append(word)
            labels.append(label)
        if words:
            yield TaggedSentence(first, words, labels)

    def _shape(self, line: str) -> Tuple[int, Optional[str]]:
        """The number of a line's columns and its label; no other line looks like one with tabs."""
        if "\t" in line:
            return 0, None
        parts = SPACES.split(line.strip(" "))
        return len(parts), self._columns.pick(parts, self._columns.label)

    def _parsed(self, number: int, line: str) -> Any:
        check_line_end(line, number, self._path, self._flag)
        if self._separator is None:
            self._separator = "\t" if "\t" in line else " "
        parts = line.split("\t") if self._separator == "\t" else SPACES.split(line.strip(" \t"))
        found = [self._columns.pick(parts, column) for column in self._columns]
        word, label = (None if one is None else one.strip(" \t") for one in found)
        if not word or not label or len(parts) < 2:
            raise KDPluginError(
                f"{self._flag} {self._path}, line {number}: {line[:60]!r} has no "
                f"{'word' if not word else 'label'} in column "
                f"{self._columns.word if not word else self._columns.label} of {len(parts)}. Remedy: "
                f"{self._remedy}"
            )
        if re.search(r"\s", label):
            raise KDPluginError(
                f"{self._flag} {self._path}, line {number}: the label {label!r} contains white space. Remedy: labels "
                f"without spaces; {self._remedy}"
            )
        return word, label


def check_line_end(line: str, number: int, path: Path, flag: str) -> None:
    """Refuses lines that end with CR alone, as on old Macs: the whole file would be one line.

    Raises:
        KDPluginError: naming the line
    """
    if "\r" in line:
        raise KDPluginError(
            f"{flag} {path}, line {number}: has a carriage return inside. Remedy: lines that end with LF or CR LF"
        )


def check_scheme(sentence: TaggedSentence, where: str) -> List[str]:
    """Refuses labels that are not of the scheme BIO, and names those that it does not allow where they stand.

    Returns:
        messages: of I-X that continue nothing (IOB1, or an error)

    Raises:
        KDPluginError: a label is neither O nor B-X nor I-X
    """
    stray, before = [], "O"
    for at, label in enumerate(sentence.labels):
        match = TAG.fullmatch(label)
        if match is None or (match.group(1) in "BI") != bool(match.group(2)) or match.group(1) not in "BIO":
            raise KDPluginError(
                f"{where}, line {sentence.line + at}: the label {label!r} is not of the form O, B-X or I-X. Remedy: "
                "convert the labels to BIO, or --labels-are any for labels that name no spans, such as parts of speech"
            )
        if label.startswith("I-") and before[2:] != label[2:]:
            stray.append(f"line {sentence.line + at}: {label} after {before}")
        before = label
    return stray


def repaired(labels: List[str]) -> List[str]:
    """BIO of labels where an I-X that continues nothing begins a span (IOB1): it becomes B-X."""
    found: List[str] = []
    for label in labels:
        before = found[-1] if found else "O"
        found.append(f"B-{label[2:]}" if label.startswith("I-") and before[2:] != label[2:] else label)
    return found


def counted(sentences: List[TaggedSentence]) -> Dict[str, int]:
    """How often each label occurs, most frequent first; ties in alphabetical order."""
    counts = Counter(label for sentence in sentences for label in sentence.labels)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
