"""`kd-plugin sweep`: which alpha, temperature, …, by experiment."""

import argparse
import sys

from kd_plugin.cli.options import filled, inputs_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        metavar="CONFIG.yaml",
        help="the training, what varies in it, and the budget; see docs/how-to/sweep.md and "
        "examples/translation/sweep-quickstart.yaml in the repository",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the study, its trainings, sweep.json and sweep.md"
    )
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="trainings at a time (default: one per device)"
    )
    parser.add_argument(
        "--devices", metavar="0,1,…", help="a CUDA device for each worker (default: all see all devices)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, and print the first training's command"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.sweep.sweep import Options, sweep  # it needs the library of an extra

    print(sweep(filled(Options, args, inputs=[*inputs_of(args), ("CONFIG.yaml", args.config)])))
    sys.stdout.flush()
    return 0
