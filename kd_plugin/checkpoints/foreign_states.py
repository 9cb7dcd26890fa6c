"""Recognises files that torch can read but that are not fairseq checkpoints, by their keys and types."""

import re
from typing import AbstractSet, Any, Optional, Tuple

import torch

from kd_plugin.checkpoints.formats import ORIGINAL, WANTED, Foreign

NO_CONFIGURATION = "fairseq's configuration (cfg or args) is missing"


def foreign_state(state: Any) -> Optional[Foreign]:
    """What a file that torch has read contains if it is not a fairseq checkpoint; None: it is one."""
    if not isinstance(state, dict):
        return Foreign(f"no fairseq checkpoint: it contains only a {type(state).__name__}", WANTED)
    configuration = state.get("cfg") or state.get("args")
    if isinstance(state.get("model"), dict) and configuration:
        if not any(map(torch.is_tensor, state["model"].values())):
            return Foreign("no fairseq checkpoint: its model has no tensors", WANTED)
        return None
    keys = [str(key) for key in state]
    for own, program in PROGRAMS:
        if own <= set(keys):
            return Foreign(f"no fairseq checkpoint: it comes from {program}", ORIGINAL)
    if keys and all(map(torch.is_tensor, state.values())):
        if any(re.match(r"(encoder|decoder)\.(embed_tokens|layers\.0|version)", key) for key in keys):
            return Foreign(f"no fairseq checkpoint: bare weights with fairseq's names, {NO_CONFIGURATION}", WANTED)
        if any(re.search(HUGGING_FACE, key) for key in keys):
            return Foreign("no fairseq checkpoint: bare Hugging Face weights (pytorch_model.bin)", ORIGINAL)
        return Foreign(f"no fairseq checkpoint: bare weights, {NO_CONFIGURATION}", ORIGINAL)
    if "model" in state:
        reason = NO_CONFIGURATION if not configuration else "its model is not a dictionary of tensors"
        return Foreign(f"no fairseq checkpoint: {reason}", WANTED)
    holds = ", ".join(sorted(keys)[:5]) or "nothing"
    return Foreign(f"no fairseq checkpoint: it contains {holds}, but no model with its configuration", WANTED)


# keys of complete checkpoints
PROGRAMS: Tuple[Tuple[AbstractSet[str], str], ...] = (
    ({"model", "generator", "opt"}, "OpenNMT-py"),
    ({"model", "generator", "vocab"}, "OpenNMT-py"),
    ({"pytorch-lightning_version"}, "PyTorch Lightning"),
    ({"model_state", "optimizer_state"}, "Joey NMT"),
    ({"module", "global_steps"}, "DeepSpeed"),
    ({"state_dict"}, "PyTorch Lightning or another program"),
)
HUGGING_FACE = (
    r"^(model\.(encoder|decoder|shared|layers|embed_tokens)\.|shared\.weight|lm_head\.|final_logits_bias|transformer\.h\."
    r"|(encoder|decoder)\.block\.\d|bert\.|roberta\.|encoder\.layer\.\d)"
)
# where a pickled type comes from
MODULES: Tuple[Tuple[str, str], ...] = (
    ("torchtext.", "an old OpenNMT-py checkpoint"),
    ("onmt.", "an OpenNMT-py checkpoint"),
    ("transformers.", "an object of Hugging Face's transformers"),
    ("pytorch_lightning.", "a PyTorch Lightning checkpoint"),
    ("sklearn.", "a scikit-learn object"),
    ("torch.nn.modules.", "a whole module, saved with its code"),
)


def origin(type_name: str) -> str:
    """` (…)`: what a file with this type probably is; empty if unknown."""
    found = [what for module, what in MODULES if type_name.startswith(module)]
    return f" (it is probably {found[0]})" if found else ""
