"""`kd-plugin score`: what a model, a metric without references or a program of yours thinks of translations."""

import argparse

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input_dir", metavar="INPUT_DIR", help="translations: kd-plugin decode, import, select, filter")
    add_models(
        parser,
        "the model, or an ensemble, or a folder as decode takes it; one of the other direction scores the source, "
        "given the translation. Exactly one of --path, --metric and --command says who scores",
        required=False,
    )
    add_folder(parser)
    parser.add_argument(
        "--metric",
        metavar="METRIC",
        help="a learned metric that needs no reference: comet-kiwi, metricx, a name of the hub's (OWNER/NAME), a "
        "COMET checkpoint (.ckpt), a folder with a MetricX model. Higher is better: of MetricX, which predicts errors, "
        "minus the prediction (-25 … 0)",
    )
    parser.add_argument(
        "--command",
        metavar="COMMAND",
        help="a program of yours, which a shell starts once for each shard: it reads lines `source TAB translation` "
        "(UTF-8; a tab inside a text comes as a space) and writes a number for each, higher is better, a line each",
    )
    add_subwords(parser, "of --path's model (default: its symbols are what spaces separate)")
    parser.add_argument(
        "--compute-type",
        default="auto",
        choices=["auto", *DTYPE_NAMES],
        help="of --path (default: float16 on a GPU, float32 on a CPU)",
    )
    parser.add_argument("--max-tokens", type=int, help="of --path: in a batch, padded (default: 4000)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="of --metric: translations (default: 16)")
    add_destination(parser)
    add_job(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.curate.score import Scoring, score

    groups = {
        "models": filled(ModelOptions, args),
        "folder": filled(FolderOptions, args),
        "subwords": subwords(args),
        "job": filled(Job, args),
        "to": destination(args, [("--metric", args.metric)]),
    }
    score(filled(Scoring, args, **groups))
    return 0
