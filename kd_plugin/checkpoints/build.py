"""Builds the model that a checkpoint describes, of any architecture, loads its weights and freezes it."""

from typing import Any

from fairseq import models
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from kd_plugin.checkpoints.architectures import architecture_of
from kd_plugin.checkpoints.describe import Description
from kd_plugin.checkpoints.language_tokens import task_name
from kd_plugin.checkpoints.read import CheckpointFile
from kd_plugin.checkpoints.user_code import unknown_task
from kd_plugin.compat import BETTER_TRANSFORMER_COPY
from kd_plugin.errors import KDPluginError

# files of pretrained embeddings: the checkpoint has the trained weights, and the files may be gone
EMBEDDING_FILES = ("encoder_embed_path", "decoder_embed_path")


def build_model(file: CheckpointFile, description: Description) -> Any:
    """A BaseFairseqModel on the CPU, in float32, in eval mode, without gradient.

    Raises:
        KDPluginError: its architecture is not registered, or its weights do not fit it
    """
    path, cfg, name = file.path, file.cfg, architecture_of(file.cfg.model)
    # models.build_model, never task.build_model, which would make every later --eval-bleu decode with the teacher.
    # The model needs a task only for its two dictionaries; a fork's model may need the fork's own task.
    stand_in = description.task or TranslationTask(TranslationConfig(), *description.dictionaries)
    for field in EMBEDDING_FILES:
        if getattr(cfg.model, field, None):
            setattr(cfg.model, field, None)
    try:
        model = models.build_model(cfg.model, stand_in, from_checkpoint=True)
    except Exception as error:  # third-party models may raise anything
        raise KDPluginError(
            f"{path}: its architecture {name!r} cannot be built ({str(error).strip() or type(error).__name__}). "
            "Remedy: provide the code that it was trained with, or override the field of its configuration "
            "(--teacher-overrides in fairseq-train and kd-plugin cache, --model-overrides in decode and score)"
        ) from error
    fit_weights(
        model,
        file,
        f"dictionaries {' and '.join(description.dictionary_paths)}",
        f"name the dictionaries that it was trained with{unknown_task(task_name(cfg.task))}",
    )
    freeze(model)
    return model


def fit_weights(model: Any, file: Any, dictionaries: str, remedy: str) -> None:
    """Loads a file's weights into the model that its configuration describes.

    Args:
        dictionaries: that the model was built with, in words; remedy: if they are the wrong ones

    Raises:
        KDPluginError: the weights do not fit
    """
    # a teacher from fairseq 0.12.2 has weights that other versions do not know, but they are only copies
    own = model.state_dict()
    weights = {name: w for name, w in file.weights.items() if name in own or not BETTER_TRANSFORMER_COPY.search(name)}
    try:
        model.load_state_dict(weights, strict=True, model_cfg=file.cfg.model)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise KDPluginError(
            f"{file.path}: its weights do not fit its architecture {architecture_of(file.cfg.model)!r} with the "
            f"{dictionaries} ({reason[:300]}). Remedy: {remedy}"
        ) from error


def freeze(model: Any) -> None:
    model.requires_grad_(False)
    model.eval()
    for module in model.modules():
        # in eval mode, fairseq's decoder layers average attention weights for alignments, which teachers do not need
        if hasattr(module, "need_attn"):
            module.need_attn = False


def count_of(model: Any) -> int:
    """The number of a model's parameters, counting tied ones once."""
    return sum(p.numel() for name, p in model.named_parameters() if not BETTER_TRANSFORMER_COPY.search(name))
