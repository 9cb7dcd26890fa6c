"""`kd-plugin VERB …`: a thin front; each verb's own module declares its options and does the work."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Dict, NamedTuple, Optional, Sequence

from kd_plugin.cli.numbers import check_numbers
from kd_plugin.errors import KDPluginError, is_out_of_memory
from kd_plugin.quiet import INTERRUPTED, NO_READER, TERMINATED, Terminated, quietly, sigterm_as_interrupt
from kd_plugin.version import __version__

# What Ctrl-C leaves behind, and how to go on.
SHARDS = "finished shards are kept, and the same command goes on with the others"
ANEW = "nothing is finished, and the same command begins anew"
READS = "nothing was changed"


class Verb(NamedTuple):
    help: str
    # The module is imported only when its verb is asked for. It defines `add_arguments(parser)`
    # and `run(args) -> int`, the exit status.
    module: str
    stopped: str = ANEW


VERBS: Dict[str, Verb] = {
    "doctor": Verb("check this installation and, on request, teacher files", "kd_plugin.cli.doctor", READS),
    "cache": Verb("ask a teacher about a corpus once and keep its answers", "kd_plugin.decoding.cache_answers", SHARDS),
    "cache-info": Verb("what such a cache holds; --verify: whether it is undamaged", "kd_plugin.cli.cache_info", READS),
    "decode": Verb(
        "translate a corpus with a teacher, for sequence-level distillation", "kd_plugin.decoding.decode", SHARDS
    ),
    "import": Verb("take in translations made elsewhere: TSV, CSV or JSON lines", "kd_plugin.corpus.importing"),
    "select": Verb("of n-best translations keep those that teach best", "kd_plugin.curate.select"),
    "score": Verb("what a model, forward or backward, thinks of translations", "kd_plugin.curate.score", SHARDS),
    "filter": Verb("drop translations that would teach wrong, by rules", "kd_plugin.curate.filter"),
    "evaluate": Verb("scores, significance, speed and size of models, side by side", "kd_plugin.evaluation.evaluate"),
    "export": Verb("a model for use or to give away: CTranslate2, fairseq, safetensors", "kd_plugin.export.export"),
    "report": Verb("one HTML page of evaluations and learning curves", "kd_plugin.report.command"),
    "path": Verb('print the directory for --user-dir "$(kd-plugin path)"', "kd_plugin.cli", READS),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`path` takes no options."""


def run(args: argparse.Namespace) -> int:
    """`path`: the absolute directory of the package, alone on one line, for command substitution."""
    print(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return 0


def build_parser(verb: Optional[str] = None) -> argparse.ArgumentParser:
    """All verbs by name; the options of `verb` alone, so that no other verb's module is imported."""
    parser = argparse.ArgumentParser(
        prog="kd-plugin", description="Knowledge distillation in plain fairseq-train: the tools around the plugin."
    )
    parser.add_argument("--version", action="version", version=f"kd-plugin {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, row in VERBS.items():
        subparser = subparsers.add_parser(name, help=row.help, description=row.help, allow_abbrev=False)
        if name == verb:
            try:
                module = importlib.import_module(row.module)
            except ImportError as error:
                raise KDPluginError(
                    f"{name} needs {error.name}, which cannot be imported ({error}). Remedy: kd-plugin doctor says "
                    "what is missing and how to install it"
                ) from error
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def _check_words(arguments: Sequence[str]) -> None:
    """Refuse what no option means: an empty path is the current folder to Python, and a NUL is in no path."""
    for before, word in zip(["", *arguments], arguments):
        flag, equals, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if not value and (equals or not word):
            name = flag if flag.startswith("-") else "an argument"
            raise KDPluginError(f"{name} is empty. Remedy: a value, or leave it out")
        if "\0" in word:
            name = f"{flag} {value!r}" if flag.startswith("-") else repr(value)
            raise KDPluginError(f"{name}: holds a NUL character, which no file's name can. Remedy: another name")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Exit status: 0 done, 1 a `KDPluginError` (or what the verb says), 2 wrong usage, 128 + n stopped by signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((argument for argument in arguments if not argument.startswith("-")), None)
    try:
        with quietly(), sigterm_as_interrupt():
            _check_words(arguments)
            args = build_parser(verb).parse_args(arguments)
            check_numbers(args)
            status = int(args.run(args))
            sys.stdout.flush()
            return status
    except KDPluginError as error:
        message = str(error)
    except KeyboardInterrupt as error:
        what, status = ("terminated", TERMINATED) if isinstance(error, Terminated) else ("interrupted", INTERRUPTED)
        print(f"kd-plugin {verb}: {what}: {VERBS[verb].stopped if verb in VERBS else READS}", file=sys.stderr)
        return status
    except BrokenPipeError:  # `kd-plugin … | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still wants to write as it ends
        return NO_READER
    except (MemoryError, RuntimeError) as error:  # of torch and CTranslate2
        if not is_out_of_memory(error):
            raise
        message = (
            f"{verb}: the memory was not enough ({str(error).strip() or 'MemoryError'}). Remedy: a smaller "
            "--max-tokens, fewer --workers, or a larger machine or GPU; what is finished is kept"
        )
    print(f"kd-plugin: error: {message}", file=sys.stderr)
    return 1
