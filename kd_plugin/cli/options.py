"""Groups of options that several verbs share, each declared once, and their conversion for a verb's package."""

import argparse
from typing import Any, Callable, List, Sequence, TypeVar

from kd_plugin.corpus.destination import Destination
from kd_plugin.corpus.subwords import JOINT, SIDES, SYMBOLS, SubwordOptions
from kd_plugin.decoding.base import Settings
from kd_plugin.files.atomic import digest_of
from kd_plugin.files.protection import Named
from kd_plugin.runners.jobs import RUNNERS

Kind = TypeVar("Kind")

DATA = "the binarised data of fairseq-train: a folder, or several, A:B:C"  # help text

# the arguments and flags that name files and folders to read; --…sentencepiece-model too
POSITIONAL_INPUTS = ("data", "input_dir", "file", "checkpoint", "teacher")
INPUTS = (
    "input path teacher_path dict_dir teacher_dict_dir user_dir teacher_user_dir source reference scores model test "
    "comet check vocabulary_map_from evaluation log sweep gap subset prompt few_shot train domains student"
).split()


def filled(kind: Callable[..., Kind], args: argparse.Namespace, **others: Any) -> Kind:
    """A package's NamedTuple, filled with the options of the same names and with `others`."""
    names = kind._fields  # type: ignore[attr-defined]
    return kind(**{**{name: getattr(args, name) for name in names if hasattr(args, name)}, **others})


def job_of(args: argparse.Namespace) -> str:
    """A hash of the command but for its output: the same command may overwrite what it has begun."""
    return digest_of({name: value for name, value in vars(args).items() if name not in ("run", "output")})


def inputs_of(args: argparse.Namespace) -> List[Named]:
    """All files and folders that a verb reads, with the flags and arguments that name them."""
    named = []
    for name, value in vars(args).items():
        if name in POSITIONAL_INPUTS:
            named.append((name.upper(), value))
        elif name in INPUTS or name.endswith("sentencepiece_model"):
            named.append((f"--{name.replace('_', '-')}", value))
    return named


def add_destination(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the translations and their manifest")
    parser.add_argument(
        "--text",
        metavar="PREFIX",
        help="also write PREFIX.SRC and PREFIX.TGT, line by line, for fairseq-preprocess, and PREFIX.scores (line "
        "number, from 0, and score)",
    )


def destination(args: argparse.Namespace, more_inputs: Sequence[Named] = ()) -> Destination:
    """The options of `add_destination`. more_inputs: what the verb reads besides `inputs_of`"""
    return filled(Destination, args, inputs=[*inputs_of(args), *more_inputs])


def add_job(parser: argparse.ArgumentParser) -> None:
    """The fields of runners.jobs.Job."""
    parser.add_argument(
        "--num-shards", type=int, default=1, metavar="N", help="jobs that share the work (Slurm arrays)"
    )
    parser.add_argument("--shard-id", type=int, default=0, metavar="I", help="which of them this is, from 0")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes of this job (default: one per GPU, else one)"
    )
    text = "ray: share the shards on a Ray cluster (default: %(default)s)"
    parser.add_argument("--runner", default="local", choices=RUNNERS, help=text)


def add_workers(parser: argparse.ArgumentParser, sentences: int) -> None:
    """sentences: as for runners.local.workers_for"""
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help=f"processes (default: one per core, but at most one per {sentences:,} sentences)",
    )


def add_languages(parser: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    """text: the help text, with {} for the side"""
    for side in SIDES:
        parser.add_argument(f"-{side[0]}", f"--{side}-lang", required=required, metavar="LANG", help=text.format(side))


def add_models(parser: argparse.ArgumentParser, help_of_path: str, help_of_languages: str) -> None:
    """The fields of decoding.base.ModelOptions."""
    parser.add_argument("--path", metavar="A.pt[:B.pt…]", help=help_of_path)
    parser.add_argument("--model-overrides", default=argparse.SUPPRESS, metavar="JSON", help="as in fairseq-generate")
    parser.add_argument("--dict-dir", metavar="DIR", help="folder with the models' dictionaries, if not beside them")
    add_user_dir(parser)
    add_languages(parser, help_of_languages)


def add_folder_languages(parser: argparse.ArgumentParser) -> None:
    """The first fields of decoding.base.FolderOptions."""
    for side in SIDES:
        parser.add_argument(
            f"--model-{side}-lang",
            metavar="CODE",
            help=f"the {side} language in the model's own code, such as NLLB's eng_Latn; for folders with multilingual "
            "models (default: the corpus's code, if the model knows it)",
        )


def add_folder(parser: argparse.ArgumentParser) -> None:
    """The fields of decoding.base.FolderOptions."""
    add_folder_languages(parser)
    for name, what in (
        ("source-prefix", "before a source sentence"),
        ("source-suffix", "after it (default: the end of sentence, unless CTranslate2 adds it)"),
        ("target-prefix", "before the translation, such as NLLB's language"),
    ):
        parser.add_argument(
            f"--{name}", metavar="SYMBOLS", help=f"for a CTranslate2 folder: symbols that the model expects {what}"
        )


def add_user_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--user-dir",
        metavar="DIR",
        help="folder with code that registers a checkpoint's architecture or task, like fairseq's --user-dir; it runs",
    )


def add_subwords(parser: argparse.ArgumentParser, purpose: str, remove_bpe: bool = False) -> None:
    """The fields of corpus.subwords.SubwordOptions.

    Args:
        purpose: the model's purpose here, for the help text
        remove_bpe: whether segmented text can be joined, with --remove-bpe
    """
    parser.add_argument(JOINT, metavar="FILE", help=f"{purpose}; one for both languages")
    for side in SIDES:
        parser.add_argument(
            f"--{side}-sentencepiece-model", metavar="FILE", help=f"the {side} side's, if each side has its own"
        )
    if remove_bpe:
        parser.add_argument(
            "--remove-bpe",
            nargs="?",
            const="subword_nmt",
            default=argparse.SUPPRESS,
            choices=SYMBOLS,
            help=f"how segmented text is joined (default: {SYMBOLS[0]}; without a value, as in fairseq: subword_nmt)",
        )


def subwords(args: argparse.Namespace, **others: Any) -> SubwordOptions:
    """The options of `add_subwords`."""
    return filled(SubwordOptions, args, **others)


def add_search(parser: argparse.ArgumentParser) -> None:
    """The fields of decoding.base.Settings."""
    for name, default in Settings()._asdict().items():
        flag = f"--{name.replace('_', '-')}"
        if name == "sampling":
            parser.add_argument(flag, action="store_true", help="draw translations instead of searching for the best")
        else:
            text = f"as in fairseq-generate (default: {default})"
            parser.add_argument(flag, type=type(default), default=argparse.SUPPRESS, help=text)
