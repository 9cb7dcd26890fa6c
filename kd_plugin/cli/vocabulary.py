"""`kd-plugin vocabulary`: a student's dictionaries and sentencepiece models, made of its teacher's pieces."""

import argparse

from kd_plugin.cli.options import add_subwords, add_user_dir, filled, inputs_of, subwords


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher", metavar="TEACHER", help="a checkpoint, or a Hugging Face folder")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for dict.LANG.txt and the models")
    parser.add_argument(
        "-s", "--source-lang", required=True, metavar="LANG", help="the student's, as in fairseq's file names"
    )
    parser.add_argument("-t", "--target-lang", required=True, metavar="LANG", help="likewise")
    parser.add_argument(
        "--subset",
        nargs="+",
        metavar="FILE",
        help="raw text in files that end in .SRC and .TGT: keep only the pieces that it needs (default: all)",
    )
    parser.add_argument(
        "--coverage",
        type=float,
        default=0.9999,
        help="the share of the text's tokens that the kept pieces cover; single characters are always kept (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--joined-dictionary", action="store_true", help="one dictionary for both languages, to share embeddings"
    )
    parser.add_argument("--dict-dir", metavar="DIR", help="folder with a checkpoint's dictionaries, if not beside it")
    add_user_dir(parser)
    add_subwords(parser, "for a checkpoint; a Hugging Face folder has its own")


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.initialise.student_dictionaries import Wanted, write_vocabulary

    write_vocabulary(filled(Wanted, args, subwords=subwords(args), inputs=inputs_of(args)))
    return 0
