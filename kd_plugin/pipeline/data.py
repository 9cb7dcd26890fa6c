"""Binarised training data in parts, with the subwords of another folder or its own: the steps `corpus` and `mixed`."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List

import sentencepiece
import torch
from fairseq.data import Dictionary, indexed_dataset

from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.errors import KDPluginError

UNKNOWN = 0.01  # a larger share of unknown subwords in training text is a mistake; a test set may have a new character


def make_data(args: argparse.Namespace) -> None:
    """
    Raises:
        KDPluginError: the text is not parallel, or the subword model and the dictionary do not belong together
    """
    output, languages = Path(args.output), (args.source_lang, args.target_lang)
    output.mkdir(parents=True)
    if args.vocabulary:
        vocabulary = Path(args.vocabulary)
    else:
        vocabulary = output
        if args.model:
            shutil.copyfile(args.model, output / "spm.model")
        else:
            _train_model(output / "spm", [f"{args.train[0]}.{language}" for language in languages], args.subwords)
    model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary / "spm.model"))
    if args.dictionary:
        shutil.copyfile(args.dictionary, output / "dict.txt")
    elif vocabulary == output:
        pieces = [model.id_to_piece(i) for i in range(len(model)) if not (model.is_control(i) or model.is_unknown(i))]
        (output / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")
    dictionary = Dictionary.load(str(vocabulary / "dict.txt"))
    folder = output / "data-bin"
    folder.mkdir()
    for language in languages:
        dictionary.save(str(folder / f"dict.{language}.txt"))
    splits = {f"train{number or ''}": prefix for number, prefix in enumerate(args.train)}
    for split, prefix in {**splits, "valid": args.valid}.items():
        counts = []
        for language in languages:
            name = str(folder / f"{split}.{'-'.join(languages)}.{language}")
            counts.append(_binarise(Path(f"{prefix}.{language}"), name, model, dictionary, split != "valid"))
        if counts[0] != counts[1] or not counts[0]:
            raise KDPluginError(
                f"{prefix}: {counts[0]} lines in {languages[0]}, {counts[1]} in {languages[1]}. Remedy: parallel text"
            )
        print(f"{split}: {counts[0]:,} pairs")


def _train_model(prefix: Path, texts: List[str], options: List[str]) -> None:
    given: Dict[str, Any] = {"character_coverage": 1.0, "model_type": "unigram"}
    given.update(option.partition("=")[::2] for option in options)
    with open(f"{prefix}.model", "wb") as written:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line for text in texts for line in _lines(Path(text))),
                model_writer=written,
                num_threads=1,  # the sums of EM depend on how many threads add them up
                minloglevel=1,
                **given,
            )
        except (RuntimeError, OSError) as error:
            raise KDPluginError(f"`subwords`: sentencepiece says {error}. Remedy: another vocab_size") from error


def _lines(path: Path) -> Iterator[str]:
    return (line for _, line in numbered_lines(path, "text"))


def _binarise(path: Path, name: str, model: Any, dictionary: Any, must_fit: bool) -> int:
    """The number of lines."""
    builder: Any = indexed_dataset.make_builder(f"{name}.bin", impl="mmap", vocab_size=len(dictionary))
    count = tokens = unknown = 0
    for line in _lines(path):
        indices = [dictionary.index(piece) for piece in model.encode(line, out_type=str)]
        unknown += indices.count(dictionary.unk())
        tokens += len(indices)
        builder.add_item(torch.tensor([*indices, dictionary.eos()], dtype=torch.int32))
        count += 1
    builder.finalize(f"{name}.idx")
    if must_fit and unknown > UNKNOWN * tokens:
        raise KDPluginError(
            f"{path}: {unknown:,} of {tokens:,} subwords are not in the dictionary. Remedy: a model and a "
            "dictionary that belong together"
        )
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("source-lang", "target-lang", "output", "valid"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("vocabulary", "model", "dictionary"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--train", action="append", required=True)
    parser.add_argument("--subwords", action="append", default=[])
    try:
        make_data(parser.parse_args())
    except (KDPluginError, OSError) as error:  # of the latter, a full disk
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
