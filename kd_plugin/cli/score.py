"""`kd-plugin score`: the cross-entropy of translations, from the teacher or another model, forward or backward."""

import argparse

from kd_plugin.cli.options import add_destination, add_job, add_models, add_subwords, destination, filled, subwords
from kd_plugin.decoding.base import DTYPE_NAMES, ModelOptions
from kd_plugin.runners.jobs import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input_dir", metavar="INPUT_DIR", help="translations: kd-plugin decode, import, select, filter")
    add_models(parser, "the model, or an ensemble; one of the other direction scores the source, given the translation")
    add_subwords(parser, "of the model (default: its symbols are what spaces separate)")
    parser.add_argument(
        "--compute-type",
        default="auto",
        choices=["auto", *DTYPE_NAMES],
        help="(default: float16 on a GPU, float32 on a CPU)",
    )
    parser.add_argument("--max-tokens", type=int, default=4000, help="in a batch, padded (default: %(default)s)")
    add_destination(parser)
    add_job(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.curate.score import Scoring, score

    groups = {
        "models": filled(ModelOptions, args),
        "subwords": subwords(args),
        "job": filled(Job, args),
        "to": destination(args),
    }
    score(filled(Scoring, args, **groups))
    return 0
