"""A fairseq checkpoint as the teacher to start from."""

import re
from typing import Any, Optional, Tuple

import torch
from fairseq.models.transformer import TransformerConfig, TransformerModelBase
from torch import Tensor

from kd_plugin.checkpoints.architectures import architecture_of
from kd_plugin.checkpoints.open import open_checkpoint
from kd_plugin.checkpoints.stock import TASK_FIELDS, transformer_fields
from kd_plugin.initialise.teacher import Batch, Teacher, agreement, not_expressible
from kd_plugin.initialise.whole import Whole, weights_of
from kd_plugin.models.inspect import has_adaptive_softmax

# what the code here knows how to cut
ATTENTION = r"(self|encoder)_attn(\.[qkv]_proj|\.out_proj|_layer_norm)"
KNOWN = re.compile(
    rf"(encoder|decoder)\.((embed_tokens|embed_positions|quant_noise)\.weight|(layernorm_embedding|layer_norm)\.(weight|bias)"
    rf"|layers\.\d+\.({ATTENTION}|fc[12]|final_layer_norm)\.(weight|bias))"
    r"|decoder\.(output_projection|project_out_dim)\.weight"
)
REFUSED = {
    "adaptive_softmax_cutoff": "it has an adaptive softmax",
    "cross_self_attention": "its decoder attends to source and target at once",
    "no_cross_attention": "its decoder does not read the source",
    "merge_src_tgt_embed": "its two dictionaries are merged when it is built",
    "base_layers": "it has BASE layers",
    "char_inputs": "it reads characters",
}


def open_fairseq(path: str, dict_dir: Optional[str], source_lang: Optional[str], target_lang: Optional[str]) -> Teacher:
    """The teacher in a checkpoint.

    Args:
        dict_dir: the folder with its dictionaries, if not beside it

    Raises:
        KDPluginError: as `open_checkpoint`, or its model is not fairseq's transformer
    """
    opened = open_checkpoint(path, {} if dict_dir is None else {"data": dict_dir}, source_lang, target_lang)
    model = opened.model
    config = getattr(model, "cfg", None)
    if not isinstance(model, TransformerModelBase) or not isinstance(config, TransformerConfig):
        raise not_expressible(path, f"its architecture is {architecture_of(opened.cfg.model)!r}")
    for option, reason in REFUSED.items():
        if getattr(config, option, None) or (option.startswith("adaptive") and has_adaptive_softmax(model)):
            raise not_expressible(path, reason)
    weights = weights_of(model)
    halves = {name: weight for name, weight in weights.items() if name.startswith(("encoder.", "decoder."))}
    strange = sorted(name for name in halves if not KNOWN.fullmatch(name))
    if strange:
        raise not_expressible(path, f"it has {len(strange)} other weights; the first is {strange[0]}")
    options = transformer_fields(config)
    for side in ("encoder", "decoder"):
        # a checkpoint may be larger or smaller than its options say, if layers were dropped when it was made
        options[f"{side}_layers"] = len(list(getattr(model, side).layers.children()))
        options[f"{side}_layers_to_keep"] = None
    options["share_decoder_input_output_embed"] = bool(config.share_decoder_input_output_embed)
    whole = Whole(options, halves, (opened.dictionaries[0], opened.dictionaries[1]))

    def own(batch: Batch) -> Tuple[Tensor, Tensor]:
        logits = model(batch.source, batch.lengths, batch.previous)[0]
        return logits, torch.arange(logits.size(-1))

    difference = agreement(whole, own, path, min(opened.max_source_tokens, opened.max_target_tokens) + 1)
    others = len(weights) - len(halves)
    notes = [f"{others} weights outside its encoder and decoder were left out"] if others else []
    task = {field: value for field in TASK_FIELDS if (value := getattr(opened.cfg.task, field, None)) is not None}
    smoothing: Any = getattr(getattr(opened.cfg, "criterion", None), "label_smoothing", None)
    what = f"fairseq {architecture_of(opened.cfg.model)}"
    return Teacher(
        path,
        opened.sha256,
        what,
        opened.parameters,
        whole,
        opened.languages,
        task,
        smoothing,
        notes,
        difference,
        opened.changes_dictionaries,
    )
