"""`kd-plugin gap`: where a student lags its teacher."""

import argparse

from sacrebleu.metrics import BLEU

from kd_plugin.cli.options import add_languages, filled, inputs_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--test", required=True, metavar="SRC,REF", help="raw text of the test set")
    for side in ("teacher", "student"):
        parser.add_argument(
            f"--{side}",
            required=True,
            metavar="[NAME=]FILE",
            help=f"the {side}'s translations, line by line, such as evaluation/translations/NAME/TEST.txt",
        )
    parser.add_argument("--output", required=True, metavar="DIR", help="for gap.json and gap.md")
    parser.add_argument(
        "--train", metavar="FILE", help="the student's training text, source side: adds slices by rare words"
    )
    parser.add_argument("--domains", metavar="FILE", help="a label for each sentence: adds slices by domain")
    add_languages(parser, "the {}'s language (default: guessed from its letters)")
    parser.add_argument(
        "--tokenize", choices=BLEU.TOKENIZERS, help="sacreBLEU's tokenizer (default: by target language)"
    )
    parser.add_argument("--lowercase", action="store_true", help="ignore case in scores")
    parser.add_argument(
        "--bootstrap", type=int, default=300, metavar="N", help="resamples; 0: no intervals (default: %(default)s)"
    )
    parser.add_argument(
        "--worst", type=int, default=20, metavar="N", help="how many sentences to show (default: %(default)s)"
    )
    parser.add_argument("--comet", metavar="MODEL", help="also score with COMET: a model name to download, or a path")


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.evaluation.gap.gap import Options, gap

    inputs = [("--teacher" if name == "TEACHER" else name, value) for name, value in inputs_of(args)]
    print(gap(filled(Options, args, inputs=inputs)))
    return 0
