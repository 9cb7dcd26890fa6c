"""`kd-plugin cache`: ask a teacher about every target token of a corpus once, and store the answers."""

import argparse
from typing import Any

from kd_plugin.cache.manifest import KINDS
from kd_plugin.cli.options import DATA, add_job, add_languages, filled, inputs_of
from kd_plugin.corpus.words import AUTO, HELP, WORD_STARTS
from kd_plugin.errors import KDPluginError
from kd_plugin.runners.jobs import Job

# options of one kind of task, and their defaults
OF_LABELS = {
    "teacher_labels": None,
    "teacher_head": None,
    "classification_head_name": None,
    "label_dict": None,
    "word_start": AUTO,
    "init_token": None,
    "separator_token": None,
    "regression_target": False,
    "num_classes": -1,
}
OF_TRANSLATION = {
    "source_lang": None,
    "target_lang": None,
    "teacher_source_lang": None,
    "teacher_target_lang": None,
    "kind": "topk",
    "k": 16,
    "temperature": 1.0,
    "seed": 1,
    "truncate_source": False,
    "max_source_positions": None,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help=DATA)
    parser.add_argument(
        "--teacher-path", required=True, metavar="A.pt[:B.pt…]", help="the teacher, or an ensemble, as in training"
    )
    parser.add_argument(
        "--task",
        default="translation",
        choices=["translation", "sentence_prediction", "sequence_tagging"],
        help="what the teacher does with the data (default: %(default)s)",
    )
    parser.add_argument("--teacher-weights", metavar="W[,W…]", help="for an ensemble, as in training")
    parser.add_argument("--teacher-overrides", default="{}", metavar="JSON", help="as in training")
    parser.add_argument("--teacher-user-dir", metavar="DIR", help="as in training: the teacher's code; it runs")
    parser.add_argument("--teacher-sha256", metavar="HASH[:HASH…]", help="refuse any other file as teacher")
    parser.add_argument(
        "--teacher-dtype",
        default="auto",
        choices=["auto", "fp32", "fp16", "bf16"],
        help="auto: fp16 on a GPU, fp32 on a CPU (default: %(default)s)",
    )
    parser.add_argument(
        "--teacher-source-lang", metavar="CODE", help="as in training: the language code of a Hugging Face teacher"
    )
    parser.add_argument("--teacher-target-lang", metavar="CODE", help="likewise")
    parser.add_argument(
        "--teacher-missing-symbols",
        default="refuse",
        choices=["refuse", "ignore"],
        help="as in training (default: %(default)s)",
    )
    parser.add_argument("--cache-dir", required=True, metavar="DIR", help="the folder to give to --teacher-cache later")
    parser.add_argument(
        "--subset", default="train", help="splits, separated by commas: train,valid (default: %(default)s)"
    )
    add_languages(parser, "default: from the file names in DATA")
    parser.add_argument(
        "--kind",
        default="topk",
        choices=KINDS,
        help="topk: the k best entries and the mass of the rest; sampled: k draws from the teacher's distribution, "
        "unbiased, forward_kl only (default: %(default)s)",
    )
    parser.add_argument("--k", type=int, default=16, help="entries or draws per target token (default: 16)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="of the answers; later trainings need the same --kd-temperature (default: 1.0)",
    )
    parser.add_argument("--seed", type=int, default=1, help="for --kind sampled (default: %(default)s)")
    parser.add_argument(
        "--truncate-source",
        action="store_true",
        help="cut longer sources to --max-source-positions, as trainings with this flag do",
    )
    parser.add_argument(
        "--max-source-positions", type=int, metavar="N", help="for --truncate-source, as in training (default: 1024)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=8000, help="tokens per batch, with padding (default: %(default)s)"
    )
    parser.add_argument(
        "--shard-tokens",
        type=int,
        default=1_000_000,
        help="target tokens per file: the most that a killed job loses (default: %(default)s)",
    )
    add_job(parser)
    labels = parser.add_argument_group("for --task sentence_prediction and sequence_tagging, as in training")
    labels.add_argument("--teacher-labels", metavar="NAME,NAME…", help="the names of the teacher's outputs")
    labels.add_argument("--teacher-head", metavar="NAME", help="a fairseq teacher's classification head")
    labels.add_argument("--classification-head-name", metavar="NAME", help="the student's head")
    labels.add_argument(
        "--label-dict", metavar="FILE", help="the student's label/dict.txt, if it is not in DATA: for --kd-unlabelled"
    )
    labels.add_argument("--word-start", default=AUTO, choices=WORD_STARTS, help=f"{HELP} (default: %(default)s)")
    labels.add_argument("--init-token", type=int, metavar="N", help="index of a symbol before each sentence")
    labels.add_argument("--separator-token", type=int, metavar="N", help="index of a symbol between two sentences")
    labels.add_argument("--regression-target", action="store_true", help="the teacher predicts numbers, not labels")
    labels.add_argument(
        "--num-classes",
        type=int,
        default=-1,
        metavar="N",
        help="how many numbers per sentence, for --regression-target; without it, the number of labels, as a check",
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    if args.task != "translation":
        return _labels(args)
    for name, default in OF_LABELS.items():
        _refuse(args, name, default, "--task translation")
    from kd_plugin.decoding.cache_answers import Questions, cache_answers

    cache_answers(filled(Questions, args, job=filled(Job, args), inputs=inputs_of(args)))
    return 0


def _labels(args: argparse.Namespace) -> int:
    for name, default in OF_TRANSLATION.items():
        _refuse(args, name, default, f"--task {args.task}, whose answers are stored whole")
    from kd_plugin.decoding.cache_labels import LabelQuestions, cache_labels

    cache_labels(filled(LabelQuestions, args, job=filled(Job, args), inputs=inputs_of(args)))
    return 0


def _refuse(args: argparse.Namespace, name: str, default: Any, why: str) -> None:
    """Refuses an option that has no effect."""
    if getattr(args, name) != default:
        raise KDPluginError(f"--{name.replace('_', '-')}: has no effect with {why}. Remedy: leave it out")
