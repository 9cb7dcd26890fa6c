"""The flags that name a model to translate or to score with."""

from typing import Optional, Sequence

import torch

from kd_plugin.checkpoints.overrides import parse_overrides
from kd_plugin.decoding.base import ModelOptions
from kd_plugin.decoding.fairseq import Checkpoints, open_checkpoints


def default_dtype(device: torch.device) -> str:
    return "float16" if device.type == "cuda" else "float32"


def checkpoints_of(options: ModelOptions, languages: Sequence[Optional[str]] = (None, None)) -> Checkpoints:
    """The models that the flags name.

    Args:
        languages: source and target, where the flags do not say; None: the checkpoint's
    """
    overrides = parse_overrides(options.model_overrides, "--model-overrides")
    if options.dict_dir is not None:
        overrides["data"] = options.dict_dir
    source_lang, target_lang = options.source_lang or languages[0], options.target_lang or languages[1]
    return open_checkpoints(options.path, overrides, source_lang, target_lang)
