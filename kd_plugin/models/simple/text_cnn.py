"""A convolutional network over embeddings (Kim 2014, https://aclanthology.org/D14-1181)."""

from dataclasses import dataclass, field
from typing import Any, List

import torch
from fairseq.models import register_model, register_model_architecture
from torch import Tensor, nn

from kd_plugin.errors import KDPluginError
from kd_plugin.models.simple.base import EmbeddingConfig, SimpleStudent


@dataclass
class TextCNNConfig(EmbeddingConfig):
    """The flags of text_cnn; the defaults are Kim's sizes."""

    filter_widths: str = field(default="3,4,5", metadata={"help": "widths of the filters, in subwords"})
    filters: int = field(default=100, metadata={"help": "number of filters of each width"})
    encoder_layers: int = field(
        default=1, metadata={"help": "layers of filters; a tagger sees further with more, Kim's classifier has one"}
    )


@register_model("text_cnn", dataclass=TextCNNConfig)
class TextCNN(SimpleStudent):
    """Filters of several widths over the embeddings, ReLU, and for sentences the maximum over all positions.

    Zero vectors surround each sentence, so that a sentence may be shorter than a filter and each position has its
    features; Kim's filters stay inside the sentence. The features of a position are its filters' outputs, those of the
    window centred on it (for an even width, with one more subword on the right).
    """

    def __init__(self, cfg: Any, dictionary: Any) -> None:
        self.widths = widths_of(cfg.filter_widths)
        super().__init__(cfg, dictionary, len(self.widths) * cfg.filters)
        self.layers = nn.ModuleList()
        input_dim = cfg.encoder_embed_dim
        for _ in range(cfg.encoder_layers):
            convolutions = nn.ModuleList(nn.Conv1d(input_dim, cfg.filters, width) for width in self.widths)
            self.layers.append(convolutions)
            input_dim = self.output_dim
        for name, parameter in self.layers.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_uniform_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)

    def encode(self, embedded: Tensor, padding_mask: Tensor) -> Tensor:
        """See SimpleStudent."""
        mask = padding_mask.unsqueeze(1)
        states = embedded.transpose(1, 2)  # B × width × T
        for number, convolutions in enumerate(self.layers):
            if number:
                states = self.dropout(states)
            windows = [
                convolution(nn.functional.pad(states, ((width - 1) // 2, width // 2)))
                for width, convolution in zip(self.widths, convolutions)  # type: ignore[call-overload]
            ]
            # padding has features too, which no later filter may see
            states = torch.relu(torch.cat(windows, dim=1)).masked_fill(mask, 0.0)
        return states.transpose(1, 2)


def widths_of(flag: str) -> List[int]:
    """The numbers of --filter-widths."""
    try:
        widths = [int(width) for width in str(flag).split(",")]
    except ValueError:
        widths = []
    if not widths or min(widths) < 1 or len(set(widths)) < len(widths):
        raise KDPluginError(
            f"--filter-widths {flag}: is not a list of different positive numbers. Remedy: for example, 3,4,5"
        )
    return widths


@register_model_architecture("text_cnn", "text_cnn_tiny")
def text_cnn_tiny(args: Any) -> None:
    """A fraction of Kim's sizes."""
    args.encoder_embed_dim = getattr(args, "encoder_embed_dim", 64)
    args.filters = getattr(args, "filters", 64)
