"""`kd-plugin vocabulary`: a student's dictionaries and sentencepiece models in its teacher's pieces."""

import argparse

from kd_plugin.cli.options import add_subwords, add_user_dir, filled, inputs_of, subwords


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher", metavar="TEACHER", help="a checkpoint, or a folder of Hugging Face's")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for dict.LANG.txt and the models")
    parser.add_argument(
        "-s", "--source-lang", required=True, metavar="LANG", help="the student's, as fairseq names files"
    )
    parser.add_argument("-t", "--target-lang", required=True, metavar="LANG", help="likewise")
    parser.add_argument(
        "--subset",
        nargs="+",
        metavar="FILE",
        help="raw text in files that end in .SRC and .TGT: only the pieces that it needs (default: all the teacher's)",
    )
    parser.add_argument(
        "--coverage",
        type=float,
        default=0.9999,
        help="the share of its tokens that the pieces kept are; single characters are kept in any case (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--joined-dictionary", action="store_true", help="one dictionary for both languages, to share embeddings"
    )
    parser.add_argument("--dict-dir", metavar="DIR", help="folder with a checkpoint's dictionaries, where elsewhere")
    add_user_dir(parser)
    add_subwords(parser, "of a checkpoint; a folder of Hugging Face's has its own")


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.teachers.student_vocabulary import Wanted, write_vocabulary

    write_vocabulary(filled(Wanted, args, subwords=subwords(args), inputs=inputs_of(args)))
    return 0
