"""`kd-plugin filter`: drop translations that would mislead a student, each counted under the rule that matched."""

import argparse
from types import SimpleNamespace

from kd_plugin.cli.options import add_destination, add_workers, destination
from kd_plugin.curate.filter import SCORE_FLAGS, SENTENCES_A_WORKER, filter_translations, rule_flags
from kd_plugin.curate.rules import Flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input_dir", metavar="INPUT_DIR", help="translations: kd-plugin decode, import or select")
    for flag in rule_flags():
        _add_flag(parser, flag)
    for flag in SCORE_FLAGS:
        parser.add_argument(flag.name, dest=flag.dest, type=float, metavar=flag.metavar, help=flag.help)
        if flag.old:
            parser.add_argument(flag.old, dest=flag.dest, type=float, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--scores",
        metavar="FILE",
        help="scores from another model, higher is better: line number TAB score for each translation, in the order of "
        "the PREFIX.scores that --text writes for INPUT_DIR",
    )
    add_workers(parser, SENTENCES_A_WORKER)
    add_destination(parser)


def _add_flag(parser: argparse.ArgumentParser, flag: Flag) -> None:
    if isinstance(flag.default, bool):
        parser.add_argument(flag.name, action="store_true", help=flag.help)
    elif flag.choices:
        default = f"{flag.help} (default: {flag.default})"
        parser.add_argument(flag.name, choices=flag.choices, default=flag.default, help=default)
    else:
        default = f"{flag.help} (default: {flag.default})" if flag.default else flag.help
        parser.add_argument(
            flag.name,
            type=type(flag.default),
            default=flag.default,
            metavar=flag.metavar,
            help=default.replace("%", "%%"),
        )


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    options = {flag.dest: getattr(args, flag.dest) for flag in (*rule_flags(), *SCORE_FLAGS)}
    filter_translations(args.input_dir, SimpleNamespace(**options, scores=args.scores), args.workers, destination(args))
    return 0
