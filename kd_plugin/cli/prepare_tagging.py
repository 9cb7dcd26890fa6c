"""`kd-plugin prepare-tagging`: a folder for --task distillation_sequence_tagging from CoNLL column files."""

import argparse

from kd_plugin.cli.options import filled, inputs_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for split, what in (("train", "to train on"), ("valid", "for validation"), ("test", "for a test")):
        parser.add_argument(
            f"--{split}", metavar="FILE", help=f"{what}: a word and its label per line, an empty line between sentences"
        )
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write, with input0/ and label/")
    parser.add_argument(
        "--word-column",
        type=int,
        default=1,
        metavar="N",
        help="the column of the word, from 1; -1 is the last (default: %(default)s)",
    )
    parser.add_argument(
        "--label-column", type=int, default=-1, metavar="N", help="the column of the label (default: the last)"
    )
    parser.add_argument(
        "--labels-are",
        default="bio",
        choices=["bio", "any"],
        help="bio: spans, as O, B-X and I-X, which are checked; any: labels that name no spans, such as parts of "
        "speech (default: %(default)s)",
    )
    parser.add_argument(
        "--repair", action="store_true", help="make B-X of an I-X that continues nothing, as in IOB1, and count them"
    )
    parser.add_argument(
        "--sentencepiece-model",
        metavar="FILE",
        help="split words into the pieces of this model; the dictionary then has all its pieces (default: words are "
        "symbols)",
    )
    parser.add_argument(
        "--dict", dest="dictionary", metavar="FILE", help="use this dict.txt, such as the teacher's, for the text"
    )
    parser.add_argument(
        "--label-dict", dest="label_dictionary", metavar="FILE", help="use this dict.txt for the labels"
    )
    parser.add_argument(
        "--threshold",
        type=int,
        default=1,
        metavar="N",
        help="without a sentencepiece model: words that occur less often in training are unknown (default: 1)",
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.corpus.prepare_tagging import TaggingOptions, prepare_tagging

    files = ("train", "valid", "test", "dictionary", "label_dictionary")
    named = [(f"--{name.replace('_', '-').replace('dictionary', 'dict')}", getattr(args, name)) for name in files]
    print(prepare_tagging(filled(TaggingOptions, args, inputs=[*inputs_of(args), *named])))
    return 0
