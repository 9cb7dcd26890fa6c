"""Makes a folder for sequence tagging of CoNLL column files: symbols in input0/, labels in label/, binarised."""

import re
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from fairseq.data import Dictionary

from kd_plugin.corpus.conll import Columns, Reader, TaggedSentence, check_scheme, counted, repaired
from kd_plugin.corpus.dictionaries import load_dictionary
from kd_plugin.corpus.labels import FILLERS, label_names, shown
from kd_plugin.corpus.pieces import Pieces, read_pieces
from kd_plugin.corpus.tagging_folder import check_free, write_folder
from kd_plugin.corpus.words import SPACE, Words
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of
from kd_plugin.files.protection import Named, check_outputs

SPECIAL = ("<s>", "<pad>", "</s>", "<mask>", "<unk>")  # of fairseq's dictionaries
IN_WORDS = re.compile(r"\s+")


class TaggingOptions(NamedTuple):
    """The options of `kd-plugin prepare-tagging`."""

    train: Optional[str]
    valid: Optional[str]
    test: Optional[str]
    output: str
    word_column: int
    label_column: int
    labels_are: str
    repair: bool
    sentencepiece_model: Optional[str]
    dictionary: Optional[str]
    label_dictionary: Optional[str]
    threshold: int
    inputs: List[Named]


def prepare_tagging(options: TaggingOptions) -> str:
    """Writes the folder; returns what it holds, for the user.

    Raises:
        KDPluginError: a file cannot be read or has a wrong line, labels are no BIO, a label or a word of a later split
            cannot be written, or the folder exists with other content
    """
    files = {name: getattr(options, name) for name in ("train", "valid", "test") if getattr(options, name)}
    if not files:
        raise KDPluginError("nothing to prepare. Remedy: --train FILE, --valid FILE or --test FILE")
    if "train" not in files and not (options.label_dictionary and (options.dictionary or options.sentencepiece_model)):
        raise KDPluginError(
            "without --train, symbols and labels are unknown. Remedy: --dict and --label-dict of the folder that the "
            "model was trained on"
        )
    check_outputs(options.inputs, [("--output", options.output)])
    check_free(options.output)
    read = {name: _Split(name, Path(path), options) for name, path in files.items()}
    segmenter = _Segmenter(options)
    lines = {name: [segmenter.symbols(one.words) for one in split.sentences] for name, split in read.items()}
    symbols = segmenter.dictionary(lines.get("train", []))
    labels = _label_dictionary(options, read)
    segmenter.check(symbols, read, lines)
    _check_labels(labels, read, options)
    report = [split.report() for split in read.values()]
    report += segmenter.report(symbols, lines)
    report.append(f"labels: {', '.join(label_names(labels))}")
    tags = {name: [one.labels for one in split.sentences] for name, split in read.items()}
    job = digest_of(list(map(str, options[: TaggingOptions._fields.index("inputs")])))
    write_folder(options.output, job, {"input0": (symbols, lines), "label": (labels, tags)})
    return "\n".join([*report, f"{options.output}: written. Train with --task distillation_sequence_tagging"])


class _Split:
    """A file that has been read and checked."""

    def __init__(self, name: str, path: Path, options: TaggingOptions):
        self.name, self.flag = name, f"--{name}"
        self.path = path
        reader = Reader(path, self.flag, Columns(options.word_column, options.label_column))
        self.sentences: List[TaggedSentence] = list(reader)
        self.counts = reader.counts
        if not self.sentences:
            raise KDPluginError(f"{self.flag} {path}: has no sentence. Remedy: a file with words and labels")
        if options.labels_are == "bio":
            stray = [text for one in self.sentences for text in check_scheme(one, f"{self.flag} {path}")]
            if stray and not options.repair:
                raise KDPluginError(
                    f"{self.flag} {path}: {len(stray):,} labels continue a span that has not begun, such as "
                    f"{stray[0]}. Remedy: --repair makes them B-X, as IOB1 means them; or --labels-are any"
                )
            self.counts["repaired"] = len(stray)
            self.sentences = [one._replace(labels=repaired(one.labels)) for one in self.sentences]

    def report(self) -> str:
        """A line about it, with what was left out or changed."""
        words = sum(len(one.words) for one in self.sentences)
        spaces = sum(bool(IN_WORDS.search(word)) for one in self.sentences for word in one.words)
        more = {
            "further empty lines skipped": self.counts["empty"],
            "comments skipped": self.counts["comments"],
            "labels repaired": self.counts["repaired"],
            "words with white space inside, which is left out": spaces,
        }
        told = "".join(f"; {number:,} {what}" for what, number in more.items() if number)
        found = ", ".join(f"{label} {number:,}" for label, number in list(counted(self.sentences).items())[:20])
        return f"{self.name}: {len(self.sentences):,} sentences, {words:,} words ({found}){told}"


def word_pieces(encode: Callable[[str], List[str]], word: str) -> List[str]:
    """The pieces of a word, of which exactly the first begins with the mark.

    Segmented by itself, because a normalisation may remove a word or make two of it.

    Args:
        encode: a sentencepiece model's segmentation of text
    """
    found = encode(IN_WORDS.sub("", word))
    while sum(piece.startswith(SPACE) for piece in found) > 1:  # normalised into several words
        found = encode("".join(found).replace(SPACE, ""))
    if not found or not found[0].startswith(SPACE):
        found = [SPACE, *found]
    return found


def whole_word(word: str) -> str:
    """The symbol of a word without a model; nothing, or the name of a special symbol, is unknown."""
    text = IN_WORDS.sub("", word)
    return text if text and text not in SPECIAL else SPECIAL[-1]


class _Segmenter:
    """Makes symbols of words: pieces of a sentencepiece model, or the words themselves."""

    def __init__(self, options: TaggingOptions):
        self._options = options
        self._pieces: Optional[Pieces] = None
        if options.sentencepiece_model:
            self._pieces = read_pieces(Path(options.sentencepiece_model), "--sentencepiece-model")
        self._known: Dict[str, List[str]] = {}
        self._vanished: Counter = Counter()

    def symbols(self, words: Iterable[str]) -> List[str]:
        """The symbols of a sentence."""
        return [symbol for word in words for symbol in self._of_word(word)]

    def _of_word(self, word: str) -> List[str]:
        if word not in self._known:
            self._known[word] = [whole_word(word)] if self._pieces is None else word_pieces(self._pieces.encode, word)
        if self._known[word] == [SPACE]:
            self._vanished[word] += 1
        return self._known[word]

    def dictionary(self, lines: Sequence[List[str]]) -> Dictionary:
        """The dictionary of the symbols: a given one, all pieces of the model, or the words of the training."""
        if self._options.dictionary:
            return load_dictionary(self._options.dictionary)
        dictionary = Dictionary()
        counts = Counter(symbol for line in lines for symbol in line)
        if self._pieces is None:
            for symbol, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
                if count >= self._options.threshold and symbol not in SPECIAL:
                    dictionary.add_symbol(symbol, n=count)
            return dictionary
        for piece in self._pieces.symbols:
            dictionary.add_symbol(piece, n=max(1, counts[piece]))
        return dictionary

    def check(self, dictionary: Dictionary, read: Dict[str, "_Split"], lines: Dict[str, List[List[str]]]) -> None:
        """Refuses a dictionary in which words can no longer be told apart."""
        words = Words(dictionary, "every" if self._pieces is None else "sentencepiece")
        for name, split in read.items():
            for sentence, symbols in zip(split.sentences, lines[name]):
                indices = torch.tensor([dictionary.index(symbol) for symbol in symbols]).numpy()
                found = int(words.starts(indices).sum())
                if found != len(sentence.words):
                    raise KDPluginError(
                        f"{split.flag} {split.path}, line {sentence.line}: its {len(sentence.words)} words become "
                        f"{found} in the dictionary, because it lacks pieces that begin a word. Remedy: a dictionary "
                        f"with the model's pieces, in particular {SPACE}"
                    )

    def report(self, dictionary: Dictionary, lines: Dict[str, List[List[str]]]) -> List[str]:
        """Lines about symbols: how many there are, how many are unknown, which words vanish."""
        told = [f"symbols: {len(dictionary) - dictionary.nspecial:,}"]
        for name, sentences in lines.items():
            total = sum(map(len, sentences))
            unknown = sum(dictionary.index(symbol) == dictionary.unk() for one in sentences for symbol in one)
            told.append(f"{name}: {total:,} symbols, {unknown:,} unknown ({unknown / max(1, total):.2%})")
        if self._vanished:
            some = ", ".join(repr(word) for word, _ in self._vanished.most_common(5))
            told.append(
                f"{sum(self._vanished.values()):,} words of which the sentencepiece model leaves nothing ({some}): "
                f"each is the symbol {SPACE} alone"
            )
        return told


def _label_dictionary(options: TaggingOptions, read: Dict[str, _Split]) -> Dictionary:
    if options.label_dictionary:
        return load_dictionary(options.label_dictionary)
    dictionary = Dictionary()
    for label, count in counted(read["train"].sentences).items():
        dictionary.add_symbol(label, n=count)
    return dictionary


def _check_labels(labels: Dictionary, read: Dict[str, _Split], options: TaggingOptions) -> None:
    """Refuses labels that a model of this dictionary cannot learn or predict."""
    known = set(label_names(labels))
    for split in read.values():
        unknown: List[Tuple[int, str]] = [
            (one.line + at, label)
            for one in split.sentences
            for at, label in enumerate(one.labels)
            if label not in known
        ]
        if unknown:
            names = sorted({label for _, label in unknown})
            reserved = [name for name in names if name in SPECIAL or name.startswith(FILLERS)]
            if reserved:
                line = next(line for line, label in unknown if label in reserved)
                raise KDPluginError(
                    f"{split.flag} {split.path}, line {line}: the label {shown(reserved)} has a name that "
                    "fairseq's dictionaries reserve. Remedy: another name"
                )
            source = options.label_dictionary or "the training file"
            raise KDPluginError(
                f"{split.flag} {split.path}, line {unknown[0][0]}: {source} has no label {shown(names)}. Remedy: the "
                "same labels in all files"
            )
