"""`kd-plugin path`: the absolute directory of the package, alone on one line, for command substitution."""

import argparse
import os


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes no options."""


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    print(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return 0
