"""`kd-plugin init`: a student that starts from its teacher's weights."""

import argparse

from kd_plugin.cli.options import add_languages, add_subwords, add_user_dir, filled, inputs_of, subwords


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "teacher", metavar="TEACHER", help="a fairseq transformer's checkpoint, or a MarianMT, M2M100 or NLLB folder"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="STUDENT.pt",
        help="checkpoint for fairseq-train --finetune-from-model; STUDENT.init.json beside it describes it",
    )
    for side in ("encoder", "decoder"):
        parser.add_argument(
            f"--{side}-layers",
            metavar="N|i,j,…",
            help="how many layers to keep, evenly spaced from the first to the last; or which, counted from 0: "
            "`0,2,5`, or `4,` for layer 4 alone (default: all)",
        )
    parser.add_argument("--embed-dim", type=int, metavar="N", help="width of encoder and decoder (default: unchanged)")
    parser.add_argument("--ffn-dim", type=int, metavar="N", help="feed-forward units per layer (default: unchanged)")
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads per layer (default: unchanged)")
    parser.add_argument(
        "--decoder-output-dim",
        type=int,
        metavar="N",
        help="factorise an untied output projection into two matrices of this rank, as in fairseq-train",
    )
    for side in ("source", "target"):
        parser.add_argument(
            f"--max-{side}-positions",
            type=int,
            metavar="N",
            help=f"longest {side} sentence, with its end; learned positions are cut (default: unchanged)",
        )
    parser.add_argument(
        "--dict-dir",
        metavar="DIR",
        help="folder with the student's dictionaries: a subset of the symbols, another order, or new ones (default: "
        "--data's, else the teacher's)",
    )
    parser.add_argument("--teacher-dict-dir", metavar="DIR", help="folder with the teacher's, if not beside it")
    parser.add_argument(
        "--approximate-activation",
        action="store_true",
        help="for a Hugging Face folder with swish, such as OPUS-MT's, which fairseq lacks: replace it with a scaled "
        "gelu, and print how far the logits change",
    )
    parser.add_argument(
        "--data",
        metavar="DATA_BIN",
        help="binarised data of the student: sentences of train show which directions, heads and units matter, and the "
        "loss on valid before training is printed",
    )
    parser.add_argument(
        "--sample-sentences",
        type=int,
        default=500,
        metavar="N",
        help="how many sentences of train to look at; 0: judge by the weights alone (default: %(default)s)",
    )
    parser.add_argument("--max-tokens", type=int, default=4000, help="tokens per batch (default: %(default)s)")
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="of the random student whose loss is printed for comparison (default: %(default)s)",
    )
    add_subwords(parser, "the teacher's, to segment new symbols (default: its longest symbols, from the left)")
    add_languages(parser, "default: --data's or --dict-dir's, else the checkpoint's")
    add_user_dir(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status 0."""
    from kd_plugin.initialise.initialise import Init, initialise

    inputs = [("--data" if name == "DATA" else name, value) for name, value in inputs_of(args)]
    initialise(filled(Init, args, subwords=subwords(args), inputs=inputs))
    return 0
