#!/usr/bin/env python3
"""Column files and subwords of a tagging corpus, with a part of its training sentences held out for choosing.

    prepare.py CORPUS OUT [--vocab 4000] [--hold-out 9] [--unlabelled FILE]

CORPUS holds train.conll and dev.conll (or .conll.gz): a word and its tag in each line, an empty line between sentences.
OUT gets train.conll without every ninth sentence, valid.conll with these, test.conll, which is CORPUS's dev, and
spm.model, for `kd-plugin prepare-tagging`. FILE holds one sentence per line; OUT gets its words in unlabelled.conll,
where each has the tag O, because a column file needs one. No training reads it.
"""

import argparse
import gzip
import pathlib
import re
from typing import List

import sentencepiece


def read(folder: pathlib.Path, split: str) -> List[List[str]]:
    """The lines of each sentence."""
    path = folder / f"{split}.conll"
    data = path.read_bytes() if path.is_file() else gzip.decompress((folder / f"{split}.conll.gz").read_bytes())
    found: List[List[str]] = [[]]
    for line in data.decode("utf-8").split("\n"):
        if line.strip():  # some corpora end a sentence with a line of one tab
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [sentence for sentence in found if sentence]


def split_words(sentence: str) -> List[str]:
    """Punctuation is a word of its own, and so is what follows an apostrophe, as in the corpus."""
    return re.findall(r"\w+|'\w+|[^\w\s]", sentence)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--vocab", type=int, default=4000, help="pieces (default: %(default)s)")
    parser.add_argument(
        "--hold-out", type=int, default=9, metavar="N", help="every Nth sentence (default: %(default)s)"
    )
    parser.add_argument("--unlabelled", type=pathlib.Path, metavar="FILE", help="further sentences, without tags")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} already exists: name another folder")
    train, test = read(args.corpus, "train"), read(args.corpus, "dev")
    kept = [sentence for at, sentence in enumerate(train, 1) if at % args.hold_out]
    args.out.mkdir(parents=True)
    for name, sentences in (("train", kept), ("valid", train[args.hold_out - 1 :: args.hold_out]), ("test", test)):
        text = "".join("\n".join(sentence) + "\n\n" for sentence in sentences)
        (args.out / f"{name}.conll").write_text(text, encoding="utf-8")
    if args.unlabelled:
        lines = [split_words(line) for line in args.unlabelled.read_text(encoding="utf-8").split("\n")]
        text = "".join("".join(f"{word}\tO\n" for word in words) + "\n" for words in lines if words)
        (args.out / "unlabelled.conll").write_text(text, encoding="utf-8")
    words = [" ".join(line.rpartition("\t")[0] for line in sentence) for sentence in kept]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_prefix=str(args.out / "spm"), vocab_size=args.vocab,
        character_coverage=0.9995, minloglevel=2, num_threads=1,
    )  # fmt: skip


if __name__ == "__main__":
    main()
