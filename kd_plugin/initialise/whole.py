"""A translation model as fairseq's stock transformer: its options, weights and dictionaries."""

from typing import Any, Dict, NamedTuple, Optional, Tuple

from fairseq import models
from fairseq.data import Dictionary
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import OmegaConf
from torch import Tensor

from kd_plugin.checkpoints.build import freeze
from kd_plugin.compat import BETTER_TRANSFORMER_COPY

SIDES = ("encoder", "decoder")
EMBEDDINGS = {side: f"{side}.embed_tokens.weight" for side in SIDES}
OUTPUT, OUT_DIM = "decoder.output_projection.weight", "decoder.project_out_dim.weight"


class Whole(NamedTuple):
    """A model, of the teacher's or of the student's size.

    Args:
        options: fairseq's flat options (`encoder_layers`, …), with `_name`
        weights: by fairseq's names; tied ones under each of their names
        dictionaries: source and target
    """

    options: Dict[str, Any]
    weights: Dict[str, Tensor]
    dictionaries: Tuple[Dictionary, Dictionary]

    def layers(self, side: str) -> int:
        return int(self.options[f"{side}_layers"])

    def dim(self, side: str) -> int:
        return int(self.options[f"{side}_embed_dim"])

    def heads(self, side: str) -> int:
        return int(self.options[f"{side}_attention_heads"])

    def units(self, side: str) -> int:
        return int(self.options[f"{side}_ffn_embed_dim"])

    @property
    def shares_all(self) -> bool:
        return bool(self.options.get("share_all_embeddings"))

    @property
    def ties_output(self) -> bool:
        return self.shares_all or bool(self.options.get("share_decoder_input_output_embed"))

    def scale(self, side: str) -> float:
        """The factor of embeddings where they enter the model."""
        return 1.0 if self.options.get("no_scale_embedding") else self.dim(side) ** 0.5


def build(whole: Whole) -> Any:
    """The fairseq model, frozen and in eval mode.

    Raises:
        RuntimeError: the weights do not fit the options
    """
    model = untrained(whole.options, whole.dictionaries)
    own = model.state_dict()
    # buffers, such as the marker of sinusoidal positions, are the new model's own
    parameters = {name for name, _ in model.named_parameters()} | {OUTPUT, *EMBEDDINGS.values()}
    named = {name for name in own if name in parameters and not BETTER_TRANSFORMER_COPY.search(name)}
    missing = sorted(named - set(whole.weights))
    if missing:
        raise RuntimeError(f"{len(missing)} weights are missing, the first is {missing[0]}")
    state = {name: whole.weights[name].float() if name in named else value for name, value in own.items()}
    model.load_state_dict(state, strict=True)
    freeze(model)
    return model


def untrained(options: Dict[str, Any], dictionaries: Tuple[Dictionary, Dictionary]) -> Any:
    """A fairseq model with random weights."""
    return models.build_model(OmegaConf.create(options), TranslationTask(TranslationConfig(), *dictionaries))


def weights_of(model: Any) -> Dict[str, Tensor]:
    """A model's parameters, tied ones under each of their names."""
    buffers = {name for name, _ in model.named_buffers()}
    return {
        name: weight.detach()
        for name, weight in model.state_dict().items()
        if name not in buffers and not BETTER_TRANSFORMER_COPY.search(name)
    }


def norm_before(whole: Whole, side: str, layer: int) -> Optional[str]:
    """The layer norm whose output layer `layer` of a side reads; None: it reads the embeddings or the raw stream.

    layer: the number of layers means what reads the side's result
    """
    if whole.options.get(f"{side}_normalize_before"):
        if layer < whole.layers(side):
            return f"{side}.layers.{layer}.self_attn_layer_norm"
        final = f"{side}.layer_norm"
        return final if f"{final}.weight" in whole.weights else None
    if layer:
        return f"{side}.layers.{layer - 1}.final_layer_norm"
    embedding = f"{side}.layernorm_embedding"
    return embedding if f"{embedding}.weight" in whole.weights else None
