"""`kd-plugin VERB …`: a thin front end; each verb's own module declares its options and starts the work."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from typing import Optional, Sequence

from kd_plugin.cli.numbers import check_numbers
from kd_plugin.cli.verbs import READS, VERBS, chosen_verb
from kd_plugin.errors import KDPluginError, is_out_of_memory
from kd_plugin.quiet import INTERRUPTED, NO_READER, TERMINATED, Terminated, quietly, sigterm_as_interrupt
from kd_plugin.registration import register
from kd_plugin.version import __version__

# what no check before the work can rule out
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def build_parser(verb: Optional[str] = None) -> argparse.ArgumentParser:
    """A parser of all verb names and the options of `verb` only, so that no other verb's module is imported."""
    parser = argparse.ArgumentParser(
        prog="kd-plugin",
        description="Knowledge distillation in plain fairseq-train: the tools around the plugin.",
        epilog="`kd-plugin VERB --help` lists a verb's options. Start with `kd-plugin doctor`.",
    )
    parser.add_argument("--version", action="version", version=f"kd-plugin {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, row in VERBS.items():
        subparser = subparsers.add_parser(name, help=row.help, description=row.help, allow_abbrev=False)
        if name == verb:
            module = importlib.import_module(row.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def _check_words(arguments: Sequence[str]) -> None:
    """Refuse values that no option can mean: Python takes an empty path as the current folder; no path has a NUL."""
    for before, word in zip(["", *arguments], arguments):
        flag, equals, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if not value and (equals or not word):
            name = flag if flag.startswith("-") else "an argument"
            raise KDPluginError(f"{name} is empty. Remedy: give a value, or leave it out")
        if "\0" in word:
            name = f"{flag} {value!r}" if flag.startswith("-") else repr(value)
            raise KDPluginError(f"{name} contains a NUL character, which no file name can. Remedy: use another name")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Exit status: 0 done, 1 a `KDPluginError` (or as the verb says), 2 wrong usage, 128 + n stopped by signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = chosen_verb(arguments)
    try:
        with quietly(), sigterm_as_interrupt():
            _check_words(arguments)
            args = build_parser(verb).parse_args(arguments)
            check_numbers(args)
            if VERBS[args.verb].fairseq:
                register()
            status = int(args.run(args))
            sys.stdout.flush()
            return status
    except KDPluginError as error:
        message = str(error)
    except ImportError as error:
        if (error.name or "kd_plugin").split(".")[0] == "kd_plugin":
            raise
        message = (
            f"{verb} needs {error.name}, which cannot be imported ({error}). Remedy: run kd-plugin doctor, which says "
            "what is missing and how to install it"
        )
    except KeyboardInterrupt as error:
        what, status = ("terminated", TERMINATED) if isinstance(error, Terminated) else ("interrupted", INTERRUPTED)
        print(f"kd-plugin {verb}: {what}: {VERBS[verb].stopped if verb in VERBS else READS}", file=sys.stderr)
        return status
    except BrokenPipeError:  # `kd-plugin … | head`: the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes when it exits
        return NO_READER
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        message = (
            f"{verb}: {error.filename or 'its output'}: {error.strerror}. Finished work is kept. Remedy: free some "
            "space, then run the same command again"
        )
    except (MemoryError, RuntimeError) as error:  # from torch and CTranslate2
        if not is_out_of_memory(error):
            raise
        message = (
            f"{verb}: not enough memory ({str(error).strip() or 'MemoryError'}). Remedy: use a smaller --max-tokens, "
            "fewer --workers, or a larger machine or GPU; finished work is kept"
        )
    print(f"kd-plugin: error: {message}", file=sys.stderr)
    return 1
