"""Test sets with labels: raw text beside labels, column files of tagged words, and binarised folders."""

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np

from kd_plugin.corpus.binarised import open_indexed
from kd_plugin.corpus.conll import Columns, Reader
from kd_plugin.corpus.dictionaries import load_dictionary
from kd_plugin.corpus.labelled_folder import LabelledSplit, load_input_dictionary, tokens_of
from kd_plugin.corpus.labels import label_names
from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.corpus.words import AUTO, Words, rule_of
from kd_plugin.errors import KDPluginError

CLASSES, TAGS, NUMBERS = "classification", "tagging", "regression"
KINDS = (CLASSES, TAGS, NUMBERS)
FORMS = {
    CLASSES: "TEXT,LABELS or FOLDER,SPLIT",
    TAGS: "COLUMNS or FOLDER,SPLIT",
    NUMBERS: "TEXT,NUMBERS or FOLDER,SPLIT",
}


class LabelledTest(NamedTuple):
    """A test set.

    Args:
        texts: of its sentences
        words: of each sentence, for tagging; otherwise empty
        labels: of each sentence: one class, a tag for each word, or nothing where numbers are predicted
        numbers: (sentences,) where they are predicted
        symbols: of each sentence, with the end of sentence, in a binarised folder; None: raw text
        starts: in a binarised folder, the places of each sentence's words among its symbols
    """

    name: str
    texts: List[str]
    words: List[List[str]]
    labels: List[List[str]]
    numbers: Optional[np.ndarray] = None
    symbols: Optional[List[List[str]]] = None
    starts: Optional[List[np.ndarray]] = None

    def __len__(self) -> int:  # type: ignore[override]  # of the test set, not of the tuple
        return len(self.texts)


def read_test(name: str, value: str, kind: str, word_start: str) -> LabelledTest:
    """A test set of --test NAME=VALUE.

    Args:
        kind: one of KINDS
        word_start: --word-start, for tagging in a binarised folder

    Raises:
        KDPluginError: VALUE has another form, a file cannot be read, its parts differ in length, or it is empty
    """
    flag, (first, comma, second) = f"--test {name}={value}", value.partition(",")
    if comma and Path(first).is_dir():
        test = _from_folder(name, first, second, kind, word_start, flag)
    elif kind == TAGS and not comma:
        test = _from_columns(name, Path(first))
    elif kind != TAGS and comma:
        test = _from_lines(name, Path(first), Path(second), kind)
    else:
        raise KDPluginError(f"{flag}: is not NAME={FORMS[kind]}, as --task {kind} needs it. Remedy: one of these forms")
    if not len(test):
        raise KDPluginError(f"{flag}: has no sentence. Remedy: another file")
    return test


def _from_lines(name: str, text: Path, labels: Path, kind: str) -> LabelledTest:
    texts, lines = ([line for _, line in numbered_lines(path, "--test")] for path in (text, labels))
    if len(texts) != len(lines):
        raise KDPluginError(
            f"--test {name}: {len(texts):,} lines in {text}, but {len(lines):,} in {labels}; nothing was scored. "
            "Remedy: one label per sentence"
        )
    if kind == NUMBERS:
        return LabelledTest(name, texts, [], [[] for _ in texts], _numbers(lines, labels))
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise KDPluginError(f"--test {name}: {labels}, line {number}: has no label. Remedy: one label per sentence")
    return LabelledTest(name, texts, [], [[line.strip()] for line in lines])


def _numbers(lines: Sequence[str], path: Path) -> np.ndarray:
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(float(line))
        except ValueError:
            found.append(float("nan"))
        if not np.isfinite(found[-1]):
            shown = repr(line.strip()[:40])
            raise KDPluginError(f"--test {path}, line {number}: {shown} is not a number. Remedy: one per line")
    return np.array(found)


def _from_columns(name: str, path: Path) -> LabelledTest:
    """Words in the first column, tags in the last, read as prepare-tagging does."""
    remedy = "a word and its tag on each line, the word in the first column and the tag in the last, or remove the line"
    found = list(Reader(path, f"--test {name}:", Columns(), remedy))
    return LabelledTest(
        name, [" ".join(one.words) for one in found], [one.words for one in found], [one.labels for one in found]
    )


def _from_folder(name: str, folder: str, split: str, kind: str, word_start: str, flag: str) -> LabelledTest:
    data, dictionary = LabelledSplit(folder, split), load_input_dictionary(folder)
    if not data.has("input0"):
        raise KDPluginError(f"{flag}: {data.prefix('input0')}.bin does not exist. Remedy: one of the folder's splits")
    if data.has("input1"):
        raise KDPluginError(f"{flag}: has pairs of sentences (input1), which are not scored here. Remedy: input0 only")
    sentences = [tokens_of(one, at) for one in data.open(dictionary) for at in range(len(one))]
    words = Words(dictionary, rule_of(word_start if kind == TAGS else AUTO, dictionary.symbols[dictionary.nspecial :]))
    found = [words.words(tokens, "\u2047") for tokens in sentences]  # as sentencepiece shows unknown characters
    symbols = [[dictionary.symbols[index] for index in tokens] for tokens in sentences]
    parts: Dict[str, Any] = {
        "texts": [" ".join(one) for one in found],
        "words": found if kind == TAGS else [],
        "labels": [[] for _ in found],
        "symbols": symbols,
        "starts": [np.flatnonzero(words.starts(tokens)) for tokens in sentences],
    }
    if kind == NUMBERS:
        path = Path(folder) / "label" / f"{split}.label"
        parts["numbers"] = _numbers([line for _, line in numbered_lines(path, "--test")], path)
        _check_number(len(parts["numbers"]), len(found), flag)
        return LabelledTest(name, **parts)
    labels = load_dictionary(str(Path(folder) / "label" / "dict.txt"))
    if not data.has("label"):
        raise KDPluginError(f"{flag}: {data.prefix('label')}.bin does not exist. Remedy: a split with labels")
    known = set(label_names(labels))
    dataset = open_indexed(data.prefix("label"), labels)
    _check_number(len(dataset), len(found), flag)
    for at in range(len(dataset)):
        tokens = [labels.symbols[index] for index in tokens_of(dataset, at) if index != labels.eos()]
        expected = len(found[at]) if kind == TAGS else 1
        if len(tokens) != expected or not known.issuperset(tokens):
            raise KDPluginError(
                f"{flag}: sentence {at + 1} has {len(tokens)} labels, {expected} expected (--task {kind}, --word-start "
                f"{words.word_start}). Remedy: the right --task, the right --word-start, or a folder that is complete"
            )
        parts["labels"][at] = tokens
    return LabelledTest(name, **parts)


def _check_number(labels: int, sentences: int, flag: str) -> None:
    if labels != sentences:
        raise KDPluginError(f"{flag}: {sentences:,} sentences, but {labels:,} labels. Remedy: a complete folder")
