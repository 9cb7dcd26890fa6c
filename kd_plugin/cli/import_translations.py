"""`kd-plugin import`: translations made with other programs."""

import argparse

from kd_plugin.cli.options import add_destination, add_languages, destination, filled
from kd_plugin.corpus.importing import Table, take_in
from kd_plugin.corpus.tables import COLUMNS, FORMATS, OBJECT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help=f"TSV or CSV ({COLUMNS}) or JSON lines ({OBJECT}), plain or compressed (.gz)"
    )
    parser.add_argument("--format", choices=FORMATS, help="default: by the file's name: .tsv, .csv, .jsonl")
    parser.add_argument(
        "--columns",
        metavar="NAME,…",
        help="the columns of a table, in order: source, hypothesis, score, system, and _ for one to skip; Tatoeba's "
        "pairs: --columns _,source,_,hypothesis (default: as its first line names them, or source, hypothesis, score, "
        "system)",
    )
    add_languages(parser, "the {}'s language code, as in en or de", required=True)
    parser.add_argument(
        "--source",
        metavar="FILE",
        help="the corpus that was translated, one sentence per line: its line numbers are kept (default: each source "
        "in the file is a line of its own)",
    )
    add_destination(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    take_in(filled(Table, args, to=destination(args)))
    return 0
