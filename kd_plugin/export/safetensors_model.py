"""Writes a model as safetensors: weights without code, and the sizes needed to build the model."""

from pathlib import Path
from typing import Any, Dict

from kd_plugin.checkpoints.open import Checkpoint
from kd_plugin.checkpoints.stock import as_namespace, model_fields, own_weights, tied_names
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import write_json

INSTALL = "pip install 'kd-plugin[export]'"
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write_safetensors(opened: Checkpoint, folder: Path, half: bool = False) -> None:
    """Writes WEIGHTS and CONFIG to `folder`.

    Tensors have the names and layouts of fairseq's state_dict: a linear layer is (outputs, inputs), an embedding
    (symbols, width). The first of several tied tensors is stored; CONFIG's `tied` maps the other names to it.

    Args:
        half: store float16

    Raises:
        KDPluginError: safetensors is not installed, or as `model_fields`
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise KDPluginError(f"safetensors cannot be imported ({error}). Remedy: {INSTALL}") from error
    weights = own_weights(opened.model, half)
    tied = tied_names(weights)
    stored = {name: tensor for name, tensor in weights.items() if name not in tied}
    save_file(stored, str(folder / WEIGHTS), metadata={"format": "pt"})
    write_json(folder / CONFIG, _config(opened, tied, "float16" if half else "float32"))


def _config(opened: Checkpoint, tied: Dict[str, str], dtype: str) -> Dict[str, Any]:
    source, target = opened.dictionaries
    options = model_fields(opened, as_namespace)
    return {
        "architecture": options.pop("_name"),
        "options": options,
        "dtype": dtype,
        "parameters": opened.parameters,
        "source_vocabulary": len(source),
        "target_vocabulary": len(target),
        "special_ids": {name: getattr(target, name)() for name in ("bos", "pad", "eos", "unk")},
        "tied": tied,
    }
