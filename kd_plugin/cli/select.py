"""`kd-plugin select`: keep the best of a teacher's n-best translations, by a criterion."""

import argparse

from sacrebleu.metrics import BLEU

from kd_plugin.cli.options import add_destination, add_workers, destination, filled
from kd_plugin.curate.criteria import METRICS
from kd_plugin.curate.select import CRITERIA, SENTENCES_A_WORKER, Selection, select


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input_dir", metavar="INPUT_DIR", help="translations: kd-plugin decode or import")
    parser.add_argument(
        "--by",
        required=True,
        choices=CRITERIA,
        help="reference: closest to --reference (sequence-level interpolation); score: the best score of the model; "
        "mbr: highest mean chrF against the sentence's other translations (minimum Bayes risk)",
    )
    parser.add_argument(
        "--reference", metavar="FILE", help="for --by reference: raw text, one line for each line of the corpus"
    )
    parser.add_argument(
        "--metric", choices=list(METRICS), help="for --by reference: how to measure closeness (default: bleu)"
    )
    parser.add_argument(
        "--tokenize",
        choices=BLEU.TOKENIZERS,
        help="for --by reference --metric bleu: sacreBLEU's tokenizer (default: by target language, as in evaluate)",
    )
    parser.add_argument("--top", type=int, default=1, metavar="N", help="keep the N best (default: %(default)s)")
    add_workers(parser, SENTENCES_A_WORKER)
    add_destination(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    select(filled(Selection, args, to=destination(args)))
    return 0
