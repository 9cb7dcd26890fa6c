"""The flags that name a model to translate or to score with."""

import argparse
from typing import Optional, Sequence

import torch

from kd_plugin.checkpoints.overrides import parse_overrides
from kd_plugin.decoding.fairseq import Checkpoints, open_checkpoints


def default_dtype(device: torch.device) -> str:
    return "float16" if device.type == "cuda" else "float32"


def add_model_arguments(parser: argparse.ArgumentParser, help_of_path: str) -> None:
    """What `checkpoints_of` reads."""
    parser.add_argument("--path", required=True, metavar="A.pt[:B.pt…]", help=help_of_path)
    parser.add_argument("--model-overrides", default="{}", metavar="JSON", help="as fairseq-generate's")
    parser.add_argument("--dict-dir", metavar="DIR", help="folder with the models' dictionaries, where elsewhere")
    parser.add_argument("-s", "--source-lang", metavar="LANG", help="the models'; default: the checkpoint's")
    parser.add_argument("-t", "--target-lang", metavar="LANG", help="the models'; default: the checkpoint's")


def checkpoints_of(args: argparse.Namespace, languages: Sequence[Optional[str]] = (None, None)) -> Checkpoints:
    """The models that the flags name.

    Args:
        languages: source and target, where the flags do not say; None: the checkpoint's
    """
    overrides = parse_overrides(args.model_overrides, "--model-overrides")
    if args.dict_dir is not None:
        overrides["data"] = args.dict_dir
    source_lang, target_lang = args.source_lang or languages[0], args.target_lang or languages[1]
    return open_checkpoints(args.path, overrides, source_lang, target_lang)
