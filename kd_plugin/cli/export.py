"""`kd-plugin export`: a trained model in a format to use or to share: CTranslate2, fairseq, safetensors, ONNX."""

import argparse

from kd_plugin.cli.evaluate_classifier import TASKS
from kd_plugin.cli.options import add_languages, add_subwords, add_user_dir, filled, inputs_of, subwords
from kd_plugin.export.options import FORMATS, QUANTIZED_THRESHOLD, SUBWORDS, THRESHOLD, Export, check_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="from fairseq-train, with or without the plugin")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--format",
        required=True,
        choices=list(FORMATS),
        help="ctranslate2: for deployment, 2.4 to 5.5 times as fast as fairseq on a CPU; fairseq: a checkpoint without "
        "optimizer state and private paths, for stock fairseq; safetensors: weights and sizes for other programs; "
        "onnx: a model that classifies or tags, for ONNX Runtime, with its subword model and label names",
    )
    parser.add_argument(
        "--quantization", metavar="TYPE", help="for ctranslate2: int8, int8_float16, float16, … (default: int8)"
    )
    parser.add_argument("--fp16", action="store_true", help="for fairseq and safetensors: half the size")
    names = f"{SUBWORDS['']}, {SUBWORDS['source']} and {SUBWORDS['target']}"
    add_subwords(parser, f"that of the training data, to copy beside the model ({names})")
    add_languages(parser, "default: the checkpoint's")
    parser.add_argument("--dict-dir", metavar="DIR", help="folder with its dictionaries, if not beside it")
    add_user_dir(parser)
    parser.add_argument(
        "--max-positions",
        type=int,
        metavar="N",
        help="for ctranslate2: the longest sentence in tokens, with its end; fewer make a smaller file (default: the "
        "checkpoint's)",
    )
    parser.add_argument(
        "--vocabulary-map-from",
        nargs="+",
        metavar=("CORPUS.src CORPUS.tgt | TRANSLATIONS_DIR", "…"),
        help="for ctranslate2: also make a vocabulary map, from raw parallel text or from the output of kd-plugin "
        "decode; the model uses it if translate_batch gets use_vmap=True",
    )
    parser.add_argument(
        "--check",
        metavar="FILE",
        help="translate this raw text with both models and compare; not for safetensors. An ONNX model is compared "
        "in any case: on this text if there is one, and on random symbols",
    )
    parser.add_argument(
        "--check-threshold",
        type=float,
        metavar="BLEU",
        help="BLEU of the exported model's translations against the checkpoint's; below it, the exit status is 1 and "
        f"nothing is written (default: {THRESHOLD:g}; {QUANTIZED_THRESHOLD:g} for int8, int8_float16, int16, …)",
    )
    parser.add_argument(
        "--task",
        choices=TASKS,
        help=f"for onnx: a class per sentence, a label per word, or a number per sentence (default: {TASKS[0]})",
    )
    parser.add_argument(
        "--head",
        metavar="NAME",
        help="for onnx: the classification head (default: the one with fairseq's usual name, or the only one)",
    )


def _options(args: argparse.Namespace) -> Export:
    # already segmented text is compared unchanged
    return filled(Export, args, subwords=subwords(args, remove_bpe="none"), inputs=inputs_of(args))


def check(args: argparse.Namespace) -> None:
    """What can be said of the flags alone, before there is a model."""
    check_flags(_options(args))


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.export.export import export

    export(_options(args))
    return 0
