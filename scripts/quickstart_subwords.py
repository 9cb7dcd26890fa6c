#!/usr/bin/env python3
"""Train one sentencepiece model on both sides of the training split and encode every split with it.

quickstart_subwords.py CORPUS_DIR OUT_DIR --vocab-size 600
"""

import argparse
import os

import sentencepiece

LANGUAGES = ("en", "de")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus_dir")
    parser.add_argument("out_dir")
    parser.add_argument("--vocab-size", type=int, required=True)
    args = parser.parse_args()

    os.makedirs(args.out_dir, exist_ok=True)
    if os.listdir(args.out_dir) not in ([], ["cpu-seconds"]):
        raise SystemExit(f"{args.out_dir} is not empty; name another folder")
    prefix = os.path.join(args.out_dir, "subwords")
    sentencepiece.SentencePieceTrainer.train(
        input=[os.path.join(args.corpus_dir, f"train.{language}") for language in LANGUAGES],
        model_prefix=prefix,
        model_type="bpe",
        vocab_size=args.vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        split_digits=True,  # a figure is copied digit by digit, whatever its length
        normalization_rule_name="identity",  # the default turns m² into m2, and no hypothesis would match its reference
        num_threads=1,
        minloglevel=1,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    for split in ("train", "valid", "test"):
        for language in LANGUAGES:
            name = f"{split}.{language}"
            with open(os.path.join(args.corpus_dir, name), encoding="utf-8") as lines:
                encoded = [" ".join(model.encode(line.rstrip("\n"), out_type=str)) + "\n" for line in lines]
            with open(os.path.join(args.out_dir, name), "w", encoding="utf-8") as out:
                out.writelines(encoded)


if __name__ == "__main__":
    main()
