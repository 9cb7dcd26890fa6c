"""fairseq-train's arguments in a user's file: split into words, checked by its own parser, and the command to run."""

import argparse
import contextlib
import io
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, List, NoReturn, Sequence, Tuple

import kd_plugin
from kd_plugin.errors import KDPluginError
from kd_plugin.files.yaml_text import wrong

PLUGIN = str(Path(kd_plugin.__file__).resolve().parent)  # as `kd-plugin path` prints it

# arguments that name existing files or folders, also several as A:B
INPUTS = (
    "restore_file finetune_from_model user_dir encoder_embed_path decoder_embed_path sentencepiece_model bpe_codes "
    "teacher_path teacher_cache teacher_user_dir teacher_routing kd_unlabelled"
).split()
LAST = "checkpoint_last.pt"  # of --restore-file: the one in --save-dir, if there is one


def train_words(path: str, key: str, value: Any, own: Sequence[str], who: str) -> List[str]:
    """A value of the file as fairseq-train's arguments, with this plugin as --user-dir unless it names another.

    Args:
        path, key: of the value, for errors
        own: flags that the value must not have, because `who` gives them

    Raises:
        KDPluginError: the value is neither text nor a list of words, or has one of `own`
    """
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        words = list(value)
    elif isinstance(value, str):
        try:
            # a command as a shell takes it: lines that end with a backslash go on, also if YAML has joined them
            words = shlex.split(re.sub(r"\\(\n| (?=-))", " ", value))
        except ValueError as error:
            raise wrong(path, f"`{key}` cannot be split into words ({error})", "quote it as in a shell") from error
    else:
        raise wrong(path, f"`{key}` is neither text nor a list of words", "fairseq-train's arguments")
    if words and re.fullmatch(r"\w+=.*", words[0]):
        raise wrong(
            path, f"`{key}` begins with {words[0]}", f"set variables before the command of {who}, which hands them on"
        )
    if words and Path(words[0]).name == "fairseq-train":
        words = words[1:]
    words = [PLUGIN if word == "$(kd-plugin path)" else word for word in words]  # which the shell would replace
    if not any(word.partition("=")[0] == "--user-dir" for word in words):
        words += ["--user-dir", PLUGIN]
    for word in words:
        flag = word.partition("=")[0]
        if flag in own:
            raise wrong(path, f"`{key}` has {flag}, which {who} itself gives", "leave it out")
    return words


def parse(path: str, words: List[str]) -> Tuple[argparse.ArgumentParser, argparse.Namespace]:
    """fairseq-train's parser for a command, and what it reads there."""
    from fairseq import options

    parser = options.get_training_parser()
    parser.allow_abbrev = False

    def refuse(message: str) -> NoReturn:
        raise wrong(path, f"fairseq-train refuses the command: {message}", "a command that fairseq-train accepts")

    parser.error = refuse  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            return parser, options.parse_args_and_arch(parser, input_args=words)
    except SystemExit as error:  # from the parsers that fairseq makes for itself
        lines = said.getvalue().strip().splitlines() or [f"exit status {error.code}"]
        refuse(lines[-1].partition("error: ")[2] or lines[-1])
    # an architecture, criterion … that is not registered; a --user-dir that is no module, or another copy of this one;
    # and what Python says of a value that fairseq evaluates, as in --lr '[1, 2'
    except (ValueError, KeyError, ImportError, OSError, SyntaxError, NameError, TypeError) as error:
        refuse(str(error))
    except RuntimeError as error:
        if str(error):
            raise
        refuse("--arch is missing")  # fairseq's has no text


def inputs_in(args: argparse.Namespace) -> List[Tuple[str, str]]:
    """The files and folders that a training reads, with their flags. fairseq starts from random weights if those of
    --restore-file are missing, and finds out about others only after it has begun."""
    found = [("the data", path) for path in _split(getattr(args, "data", None) or "")]
    for name in INPUTS:
        value = getattr(args, name, None)
        if isinstance(value, str) and not (name == "restore_file" and value == LAST):
            found += [("--" + name.replace("_", "-"), path) for path in _split(value)]
    return found


def _split(value: str) -> List[str]:
    """A:B as fairseq reads it; an address such as s3://… is no file here."""
    return [] if "://" in value else list(filter(None, value.split(os.pathsep)))


def executable(name: str) -> str:
    """A command such as fairseq-train as the shell would find it, else beside this interpreter."""
    found = shutil.which(name) or shutil.which(name, path=os.path.dirname(sys.executable))
    if found is None:
        raise KDPluginError(f"{name} is not on the PATH. Remedy: activate fairseq's environment")
    return found
