"""Checks that a checkpoint's model translates a sentence of symbols into another, token by token."""

import argparse
import ast
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from fairseq.models import (
    ARCH_MODEL_REGISTRY,
    MODEL_REGISTRY,
    FairseqEncoderModel,
    FairseqLanguageModel,
    FairseqMultiModel,
)
from fairseq.models.nat import FairseqNATModel
from omegaconf import OmegaConf

from kd_plugin.errors import KDPluginError

TRANSLATE_ELSEWHERE = (
    "translate with fairseq-generate and its own task, then import the translations with kd-plugin import"
)
TRANSLATION_MODEL = "a model that was trained with --task translation"
# packages of fairseq.models whose models read or write audio
SOUND = ("speech_dlm", "speech_to_speech", "speech_to_text", "text_to_speech", "wav2vec", "hubert")


# comprehension: its loop variable may be another module's attribute
ACTIONS = (ast.Call, ast.Await, ast.Lambda, ast.NamedExpr, ast.comprehension)


class Refusal(NamedTuple):
    """A reason for refusal. what: continues "its architecture NAME" or "it was trained with --task NAME, which"."""

    what: str
    remedy: str


NOT_BY_TOKEN = Refusal(
    "generates a whole translation at once or in several passes, and never gives the next token's probability",
    TRANSLATE_ELSEWHERE,
)
LANGUAGE_MODEL = Refusal("is a language model: it continues text and reads no source", TRANSLATION_MODEL)
ENCODER = Refusal("is an encoder without a decoder: it generates nothing", TRANSLATION_MODEL)
SEVERAL_MODELS = Refusal("is several models, one per language pair", TRANSLATE_ELSEWHERE)
OF_SOUND = Refusal("reads or writes audio, not text", TRANSLATE_ELSEWHERE)
OTHER_DICTIONARY = Refusal(
    "has different special symbols in its dictionary (fairseq's MaskedLMDictionary)", TRANSLATION_MODEL
)
RECONSTRUCTS = Refusal(
    "teaches a model to restore corrupted text, not to translate", f"fine-tune it first, and use {TRANSLATION_MODEL}"
)

# fairseq's tasks whose models do not translate text like those of its translation task; for tasks that only add
# language tokens, see language_tokens.py
TASKS: Dict[str, Refusal] = {
    "cross_lingual_lm": LANGUAGE_MODEL,
    "denoising": RECONSTRUCTS,
    "language_modeling": LANGUAGE_MODEL,
    "legacy_masked_lm": ENCODER,
    "masked_lm": ENCODER,
    "multilingual_denoising": RECONSTRUCTS,
    "multilingual_language_modeling": LANGUAGE_MODEL,
    "multilingual_masked_lm": ENCODER,
    "sentence_prediction": ENCODER,
    "sentence_ranking": ENCODER,
    "simul_speech_to_text": OF_SOUND,
    "span_masked_lm": RECONSTRUCTS,
    "speech_to_speech": OF_SOUND,
    "speech_to_text": OF_SOUND,
    "text_to_speech": OF_SOUND,
    "translation_from_pretrained_xlm": OTHER_DICTIONARY,
    "translation_lev": NOT_BY_TOKEN,
}


def check_translates(path: str, cfg: Any) -> None:
    """Refuses a model that no verb can use, before it is built.

    Args:
        cfg: the checkpoint's configuration, {model, task, ...}

    Raises:
        KDPluginError: the model or its task does not translate token by token, or one of its options is code
    """
    name = architecture_of(cfg.model)
    task = getattr(cfg.task, "_name", None)
    refusal = _refusal_of(ARCH_MODEL_REGISTRY.get(name) or MODEL_REGISTRY.get(name))
    if refusal is not None:
        raise KDPluginError(f"{path}: its architecture {name!r} {refusal.what}. Remedy: {refusal.remedy}")
    if task in TASKS:
        raise KDPluginError(
            f"{path}: it was trained with --task {task}, which {TASKS[task].what}. Remedy: {TASKS[task].remedy}"
        )
    check_options(path, cfg)


def check_options(path: str, cfg: Any) -> None:
    """Refuses a model whose options name another checkpoint or are code.

    Args:
        cfg: as for `check_translates`

    Raises:
        KDPluginError: naming the option
    """
    for option, value in _strings(cfg.model):
        if _is_checkpoint(option, value) and getattr(cfg.model, "pretrained", None) != "False":
            raise KDPluginError(
                f"{path}: its option {option} names another checkpoint, {value}, which fairseq would load too. Remedy: "
                f"a self-contained model; if this file has all weights, the overrides '{{\"{option}\": null}}'"
            )
        if _acts(value):
            raise KDPluginError(
                f"{path}: its option {option} is {value[:80]!r}, which fairseq could run as code; it was refused and "
                "not run. Remedy: use a checkpoint from a source you trust, or give the option a plain value with the "
                "overrides"
            )


def architecture_of(model_cfg: Any) -> str:
    """The registered name of the architecture."""
    return str(getattr(model_cfg, "_name", None) or getattr(model_cfg, "arch", None))


def _refusal_of(model_class: Any) -> Optional[Refusal]:
    if not isinstance(model_class, type):
        return None  # not registered: building it will fail with an error
    for base, refusal in (
        (FairseqNATModel, NOT_BY_TOKEN),
        (FairseqMultiModel, SEVERAL_MODELS),
        (FairseqLanguageModel, LANGUAGE_MODEL),
    ):
        if issubclass(model_class, base):
            return refusal
    module = model_class.__module__
    if module.startswith(tuple(f"fairseq.models.{package}" for package in SOUND)):
        return OF_SOUND
    if module == "fairseq.models.transformer_from_pretrained_xlm":
        return OTHER_DICTIONARY
    return ENCODER if issubclass(model_class, FairseqEncoderModel) else None


def _strings(model_cfg: Any) -> Iterator[Tuple[str, str]]:
    """(name, value) of all string options, at any depth."""
    options = vars(model_cfg) if isinstance(model_cfg, argparse.Namespace) else model_cfg
    if OmegaConf.is_config(options):
        options = OmegaConf.to_container(options, resolve=False)
    left: List[Any] = [("", options)]
    while left:
        name, value = left.pop()
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, dict):
            left += [(str(key), inner) for key, inner in value.items()]
        elif isinstance(value, (list, tuple)):
            left += [(name, inner) for inner in value]


def _is_checkpoint(option: str, value: str) -> bool:
    return option.startswith("pretrained") and option.endswith("checkpoint") and bool(value)


def _acts(text: str) -> bool:
    """Whether `eval`, which fairseq's models apply to options such as `[(512, 3)] * 20`, would do more than compute."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False  # eval cannot read it either
    return any(isinstance(node, ACTIONS) for node in ast.walk(tree))
