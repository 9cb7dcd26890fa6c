#!/usr/bin/env python3
"""Subwords, dictionary and binarised data of a classification corpus, and unlabelled text made of its own words.

    prepare.py CORPUS OUT [--vocab 4000] [--unlabelled 10000] [--seed 1]

CORPUS holds train.tsv, dev.tsv and test.tsv (or .tsv.gz): a sentence, a tab and its label in each line. OUT gets
SPLIT.tsv, SPLIT.text and SPLIT.label, spm.model, data-bin/ for fairseq's sentence_prediction and, in unlabelled-bin/,
sentences that nobody has labelled: pieces of training sentences with some words exchanged (Tang et al. 2019,
https://arxiv.org/abs/1903.12136). They are no good English, but a teacher can say what it thinks of them.
"""

import argparse
import collections
import gzip
import pathlib
import random
import shutil
from typing import Dict, List, Tuple

import sentencepiece
from fairseq import options
from fairseq_cli import preprocess

SPLITS = ("train", "dev", "test")
NEIGHBOURS = Dict[Tuple[str, str], List[str]]


def read(folder: pathlib.Path, split: str, names: Dict[str, str]) -> List[Tuple[str, str]]:
    path = folder / f"{split}.tsv"
    data = path.read_bytes() if path.is_file() else gzip.decompress((folder / f"{split}.tsv.gz").read_bytes())
    rows = [line.rpartition("\t") for line in data.decode("utf-8").split("\n") if line.strip()]
    return [(text, names.get(label, label)) for text, _, label in rows]


def neighbours(sentences: List[List[str]]) -> NEIGHBOURS:
    """The words that occur between two words."""
    found = collections.defaultdict(list)
    for words in sentences:
        around = ["", *words, ""]
        for at in range(1, len(around) - 1):
            found[around[at - 1], around[at + 1]].append(around[at])
    return found


def invent(sentences: List[List[str]], between: NEIGHBOURS, draw: random.Random, exchange: float) -> str:
    """A piece of a sentence, some of whose words are exchanged for others that occur between the same two."""
    words = list(draw.choice(sentences))
    if draw.random() < 0.5 and len(words) > 4:
        length = draw.randint(4, len(words))
        begin = draw.randint(0, len(words) - length)
        words = words[begin : begin + length]
    around = ["", *words, ""]
    for at in range(1, len(around) - 1):
        if draw.random() < exchange:
            around[at] = draw.choice(between.get((around[at - 1], around[at + 1]), [around[at]]))
    return " ".join(around[1:-1])


def binarise(out: pathlib.Path, folder: str, kind: str, names: Dict[str, str], *more: str) -> None:
    """fairseq-preprocess of OUT/NAME.KIND, for the names of each of fairseq's splits."""
    prefs = [word for split, name in names.items() for word in (f"--{split}pref", f"{out}/{name}.{kind}")]
    line = ["--only-source", *prefs, "--destdir", str(out / folder), "--workers", "1", *more]
    preprocess.main(options.get_preprocessing_parser().parse_args(line))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--vocab", type=int, default=4000, help="pieces (default: %(default)s)")
    parser.add_argument("--unlabelled", type=int, default=10000, help="sentences (default: %(default)s)")
    parser.add_argument("--exchange", type=float, default=0.2, help="share of words (default: %(default)s)")
    parser.add_argument("--labels", default="", metavar="OLD=NEW,…", help="names for the labels, as in 0=negative")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} already exists: name another folder")
    names = dict(pair.split("=") for pair in args.labels.split(",") if pair)
    corpus = {split: read(args.corpus, split, names) for split in SPLITS}
    args.out.mkdir(parents=True)
    for split, rows in corpus.items():
        for kind, lines in (
            ("tsv", [f"{text}\t{label}" for text, label in rows]),
            ("text", [text for text, _ in rows]),
            ("label", [label for _, label in rows]),
        ):
            (args.out / f"{split}.{kind}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(args.out / "train.text"), model_prefix=str(args.out / "spm"), vocab_size=args.vocab,
        character_coverage=1.0, minloglevel=2, num_threads=1,
    )  # fmt: skip
    sentences, draw = [text.split() for text, _ in corpus["train"]], random.Random(args.seed)
    between, known = neighbours(sentences), {text for text, _ in corpus["train"]}
    invented: Dict[str, None] = {}
    for _ in range(50 * args.unlabelled):  # a small corpus may not make so many
        text = invent(sentences, between, draw, args.exchange)
        if len(invented) == args.unlabelled:
            break
        if text not in known:
            invented[text] = None
    (args.out / "unlabelled.text").write_text("\n".join(invented) + "\n", encoding="utf-8")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(args.out / "spm.model"))
    for name in (*SPLITS, "unlabelled"):
        lines = (args.out / f"{name}.text").read_text(encoding="utf-8").split("\n")[:-1]
        encoded = "".join(" ".join(pieces.encode(line, out_type=str)) + "\n" for line in lines)
        (args.out / f"{name}.pieces").write_text(encoded, encoding="utf-8")
    splits = {"train": "train", "valid": "dev", "test": "test"}
    binarise(args.out, "data-bin/input0", "pieces", splits)
    binarise(args.out, "data-bin/label", "label", splits)
    dictionary = ("--srcdict", f"{args.out}/data-bin/input0/dict.txt")
    binarise(args.out, "unlabelled-bin/input0", "pieces", {"train": "unlabelled"}, *dictionary)
    (args.out / "unlabelled-bin" / "label").mkdir()  # the names of the labels that a teacher may choose from
    shutil.copy(args.out / "data-bin" / "label" / "dict.txt", args.out / "unlabelled-bin" / "label" / "dict.txt")


if __name__ == "__main__":
    main()
