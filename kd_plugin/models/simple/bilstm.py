"""A bidirectional LSTM over embeddings (Graves & Schmidhuber 2005, https://doi.org/10.1016/j.neunet.2005.06.042)."""

from dataclasses import dataclass, field
from typing import Any

from fairseq.models import register_model, register_model_architecture
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from kd_plugin.models.simple.base import EmbeddingConfig, SimpleStudent


@dataclass
class BiLSTMConfig(EmbeddingConfig):
    """The flags of bilstm."""

    encoder_hidden_size: int = field(default=300, metadata={"help": "width of each direction"})
    encoder_layers: int = field(default=1, metadata={"help": "number of layers"})


@register_model("bilstm", dataclass=BiLSTMConfig)
class BiLSTM(SimpleStudent):
    """An LSTM in both directions; for sentences, the maximum over all positions (Conneau et al. 2017,
    https://aclanthology.org/D17-1070)."""

    def __init__(self, cfg: Any, dictionary: Any) -> None:
        super().__init__(cfg, dictionary, 2 * cfg.encoder_hidden_size)
        self.lstm = nn.LSTM(
            cfg.encoder_embed_dim,
            cfg.encoder_hidden_size,
            num_layers=cfg.encoder_layers,
            dropout=cfg.dropout if cfg.encoder_layers > 1 else 0.0,
            bidirectional=True,
            batch_first=True,
        )

    def encode(self, embedded: Tensor, padding_mask: Tensor) -> Tensor:
        """See SimpleStudent. The padding must be on the right; 0 where there is padding."""
        # PyTorch wants lengths of at least 1; the features of a sentence of nothing but padding count nowhere
        lengths = (~padding_mask).sum(dim=1).clamp(min=1).cpu()
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=embedded.size(1))
        return states


@register_model_architecture("bilstm", "bilstm_tiny")
def bilstm_tiny(args: Any) -> None:
    """For experiments and for small machines."""
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 64)
    args.encoder_hidden_size = getattr(args, "encoder_hidden_size", 64)
