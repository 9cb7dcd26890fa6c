"""The text to translate: a raw text file, or a split binarised by fairseq-preprocess; equal lines form one group."""

import abc
import hashlib
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Union

import numpy as np
from fairseq import utils
from fairseq.data import Dictionary

from kd_plugin.cache.data import Split
from kd_plugin.corpus.binarised import check_ids, open_indexed
from kd_plugin.corpus.dictionaries import load_dictionary
from kd_plugin.corpus.raw_text import TextLines
from kd_plugin.corpus.subword_checks import Marks
from kd_plugin.corpus.subwords import Subwords
from kd_plugin.errors import KDPluginError
from kd_plugin.files.sharded_folder import Plan
from kd_plugin.runners.progress import progress

HASH_BYTES = 16  # per line: among 10^9 lines, a collision has a probability of about 10^-21


class Sentence(NamedTuple):
    """A source sentence: its text as it will be written, and its symbols without end of sentence."""

    text: str
    tokens: List[str]


class Source(abc.ABC):
    """Numbered lines.

    Args:
        hashes: of all lines, HASH_BYTES each
        description: what identifies this source, without its number of lines
    """

    def __init__(self, hashes: Union[bytes, bytearray], description: Dict[str, Any]):
        self.hashes = np.frombuffer(hashes, dtype=f"V{HASH_BYTES}")
        self._description = description

    def __len__(self) -> int:
        return len(self.hashes)

    def identity(self) -> Dict[str, Any]:
        return {**self._description, "lines": len(self)}

    @abc.abstractmethod
    def read(self, lines: Sequence[int]) -> Iterator[Sentence]:
        """Sentences by their numbers, from 0."""


class TextSource(Source):
    """A UTF-8 file with one sentence per line; only LF and CR LF end a line.

    Keeps only the lines' positions and hashes in memory, 24 bytes per line, and as much again during grouping.

    Args:
        subwords: of the source language
    """

    def __init__(self, path: str, subwords: Subwords):
        self._subwords, self.marks, hashes = subwords, Marks(), bytearray()

        def seen(text: str) -> None:
            hashes.extend(_hash(text.encode("utf-8")))
            self.marks.add(text)

        self._lines = TextLines(Path(path), "--input", seen)
        super().__init__(hashes, {"text_sha256": self._lines.sha256, "subwords": subwords.identity()})

    def read(self, lines: Sequence[int]) -> Iterator[Sentence]:
        for line in lines:
            text = self._lines[line].replace("\r", " ")
            tokens = self._subwords.encode(text)
            # text that is already segmented is joined, as its translation will be
            yield Sentence(self._subwords.decode(tokens) if self._subwords.joins else text, tokens)


class BinarisedSource(Source):
    """The source side of a split in fairseq's format."""

    def __init__(self, data: str, split: str, languages: Sequence[str], dictionary: Dictionary, subwords: Subwords):
        source_lang, target_lang = languages
        prefix = source_prefix(data, split, source_lang, target_lang)
        self._dictionary, self._subwords = dictionary, subwords
        stored = load_dictionary(str(_dictionary_path(Path(data), source_lang)))
        if stored.symbols != dictionary.symbols:
            index = next((i for i, (a, b) in enumerate(zip(stored.symbols, dictionary.symbols)) if a != b), None)
            raise KDPluginError(
                f"{data}: its {source_lang} dictionary ({len(stored)} symbols) is not the model's "
                f"({len(dictionary)} symbols); first difference: "
                + (f"index {index}, {stored[index]!r} and {dictionary[index]!r}" if index is not None else "the size")
                + ". Remedy: binarise the data with the model's dictionary (fairseq-preprocess --srcdict)"
            )
        self._dataset = open_indexed(prefix, dictionary)
        digest, hashes = hashlib.sha256(), bytearray()
        for index in progress(range(len(self._dataset)), None, "reading", "line"):
            sentence = self._dataset[index]
            check_ids(sentence, dictionary, prefix)
            content = sentence.numpy().tobytes()
            digest.update(len(content).to_bytes(8, "little") + content)
            hashes += _hash(content)
        super().__init__(hashes, {"tokens_sha256": digest.hexdigest(), "subwords": subwords.identity()})

    def read(self, lines: Sequence[int]) -> Iterator[Sentence]:
        """As Source.read; symbols that were missing from the dictionary at binarisation are <unk>."""
        for line in lines:
            indices = self._dataset[int(line)].tolist()
            tokens = [self._dictionary[index] for index in indices if index != self._dictionary.eos()]
            yield Sentence(self._subwords.decode(tokens), tokens)


class JoinedSource(Source):
    """Several sources, concatenated."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = list(sources)
        self._starts = np.cumsum([0, *map(len, self._sources)])
        hashes = b"".join(source.hashes.tobytes() for source in self._sources)
        super().__init__(hashes, {"parts": [source.identity() for source in self._sources]})

    def read(self, lines: Sequence[int]) -> Iterator[Sentence]:
        for line in lines:
            part = int(np.searchsorted(self._starts, line, side="right")) - 1
            yield from self._sources[part].read([line - int(self._starts[part])])


def data_folders(data: str, split: str) -> List[str]:
    """The folders of A:B:C that hold a part of a split: all of them for training splits, the first for others, as in
    fairseq.

    If `data` as a whole is a folder (with a colon in its name), it is the only one.
    """
    folders = [data] if Path(data).is_dir() else utils.split_paths(data)
    return folders if split.startswith("train") else folders[:1]


def open_binarised(
    data: str, split: str, languages: Sequence[str], dictionary: Dictionary, subwords: Subwords
) -> Source:
    """The source side of a split in one or more folders, A:B:C."""
    sources = [BinarisedSource(each, split, languages, dictionary, subwords) for each in data_folders(data, split)]
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def source_prefix(data: str, split: str, source_lang: str, target_lang: str) -> str:
    """The prefix of a split's source files; it needs no target (fairseq-preprocess --only-source)."""
    for pair in (f"{source_lang}-{target_lang}", f"{target_lang}-{source_lang}", f"{source_lang}-None"):
        prefix = str(Path(data) / f"{split}.{pair}.{source_lang}")
        if any(Path(f"{prefix}{end}").is_file() for end in (".idx", ".bin", "")):
            return prefix
    files = Split(data, split, source_lang, target_lang).files()[0]  # raises and says what is missing
    return str(files[0])


def _dictionary_path(data: Path, language: str) -> Path:
    for path in (data / f"dict.{language}.txt", data / "dict.txt"):
        if path.is_file():
            return path
    raise KDPluginError(f"{data}: contains no dict.{language}.txt. Remedy: the folder that fairseq-preprocess made")


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()


class Groups(NamedTuple):
    """Groups of lines with the same source, ordered by their first line.

    Args:
        lines: (lines,) int64, group by group, ascending within each
        starts: (groups + 1,) int64, where each group begins in `lines`
    """

    lines: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def ids(self, group: int) -> List[int]:
        return list(map(int, self.lines[self.starts[group] : self.starts[group + 1]]))


def group_equal(hashes: np.ndarray) -> Groups:
    """Groups of lines with equal hashes, ordered by their first line. hashes: (lines,) of a void dtype"""
    if len(hashes) == 0:
        return Groups(np.zeros(0, np.int64), np.zeros(1, np.int64))
    words = hashes.view(np.uint64).reshape(len(hashes), -1)
    order = np.lexsort(words.T)  # stable: equal lines stay in their order
    ordered = words[order]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    begins = np.flatnonzero(new)
    counts = np.diff(np.append(begins, len(order)))
    by_first = np.argsort(order[begins], kind="stable")
    begins, counts = begins[by_first], counts[by_first]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    within = np.arange(len(order)) - np.repeat(starts[:-1], counts)
    return Groups(order[np.repeat(begins, counts) + within].astype(np.int64), starts)


def shares(groups: Groups, shard_sentences: int) -> List[Plan]:
    """Shards of `shard_sentences` groups each."""
    firsts = range(0, len(groups), shard_sentences)
    ends = [min(first + shard_sentences, len(groups)) for first in firsts]
    return [Plan(number, first, end, end - first) for number, (first, end) in enumerate(zip(firsts, ends))]
