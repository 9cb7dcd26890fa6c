"""`kd-plugin distill`: from the corpus to the report, as one file describes."""

import argparse
import importlib
from typing import Dict, List, NoReturn, Sequence, Tuple

from kd_plugin.cli.numbers import check_numbers
from kd_plugin.cli.options import filled
from kd_plugin.cli.verbs import VERBS
from kd_plugin.errors import KDPluginError

MODELS = "A.pt[:B.pt…]"
FILES = ("FILE", "DIR", MODELS)  # as verbs call what they read, and folders that they make


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        metavar="CONFIG.yaml",
        help="output folder, corpus, teacher, students, and options of the steps; see docs/how-to/distill.md and "
        "examples/translation/quickstart.yaml in the repository",
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=0,
        metavar="N",
        help="how many cores all steps together may use (default: all; with --profile, as it says)",
    )
    parser.add_argument(
        "--profile", metavar="DIR", help="folder with Snakemake's config.yaml, which may name a cluster's executor"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, and show the steps and why each would run"
    )
    parser.add_argument("--print-config", action="store_true", help="check everything, and print it with all defaults")


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.pipeline.run import Options, distill

    print(distill(filled(Options, args), _flags, _check))
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise KDPluginError(message)


def _parser(verb: str) -> _Parser:
    parser = _Parser(prog=f"kd-plugin {verb}", add_help=False, allow_abbrev=False)
    importlib.import_module(VERBS[verb].module).add_arguments(parser)
    return parser


def _flags(verb: str) -> Dict[str, bool]:
    """A verb's long flags without their dashes; whether each is a switch."""
    return {
        option[2:]: action.nargs == 0
        for action in _parser(verb)._actions
        for option in action.option_strings
        if option.startswith("--")
    }


def _check(words: Sequence[str]) -> List[Tuple[str, str]]:
    """Flags and paths of the files and folders that the words name.

    Raises:
        KDPluginError: the verb's parser, or its module's `check`, refuses its words
    """
    parser = _parser(words[0])
    given = parser.parse_args(list(words[1:]))
    check_numbers(given)
    if getattr(given, "data", None) and getattr(given, "input", None):  # decode's DATA may be missing, and is here
        raise KDPluginError(f"unrecognized arguments: {given.data}")
    check = getattr(importlib.import_module(VERBS[words[0]].module), "check", None)
    if check is not None:
        check(given)
    named = [
        (action.option_strings[-1:], action.metavar, getattr(given, action.dest, None)) for action in parser._actions
    ]
    return [
        (flags[0], path)
        for flags, metavar, value in named
        if flags and metavar in FILES and isinstance(value, str)
        for path in (value.split(":") if metavar == MODELS else [value])
    ]
