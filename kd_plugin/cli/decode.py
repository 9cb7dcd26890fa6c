"""`kd-plugin decode`: translate a corpus with the teacher, for sequence-level distillation."""

import argparse
from typing import TYPE_CHECKING

from kd_plugin.cli.http import add_http, check_engine
from kd_plugin.cli.options import (
    DATA,
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
from kd_plugin.decoding.http.options import HttpOptions, check_search
from kd_plugin.runners.jobs import Job

if TYPE_CHECKING:
    from kd_plugin.decoding.decode import Corpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", metavar="DATA", help=DATA)
    parser.add_argument("--input", metavar="FILE", help="raw text instead, UTF-8, one sentence per line")
    add_models(
        parser,
        "the teacher, or an ensemble; or a folder with a Hugging Face model, a Marian model as OPUS-MT packages it, or "
        "a CTranslate2 model. Required, except with --engine http",
        "the {}'s language, as in the corpus's file names (default: as the model says)",
    )
    add_folder(parser)
    # flags that --engine http does not take are absent from args unless given; their defaults are those of Corpus
    parser.add_argument("--gen-subset", default=argparse.SUPPRESS, help="split of DATA (default: train)")
    add_subwords(parser, "for raw text that is not segmented yet", remove_bpe=True)
    add_destination(parser)
    _add_engine(parser)
    add_search(parser)
    parser.add_argument("--seed", type=int, default=1, help="for --sampling (default: %(default)s)")
    parser.add_argument(
        "--shard-sentences",
        type=int,
        default=10_000,
        help="distinct source sentences per file: the most that a killed job loses (default: %(default)s)",
    )
    add_job(parser)
    add_http(parser)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        default="auto",
        choices=("auto", *ENGINES, "http"),
        help="auto: fairseq for checkpoints, ctranslate2 for folders; fairseq: checkpoints of any architecture, and "
        "ensembles; ctranslate2: folders, and checkpoints of transformer architectures, which it converts, two to four "
        "times as fast on CPUs; http: a language model behind an OpenAI-compatible server (default: %(default)s)",
    )
    parser.add_argument(
        "--compute-type",
        default=argparse.SUPPRESS,
        help="float32, float16, bfloat16; with ctranslate2 also int8, int8_float16, … (default: float16 on a GPU, "
        "float32 on a CPU)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=argparse.SUPPRESS,
        help="source tokens per batch, with padding; with --engine fairseq on a CPU, 500 is faster (default: 4000)",
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.decoding.decode import decode

    decode(corpus(args))
    return 0


def check(args: argparse.Namespace) -> None:
    """What can be said of the flags alone, before there is a model."""
    check_engine(args)
    search = filled(Settings, args)
    search.check()
    if args.engine == "http":
        http = filled(HttpOptions, args)
        http.check()
        http.languages(args.source_lang, args.target_lang)
        check_search(search)


def corpus(args: argparse.Namespace) -> "Corpus":
    """The job that the flags describe."""
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
