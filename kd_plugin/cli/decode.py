"""`kd-plugin decode`: translate a corpus with the teacher, for sequence-level distillation."""

import argparse
from typing import TYPE_CHECKING

from kd_plugin.cli.http import add_http, check_engine
from kd_plugin.cli.options import (
    add_destination,
    add_folder,
    add_job,
    add_models,
    add_search,
    add_subwords,
    destination,
    filled,
    subwords,
)
from kd_plugin.decoding.base import ENGINES, FolderOptions, ModelOptions, Settings
from kd_plugin.decoding.http.options import HttpOptions
from kd_plugin.runners.jobs import Job

if TYPE_CHECKING:
    from kd_plugin.decoding.decode import Corpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", nargs="?", metavar="DATA", help="binarised data as fairseq-train takes them, also A:B:C"
    )
    parser.add_argument("--input", metavar="FILE", help="raw text instead, UTF-8, a sentence a line")
    add_models(
        parser,
        "the teacher, or an ensemble; or a folder with a model of Hugging Face, of Marian as OPUS-MT packs it, or of "
        "CTranslate2",
        required=False,
    )
    add_folder(parser)
    # flags that --engine http does not take are absent from args unless they are given: their defaults are Corpus'
    parser.add_argument("--gen-subset", default=argparse.SUPPRESS, help="split of DATA (default: train)")
    add_subwords(parser, "for raw text, unless it is segmented already", remove_bpe=True)
    add_destination(parser)
    _add_engine(parser)
    add_search(parser)
    parser.add_argument("--seed", type=int, default=1, help="of --sampling (default: %(default)s)")
    parser.add_argument(
        "--shard-sentences",
        type=int,
        default=10_000,
        help="different source sentences in a file: what a killed job loses at most (default: %(default)s)",
    )
    add_job(parser)
    add_http(parser)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        default="auto",
        choices=("auto", *ENGINES, "http"),
        help="fairseq: checkpoints of any architecture, ensembles; ctranslate2: transformers, converted on the way, "
        "two to four times as fast on CPUs, and folders; http: a language model behind an OpenAI-compatible server "
        "(default: fairseq for checkpoints, ctranslate2 for folders)",
    )
    parser.add_argument(
        "--compute-type",
        default=argparse.SUPPRESS,
        help="float32, float16, bfloat16, and int8, int8_float16, … of ctranslate2 (default: float16 on a GPU, float32 "
        "on a CPU)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=argparse.SUPPRESS,
        help="source tokens in a batch, padded; with --engine fairseq on a CPU 500 is faster (default: 4000)",
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.decoding.decode import decode

    decode(corpus(args))
    return 0


def corpus(args: argparse.Namespace) -> "Corpus":
    """What the flags ask for."""
    from kd_plugin.decoding.decode import Corpus

    check_engine(args)
    groups = {
        "models": filled(ModelOptions, args, path=args.path or ""),  # a server has none
        "http": filled(HttpOptions, args),
        "folder": filled(FolderOptions, args),
        "subwords": subwords(args),
        "search": filled(Settings, args),
        "job": filled(Job, args),
        "to": destination(args),
    }
    return filled(Corpus, args, **groups)
