"""`kd-plugin report`: one HTML page of evaluations and learning curves."""

import argparse
import sys
from pathlib import Path

from kd_plugin.cli.options import inputs_of

TITLE = "Distillation report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="FILE", help="the page to write, such as report.html")
    parser.add_argument(
        "--evaluation",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="folders or JSON files from kd-plugin evaluate",
    )
    parser.add_argument(
        "--log",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=FILE",
        help="logs of fairseq-train (--log-format simple or json), each with the name of its run; a repeated name "
        "continues that run",
    )
    for verb in ("sweep", "gap"):
        text = f"folders or JSON files from kd-plugin {verb}"
        parser.add_argument(f"--{verb}", nargs="+", action="extend", default=[], metavar="PATH", help=text)
    parser.add_argument("--times", metavar="DIR", help="folder of kd-plugin distill with the time that each step took")
    parser.add_argument("--title", default=TITLE, help=f"of the page (default: {TITLE})")


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.report.page import write_report  # it needs the libraries of an extra

    print(
        write_report(
            Path(args.output), args.title, args.evaluation, args.log, args.sweep, args.gap, inputs_of(args), args.times
        ),
        file=sys.stderr,
    )
    return 0
