"""The mean of a sentence's embeddings, as in fastText (Joulin et al. 2017, https://aclanthology.org/E17-2068)."""

from typing import Any

from fairseq.models import register_model, register_model_architecture
from torch import Tensor

from kd_plugin.models.simple.base import EmbeddingConfig, SimpleStudent


@register_model("bag_of_embeddings", dataclass=EmbeddingConfig)
class BagOfEmbeddings(SimpleStudent):
    """Embeddings alone: the order of the words does not count, and it cannot tag."""

    pooling = "mean"
    tags = False

    def __init__(self, cfg: Any, dictionary: Any) -> None:
        super().__init__(cfg, dictionary, cfg.encoder_embed_dim)

    def encode(self, embedded: Tensor, padding_mask: Tensor) -> Tensor:
        """See SimpleStudent."""
        return embedded


@register_model_architecture("bag_of_embeddings", "bag_of_embeddings_tiny")
def bag_of_embeddings_tiny(args: Any) -> None:
    """For experiments and for small machines."""
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 64)
