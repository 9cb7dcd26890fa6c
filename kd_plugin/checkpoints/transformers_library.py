"""The library transformers, as it is used for folders: it is imported only then, downloads nothing and runs no code."""

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any, Iterator

from kd_plugin.errors import KDPluginError
from kd_plugin.files.json_text import parse_json

INSTALL = "pip install 'kd-plugin[hf]'"
CONFIG = "config.json"
MODEL_TYPES = ("marian", "m2m_100", "mbart", "t5", "mt5", "umt5")  # as in config.json
LOCAL = {"local_files_only": True, "trust_remote_code": False}


def is_huggingface(path: str) -> bool:
    """Whether a path is a folder with a transformers model, according to its configuration."""
    config = os.path.join(path, CONFIG)
    if not os.path.isfile(config):
        return False
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = parse_json(Path(config).read_bytes())
        return isinstance(content, dict) and "model_type" in content
    return False


def model_type(path: str) -> str:
    try:
        config = parse_json((Path(path) / CONFIG).read_bytes())
        kind = str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KDPluginError(f"{path}: its {CONFIG} has no model_type ({error}). Remedy: copy the folder again") from (
            error
        )
    if kind not in MODEL_TYPES:
        raise KDPluginError(
            f"{path}: a Hugging Face model of the type {kind}, which is not supported. Remedy: use one of "
            f"{', '.join(MODEL_TYPES)} (MarianMT and OPUS-MT, M2M100 and NLLB, mBART, T5 and MADLAD)"
        )
    return kind


@contextlib.contextmanager
def opening(path: str) -> Iterator[Any]:
    """The library, to open a folder with.

    Raises:
        KDPluginError: it is not installed, or cannot open the folder
    """
    try:
        import transformers
    except ImportError as error:
        raise KDPluginError(
            f"{path}: a Hugging Face model, but transformers cannot be imported ({error}). Remedy: {INSTALL}"
        ) from error
    try:
        with silent():
            yield transformers
    except Exception as error:  # the library and its parsers raise all kinds
        reason = " ".join(str(error).split())[:300]
        raise KDPluginError(
            f"{path}: transformers cannot open it ({type(error).__name__}: {reason}). Remedy: use a complete folder, "
            "with config.json, safetensors and the tokenizer files, and a version of transformers that supports it"
        ) from error


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppress transformers' developer warnings and progress bars."""
    from transformers.utils import logging as own

    level, bars = own.get_verbosity(), own.is_progress_bar_enabled()
    own.set_verbosity_error()
    own.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        own.set_verbosity(level)
        if bars:
            own.enable_progress_bar()
