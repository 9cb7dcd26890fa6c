"""What the simple students have in common: embeddings, heads, and fairseq's way of asking for logits."""

import logging
from dataclasses import dataclass, field
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel
from omegaconf import II
from torch import Tensor, nn

from kd_plugin.errors import KDPluginError
from kd_plugin.models.simple.heads import SentenceHead, TokenHead

logger = logging.getLogger(__name__)

HEADS = "classification_heads"


@dataclass
class EmbeddingConfig(FairseqDataclass):
    """The flags of every simple student; the names are those of fairseq's lstm."""

    encoder_embed_dim: int = field(default=300, metadata={"help": "width of the embeddings"})
    encoder_embed_path: Optional[str] = field(
        default=None,
        metadata={"help": "file with pretrained embeddings in fairseq's (GloVe's) text format: a number of symbols, "
                  "their width, then a symbol and its numbers in each line; only needed to begin the training"},
    )  # fmt: skip
    encoder_freeze_embed: bool = field(default=False, metadata={"help": "do not train the embeddings"})
    # fairseq's sentence_prediction sets it in the configuration of any model; these models need no limit
    max_positions: Optional[int] = II("task.max_positions")
    dropout: float = field(default=0.5, metadata={"help": "of the embeddings and of what the head reads"})


class Features(NamedTuple):
    """What an encoder returns. states: B × T × output_dim; padding_mask: B × T, True where there is padding."""

    states: Tensor
    padding_mask: Tensor


class SimpleStudent(BaseFairseqModel):
    """A student whose classes or labels come from heads, as in fairseq's RoBERTa.

    Args:
        cfg: the model's flags
        dictionary: fairseq's, of the input; its padding is not seen by the model, wherever it is
        output_dim: width of the features
    """

    pooling = "max"
    tags = True  # whether its features of a subword know of the subwords around it

    def __init__(self, cfg: Any, dictionary: Any, output_dim: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.output_dim = output_dim
        self.padding_idx = dictionary.pad()
        self.embed_tokens = _embedding(cfg, dictionary)
        self.dropout = nn.Dropout(cfg.dropout)
        self.classification_heads = nn.ModuleDict()

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> Any:
        """fairseq's way to build a model: from its flags and the task's dictionary."""
        return cls(cfg, task.source_dictionary)  # type: ignore[call-arg]  # each student knows its output_dim

    def encode(self, embedded: Tensor, padding_mask: Tensor) -> Tensor:
        """Features, B × T × output_dim, of embeddings, B × T × embed_dim, that are 0 where there is padding."""
        raise NotImplementedError

    def features(self, src_tokens: Tensor) -> Features:
        """The features of subwords, B × T."""
        padding_mask = src_tokens.eq(self.padding_idx)
        embedded = self.dropout(self.embed_tokens(src_tokens)).masked_fill(padding_mask.unsqueeze(-1), 0.0)
        return Features(self.encode(embedded, padding_mask), padding_mask)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        features_only: bool = True,
        classification_head_name: Optional[str] = None,
        **_: Any,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """Logits of a head, or features without one.

        Args:
            src_tokens: B × T, padded on the right
            src_lengths: not needed
            classification_head_name: the name given to register_classification_head

        Returns:
            (B × classes, B × T × labels, or B × T × output_dim; the features as `inner_states`, a list with one
            T × B × output_dim, and `encoder_padding_mask`, B × T)
        """
        states, padding_mask = self.features(src_tokens)
        extra = {"inner_states": [states.transpose(0, 1)], "encoder_padding_mask": padding_mask}
        if classification_head_name is None:
            return states, extra
        return self.classification_heads[classification_head_name](states, padding_mask=padding_mask), extra

    def register_classification_head(self, name: str, num_classes: int = 2, **_: Any) -> None:
        """Adds a head for the classes of a sentence, or replaces the one of that name."""
        self.classification_heads[name] = SentenceHead(self.output_dim, num_classes, self.cfg.dropout, self.pooling)

    def register_token_classification_head(self, name: str, num_classes: int = 2, **_: Any) -> None:
        """Adds a head for the labels of subwords, or replaces the one of that name.

        Raises:
            KDPluginError: the model looks at each subword alone
        """
        if not self.tags:
            raise KDPluginError(
                f"--arch {self.cfg._name}: sees no word's neighbours, so it cannot tag. Remedy: text_cnn or bilstm"
            )
        self.classification_heads[name] = TokenHead(self.output_dim, num_classes, self.cfg.dropout)

    def get_normalized_probs(
        self, net_output: Tuple[Tensor, Any], log_probs: bool, sample: Optional[Dict[str, Any]] = None
    ) -> Tensor:
        """Probabilities or their logarithms in float32, shaped like the logits."""
        logits = net_output[0].float()
        return F.log_softmax(logits, dim=-1) if log_probs else F.softmax(logits, dim=-1)

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        """As RoBERTa does: heads of a checkpoint that the model lacks are left out, and it keeps those it alone has."""
        super().upgrade_state_dict_named(state_dict, name)
        prefix = f"{name}." if name else ""
        own = {f"{prefix}{HEADS}.{key}": value for key, value in self.classification_heads.state_dict().items()}
        for key in [key for key in state_dict if key.startswith(f"{prefix}{HEADS}.")]:
            if key not in own or own[key].shape != state_dict[key].shape:
                logger.warning(f"{key}: the model has no head of this name and size, so it is left out")
                del state_dict[key]
        for key, value in own.items():
            state_dict.setdefault(key, value)


def _embedding(cfg: Any, dictionary: Any) -> nn.Embedding:
    """Embeddings of the dictionary's symbols; from a file, those of the symbols that it has."""
    embedding = nn.Embedding(len(dictionary), cfg.encoder_embed_dim, dictionary.pad())
    nn.init.normal_(embedding.weight, std=cfg.encoder_embed_dim**-0.5)
    nn.init.zeros_(embedding.weight[dictionary.pad()])
    if cfg.encoder_embed_path:
        _load(cfg, dictionary, embedding)
    embedding.weight.requires_grad = not cfg.encoder_freeze_embed
    return embedding


def _load(cfg: Any, dictionary: Any, embedding: nn.Embedding) -> None:
    flag = f"--encoder-embed-path {cfg.encoder_embed_path}"
    try:
        known = utils.parse_embedding(cfg.encoder_embed_path)
    except (OSError, ValueError, IndexError) as error:
        raise KDPluginError(
            f"{flag}: cannot be read ({error}). Remedy: a text file whose first line is the number of symbols and "
            "their width, and every other line a symbol and its numbers"
        ) from error
    found = [symbol for symbol in dictionary.symbols if symbol in known]
    if not found:
        raise KDPluginError(
            f"{flag}: has none of the dictionary's {len(dictionary):,} symbols. Remedy: embeddings trained on text "
            "with the same segmentation"
        )
    widths = {len(known[symbol]) for symbol in found}
    if widths != {cfg.encoder_embed_dim}:
        raise KDPluginError(
            f"{flag}: its embeddings have {', '.join(map(str, sorted(widths)))} numbers, but --encoder-embed-dim is "
            f"{cfg.encoder_embed_dim}. Remedy: --encoder-embed-dim {max(widths)}"
        )
    with torch.no_grad():
        for symbol in found:
            embedding.weight[dictionary.index(symbol)] = known[symbol]
    logger.info(f"{flag}: {len(found):,} of the dictionary's {len(dictionary):,} symbols")
