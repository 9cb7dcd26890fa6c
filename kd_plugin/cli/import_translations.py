"""`kd-plugin import`: translations that something else has made."""

import argparse

from kd_plugin.cli.options import add_destination, destination, filled
from kd_plugin.corpus.importing import Table, take_in
from kd_plugin.corpus.tables import COLUMNS, FORMATS, OBJECT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help=f"TSV or CSV ({COLUMNS}) or JSON lines ({OBJECT}), as they are or packed (.gz)"
    )
    parser.add_argument("--format", choices=FORMATS, help="default: as the file is called: .tsv, .csv, .jsonl")
    parser.add_argument(
        "--columns",
        metavar="NAME,…",
        help="what the columns of a table are, in its order: source, hypothesis, score, system, and _ for one to leave "
        "out; Tatoeba's pairs: --columns _,source,_,hypothesis (default: what its first line names, or source, "
        "hypothesis, score, system)",
    )
    parser.add_argument("-s", "--source-lang", required=True, metavar="LANG")
    parser.add_argument("-t", "--target-lang", required=True, metavar="LANG")
    parser.add_argument(
        "--source",
        metavar="FILE",
        help="the corpus that was translated, a sentence a line: its lines' numbers are kept (default: each source of "
        "the file is a line of its own)",
    )
    add_destination(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    take_in(filled(Table, args, to=destination(args)))
    return 0
