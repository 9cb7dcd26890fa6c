"""A model as safetensors: weights without any code, and the sizes that a reader needs to build it."""

from pathlib import Path
from typing import Any, Dict

from kd_plugin.checkpoints.open import Checkpoint
from kd_plugin.checkpoints.stock import as_namespace, model_fields, own_weights, tied_names
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import write_json

INSTALL = "pip install 'kd-plugin[export]'"
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write_safetensors(opened: Checkpoint, folder: Path, half: bool = False) -> None:
    """WEIGHTS and CONFIG in `folder`.

    Tensors have the names of fairseq's state_dict, and its layouts: a linear layer is (outputs, inputs), an embedding
    (symbols, width). Of tied ones the first is stored; CONFIG's `tied` says which other names mean the same tensor.

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
