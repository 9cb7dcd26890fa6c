"""`kd-plugin evaluate-classifier`: models that label text, side by side: scores, significance, speed and size."""

import argparse

from kd_plugin.cli.options import add_user_dir, filled, inputs_of, job_of
from kd_plugin.corpus.subwords import JOINT

TASKS = ("classification", "tagging", "regression")  # importing them from the package would import fairseq
WORD_STARTS = ("auto", "sentencepiece", "subword_nmt", "every")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="a fairseq checkpoint, a folder of kd-plugin export --format onnx, or a Hugging Face folder; once for "
        "each model",
    )
    parser.add_argument(
        "--test",
        action="append",
        required=True,
        metavar="NAME=FILES",
        help="raw text beside its labels, TEXT,LABELS; for tagging, a file of columns, the word first and the tag "
        "last; or a split of a binarised folder, FOLDER,SPLIT; once for each test set",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="for evaluation.json, evaluation.md, predictions"
    )
    parser.add_argument(
        "--task",
        choices=TASKS,
        default=TASKS[0],
        help="a class per sentence, a label per word, or a number per sentence (default: %(default)s)",
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="the --model that all others are tested against (default: none)"
    )
    parser.add_argument(
        JOINT,
        metavar="FILE",
        help="of the training data, for raw text and checkpoints; ONNX and Hugging Face folders have their own",
    )
    parser.add_argument(
        "--word-start",
        choices=WORD_STARTS,
        default=WORD_STARTS[0],
        help="for tagging in a binarised folder: how symbols form words, as in the training (default: %(default)s)",
    )
    parser.add_argument(
        "--head",
        metavar="NAME",
        help="a checkpoint's classification head (default: the one with fairseq's usual name, or the only one)",
    )
    parser.add_argument(
        "--dict-dir",
        metavar="DIR",
        help="the binarised folder that the checkpoints were trained on, with input0/dict.txt and label/dict.txt, if "
        "it is no longer where it was",
    )
    add_user_dir(parser)
    parser.add_argument("--batch-size", type=int, default=32, help="sentences (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per model (default: %(default)s)")
    parser.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="resamples; 0: no intervals (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.evaluation.classifiers.evaluate import ClassifierComparison, evaluate_classifiers

    evaluate_classifiers(filled(ClassifierComparison, args, inputs=inputs_of(args), job=job_of(args)))
    return 0
