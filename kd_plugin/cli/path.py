"""`kd-plugin path`: print only the absolute path of the package, for command substitution."""

import argparse
import os


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This verb takes no options."""


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    print(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return 0
