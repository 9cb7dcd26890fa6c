"""What torch could read and is no checkpoint of fairseq's: told by its keys and by the types in it."""

import re
from typing import AbstractSet, Any, Optional, Tuple

import torch

from kd_plugin.checkpoints.formats import ORIGINAL, WANTED, Foreign

NO_CONFIGURATION = "fairseq's configuration (cfg or args) is missing"


def foreign_state(state: Any) -> Optional[Foreign]:
    """What a file holds that torch could read, where it is no checkpoint of fairseq; None: it is one."""
    if not isinstance(state, dict):
        return Foreign(f"no fairseq checkpoint: a {type(state).__name__} alone was saved", WANTED)
    configuration = state.get("cfg") or state.get("args")
    if isinstance(state.get("model"), dict) and configuration:
        if not any(map(torch.is_tensor, state["model"].values())):
            return Foreign("no fairseq checkpoint: its model has no tensors", WANTED)
        return None
    keys = [str(key) for key in state]
    for own, program in PROGRAMS:
        if own <= set(keys):
            return Foreign(f"no fairseq checkpoint: it is one of {program}", ORIGINAL)
    if keys and all(map(torch.is_tensor, state.values())):
        if any(re.match(r"(encoder|decoder)\.(embed_tokens|layers\.0|version)", key) for key in keys):
            return Foreign(f"no fairseq checkpoint: bare weights with fairseq's names, {NO_CONFIGURATION}", WANTED)
        if any(re.search(HUGGING_FACE, key) for key in keys):
            return Foreign("no fairseq checkpoint: bare weights of Hugging Face (pytorch_model.bin)", ORIGINAL)
        return Foreign(f"no fairseq checkpoint: bare weights, {NO_CONFIGURATION}", ORIGINAL)
    if "model" in state:
        reason = NO_CONFIGURATION if not configuration else "its model is no dictionary of tensors"
        return Foreign(f"no fairseq checkpoint: {reason}", WANTED)
    holds = ", ".join(sorted(keys)[:5]) or "nothing"
    return Foreign(f"no fairseq checkpoint: it holds {holds}, and no model with its configuration", WANTED)


# keys of a whole checkpoint
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
    ("torchtext.", "an old checkpoint of OpenNMT-py"),
    ("onmt.", "a checkpoint of OpenNMT-py"),
    ("transformers.", "an object of Hugging Face's transformers"),
    ("pytorch_lightning.", "a checkpoint of PyTorch Lightning"),
    ("sklearn.", "an object of scikit-learn"),
    ("torch.nn.modules.", "a whole module, saved with its program"),
)


def origin(type_name: str) -> str:
    """` (…)`: what a file with this type in it probably is; nothing where nobody knows."""
    found = [what for module, what in MODULES if type_name.startswith(module)]
    return f" (it is probably {found[0]})" if found else ""
