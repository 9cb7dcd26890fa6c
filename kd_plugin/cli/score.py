"""`kd-plugin score`: score translations with a model, a reference-free metric or your own program."""

import argparse
from typing import TYPE_CHECKING

from kd_plugin.cli.options import (
    add_destination,
    add_folder,
    add_job,
    add_models,
    add_subwords,
    destination,
    filled,
    subwords,
)
from kd_plugin.decoding.base import DTYPE_NAMES, FolderOptions, ModelOptions
from kd_plugin.runners.jobs import Job

if TYPE_CHECKING:
    from kd_plugin.curate.score import Scoring


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input_dir", metavar="INPUT_DIR", help="translations: kd-plugin decode, import, select, filter")
    add_models(
        parser,
        "the model, or an ensemble, or a folder as for decode; a model of the other direction scores the source, given "
        "the translation. Give exactly one of --path, --metric and --command",
        "the model's {} language, if the model does not name it (default: as in the translations)",
    )
    add_folder(parser)
    parser.add_argument(
        "--metric",
        metavar="METRIC",
        help="a learned metric that needs no reference: comet-kiwi, metricx, a model on the hub (OWNER/NAME), a COMET "
        "checkpoint (.ckpt), a folder with a MetricX model. Higher is better: for MetricX, which predicts errors, the "
        "score is minus the prediction (-25 … 0)",
    )
    parser.add_argument(
        "--command",
        metavar="COMMAND",
        help="your own program, which a shell starts once per shard: it reads lines `source TAB translation` (UTF-8; a "
        "tab inside a text becomes a space) and writes one number per line for each, higher is better",
    )
    add_subwords(parser, "of the --path model (default: symbols are separated by spaces)")
    parser.add_argument(
        "--compute-type",
        default="auto",
        choices=["auto", *DTYPE_NAMES],
        help="for --path (default: float16 on a GPU, float32 on a CPU)",
    )
    parser.add_argument("--max-tokens", type=int, help="for --path: tokens per batch, with padding (default: 4000)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="for --metric: translations (default: 16)")
    add_destination(parser)
    add_job(parser)


def check(args: argparse.Namespace) -> None:
    """What can be said of the flags alone, before there are translations."""
    from kd_plugin.curate.score import check_flags

    check_flags(_options(args))


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.curate.score import score

    score(_options(args))
    return 0


def _options(args: argparse.Namespace) -> "Scoring":
    from kd_plugin.curate.score import Scoring

    groups = {
        "models": filled(ModelOptions, args),
        "folder": filled(FolderOptions, args),
        "subwords": subwords(args),
        "job": filled(Job, args),
        "to": destination(args, [("--metric", args.metric)]),
    }
    return filled(Scoring, args, **groups)
