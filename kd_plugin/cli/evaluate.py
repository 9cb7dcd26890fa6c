"""`kd-plugin evaluate`: models side by side on raw test sets: scores, significance, speed and size."""

import argparse

from sacrebleu.metrics import BLEU

from kd_plugin.cli.options import (
    add_folder_languages,
    add_languages,
    add_subwords,
    add_user_dir,
    filled,
    inputs_of,
    job_of,
    subwords,
)
from kd_plugin.decoding.base import ENGINES, FolderOptions, Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="a checkpoint, an ensemble A.pt:B.pt, or a folder with a CTranslate2, Hugging Face or Marian model; once "
        "for each model",
    )
    add_folder_languages(parser)
    parser.add_argument(
        "--test", action="append", required=True, metavar="NAME=SRC,REF", help="raw text; once for each test set"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="for evaluation.json, evaluation.md, translations"
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="the --model that all others are tested against (default: none)"
    )
    parser.add_argument(
        "--engine",
        default="auto",
        choices=("auto", *ENGINES),
        help="the only engine that models may be for: fairseq (checkpoints) or ctranslate2 (folders); auto: either "
        "(default: %(default)s)",
    )
    add_subwords(parser, "for raw text that is not segmented yet", remove_bpe=True)
    add_languages(parser, "default: the checkpoint's")
    parser.add_argument(
        "--dict-dir", metavar="DIR", help="folder with the checkpoints' dictionaries, if not beside them"
    )
    add_user_dir(parser)
    for name, text in (("beam", "beam size"), ("max_len_a", ""), ("max_len_b", ""), ("lenpen", "length penalty")):
        default = getattr(Settings(), name)
        text = f"{text or 'as in fairseq-generate'} (default: {default})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=text)
    parser.add_argument("--max-tokens", type=int, default=4000, help="source tokens per batch (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per model (default: %(default)s)")
    parser.add_argument(
        "--cpu-sentences",
        type=int,
        default=200,
        help="if a GPU translates: how many sentences of the first test set the CPU also translates, to measure its "
        "speed (default: %(default)s)",
    )
    parser.add_argument(
        "--tokenize",
        choices=BLEU.TOKENIZERS,
        help="sacreBLEU's tokenizer; none: the text is tokenised already (default: by target language: zh for Chinese, "
        "mecab or characters for Japanese and Korean, characters for Thai, Khmer, …, 13a for all others)",
    )
    parser.add_argument("--lowercase", action="store_true", help="ignore case in scores")
    parser.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="resamples; 0: no intervals (default: %(default)s)"
    )
    parser.add_argument("--comet", metavar="MODEL", help="also score with COMET: a model name to download, or a path")


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.evaluation.evaluate import Comparison, evaluate

    groups = {
        "folder": filled(FolderOptions, args),
        "subwords": subwords(args),
        "search": filled(Settings, args),
        "inputs": inputs_of(args),
        "job": job_of(args),
    }
    evaluate(filled(Comparison, args, **groups))
    return 0
