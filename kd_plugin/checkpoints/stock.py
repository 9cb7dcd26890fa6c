"""Writes a checkpoint for publication: weights and sizes, without traces of the machine or the training run.

Its configuration consists of plain dictionaries, so that torch reads it with weights_only and stock fairseq needs no
plugin.
"""

import argparse
import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Set, Tuple

import torch
from fairseq import models
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
from fairseq.dataclass.configs import CommonEvalConfig, DatasetConfig, GenerationConfig, InteractiveConfig
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from fairseq.models.transformer import TransformerConfig
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import OmegaConf
from torch import Tensor

from kd_plugin.checkpoints.build import EMBEDDING_FILES
from kd_plugin.checkpoints.open import Checkpoint
from kd_plugin.checkpoints.student import STOCK_CRITERION, STOCK_TASK
from kd_plugin.compat import BETTER_TRANSFORMER_COPY
from kd_plugin.errors import KDPluginError

# task fields that determine how text becomes indices and batches; the rest is about the run's data and evaluation
TASK_FIELDS = ("left_pad_source", "left_pad_target", "max_source_positions", "max_target_positions")

# groups that from_pretrained reads, with their defaults; none has a private field
READ_BY_FAIRSEQ = {
    "common_eval": CommonEvalConfig,
    "dataset": DatasetConfig,
    "generation": GenerationConfig,
    "interactive": InteractiveConfig,
}


def own_weights(model: Any, half: bool = False) -> Dict[str, Tensor]:
    """A copy of the model's state: tied tensors once, and no extra bytes in their storage. half: float32 as float16"""
    copies: Dict[Tuple[int, Tuple[int, ...], Tuple[int, ...]], Tensor] = {}
    weights = {}
    for name, tensor in model.state_dict().items():
        if BETTER_TRANSFORMER_COPY.search(name):
            continue
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if key not in copies:
            copy = tensor.detach().clone().contiguous()
            copies[key] = copy.half() if half and copy.dtype == torch.float32 else copy
        weights[name] = copies[key]
    return weights


def tied_names(weights: Dict[str, Tensor]) -> Dict[str, str]:
    """For names that share a tensor, all but the first: name -> first name."""
    first: Dict[int, str] = {}
    tied = {}
    for name, tensor in weights.items():
        owner = first.setdefault(tensor.data_ptr(), name)
        if owner != name:
            tied[name] = owner
    return tied


def model_fields(opened: Checkpoint, read: Callable[[Dict[str, Any]], Any] = OmegaConf.create) -> Dict[str, Any]:
    """The options that define the architecture, with `_name`, without paths or anything about the run.

    Args:
        read: turns them into the configuration from which the reader will build the model

    Raises:
        KDPluginError: the options do not suffice to rebuild the model
    """
    model, cfg = opened.model, opened.cfg.model
    given = vars(cfg) if isinstance(cfg, argparse.Namespace) else OmegaConf.to_container(cfg, enum_to_str=True)
    name = str(given.get("_name") or given.get("arch"))
    flat = dict(given)
    if isinstance(getattr(model, "cfg", None), TransformerConfig):
        flat.update(flat_options(model.cfg))
    allowed = _declared(name, type(model))
    flat.update(dict.fromkeys(EMBEDDING_FILES))
    kept = {key: _public(value) for key, value in flat.items() if key in allowed and _is_plain(value)}
    # an architecture name registered by this plugin or another package would require that package
    stock_name = next((n for n in ("transformer", "transformer_align") if type(model) is MODEL_REGISTRY[n]), name)
    kept["_name"] = stock_name
    # old models read this for the adaptive softmax, BART to know how it was trained
    kept["criterion"] = "adaptive_loss" if given.get("criterion") == "adaptive_loss" else STOCK_CRITERION
    kept["task"] = STOCK_TASK
    _check_rebuild(opened, kept, read)
    return kept


def transformer_fields(config: TransformerConfig) -> Dict[str, Any]:
    """The options with which fairseq's stock `transformer` has this configuration, without paths."""
    declared = set(flat_options(TransformerConfig()))
    kept = {key: _public(value) for key, value in flat_options(config).items() if key in declared and _is_plain(value)}
    return {**kept, **dict.fromkeys(EMBEDDING_FILES), "_name": "transformer"}


def flat_options(config: TransformerConfig) -> Dict[str, Any]:
    """fairseq's transformer configuration with its groups flattened to flags such as encoder_layers."""
    flat: Dict[str, Any] = {}
    for field, value in vars(config).items():
        inner = [one.name for one in fields(value) if one.name != "_name"] if is_dataclass(value) else []
        flat.update({f"{field}_{name}": getattr(value, name) for name in inner} if inner else {field: value})
    return flat


def _declared(name: str, model_class: Any) -> Set[str]:
    """The options that the model's own code declares."""
    if name in MODEL_DATACLASS_REGISTRY:
        return {field.name for field in fields(MODEL_DATACLASS_REGISTRY[name])}
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    model_class.add_args(parser)
    declared = {action.dest for action in parser._actions}
    if name in ARCH_CONFIG_REGISTRY:
        defaults = argparse.Namespace()
        ARCH_CONFIG_REGISTRY[name](defaults)
        declared |= set(vars(defaults))
    if issubclass(ARCH_MODEL_REGISTRY.get(name, model_class), MODEL_REGISTRY["transformer"]):
        declared |= set(flat_options(TransformerConfig()))
    return declared | {"max_source_positions", "max_target_positions"}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _public(value: Any) -> Any:
    return None if isinstance(value, str) and os.sep in value else value


def _check_rebuild(opened: Checkpoint, kept: Dict[str, Any], read: Callable[[Dict[str, Any]], Any]) -> None:
    try:
        same = _rebuilds(opened, read(kept))
    except Exception as error:  # third-party models may raise anything
        name, reason = kept["_name"], " ".join(str(error).split())[:200]
        if read is not as_namespace and _is_built(opened, as_namespace(kept)):
            raise KDPluginError(
                f"{opened.path}: fairseq can build {name!r} from flags, but not from a configuration of plain values "
                f"({reason}). Remedy: --format safetensors, or use the checkpoint as it is"
            ) from error
        raise KDPluginError(
            f"{opened.path}: its model {name!r} cannot be rebuilt from its own options alone ({reason}). Remedy: a "
            "model whose class declares all its options in add_args"
        ) from error
    if not same:
        raise KDPluginError(
            f"{opened.path}: its model {kept['_name']!r}, rebuilt from its own options alone, has the same weights but "
            "gives different answers. Remedy: a model whose class declares all its options in add_args"
        )


def as_namespace(options: Dict[str, Any]) -> argparse.Namespace:
    """The form of configuration for fairseq models without a dataclass."""
    return argparse.Namespace(**options)


def _is_built(opened: Checkpoint, options: Any) -> bool:
    try:
        return _rebuilds(opened, options)
    except Exception:  # third-party models may raise anything
        return False


def _rebuilds(opened: Checkpoint, options: Any) -> bool:
    """Whether a model with these options and the checkpoint's weights gives the same answers."""
    rebuilt = models.build_model(options, TranslationTask(TranslationConfig(), *opened.dictionaries))
    rebuilt.load_state_dict(own_weights(opened.model), strict=True)
    answers = [_answer(model, opened) for model in (opened.model, rebuilt.eval())]
    return torch.allclose(answers[0], answers[1], rtol=1e-3, atol=1e-4, equal_nan=True)


@torch.no_grad()
def _answer(model: Any, opened: Checkpoint) -> Tensor:
    """A model's log-probabilities for a short sentence pair made of the first words of the dictionaries."""
    shortest = min(opened.max_source_tokens, opened.max_target_tokens, 4)
    source, target = (list(range(d.nspecial, len(d)))[:shortest] for d in opened.dictionaries)
    source, previous = [*source, opened.dictionaries[0].eos()], [opened.dictionaries[1].eos(), *target]
    output = model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([previous]))
    answer: Tensor = model.get_normalized_probs(output, log_probs=True)
    return answer


def _defaults(dataclass: Any) -> Any:
    return OmegaConf.to_container(OmegaConf.structured(dataclass), enum_to_str=True)


def write_stock_checkpoint(opened: Checkpoint, path: Path, half: bool = False) -> None:
    """Writes a checkpoint that stock fairseq-generate, fairseq-interactive and from_pretrained read without a plugin.

    Args:
        half: store float16; by default, fairseq still computes in float32
    """
    task = {field: value for field in TASK_FIELDS if (value := getattr(opened.cfg.task, field, None)) is not None}
    smoothing = getattr(getattr(opened.cfg, "criterion", None), "label_smoothing", None)
    state = stock_state(model_fields(opened), own_weights(opened.model, half), opened.languages, task, smoothing)
    torch.save(state, str(path))


def stock_state(
    model: Dict[str, Any],
    weights: Dict[str, Tensor],
    languages: Optional[Sequence[str]],
    task: Mapping[str, Any],
    smoothing: Any = None,
) -> Dict[str, Any]:
    """The content of such a checkpoint.

    Args:
        model: the options of its model, with `_name`
        weights: by fairseq's names
        languages: source and target; None: unknown
        task: the values of TASK_FIELDS, as far as they are known
        smoothing: label smoothing; None: fairseq's default
    """
    source_lang, target_lang = languages or (None, None)
    if not isinstance(smoothing, float):
        smoothing = LabelSmoothedCrossEntropyCriterionConfig.label_smoothing
    return {
        "args": None,
        "cfg": {
            "_name": None,
            **{group: _defaults(dataclass) for group, dataclass in READ_BY_FAIRSEQ.items()},
            "task": {
                "_name": STOCK_TASK,
                "data": "",
                "source_lang": source_lang,
                "target_lang": target_lang,
                **{name: _public(value) for name, value in task.items() if _is_plain(value)},
            },
            "tokenizer": None,
            "bpe": None,
            # by default, sentence_avg refers to a group that only training has, which fairseq-validate could not read
            "criterion": {"_name": STOCK_CRITERION, "label_smoothing": smoothing, "sentence_avg": False},
            "model": model,
        },
        "model": weights,
        # fairseq's readers expect these
        "criterion": {},
        "optimizer_history": [
            {
                "criterion_name": "LabelSmoothedCrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": None},
                "num_updates": 0,
            }
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
    }
