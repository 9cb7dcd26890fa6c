"""A head that labels each token: the weights of fairseq's classification head, applied at every position.

Its parameters have the names and shapes of `RobertaClassificationHead` (`classification_heads.NAME.dense` and
`.out_proj`), so stock fairseq opens a tagger's checkpoint. There, `head(features[:, t:])` gives the logits of token t.
"""

from typing import Any

from fairseq.models.roberta.model import RobertaClassificationHead
from torch import Tensor, nn

from kd_plugin.errors import KDPluginError


class TokenClassificationHead(nn.Module):
    """Labels every token.

    Args:
        of_sentence: a head of fairseq's, whose modules and weights this head takes over
    """

    def __init__(self, of_sentence: RobertaClassificationHead):
        super().__init__()
        self.dense, self.out_proj = of_sentence.dense, of_sentence.out_proj
        self.activation_fn, self.dropout = of_sentence.activation_fn, of_sentence.dropout

    def forward(self, features: Tensor, **_: Any) -> Tensor:
        """(batch, length, labels) logits of (batch, length, width) features."""
        inner = self.activation_fn(self.dense(self.dropout(features)))
        logits: Tensor = self.out_proj(self.dropout(inner))
        return logits


def register_token_head(model: Any, name: str, num_classes: int, **more: Any) -> None:
    """Adds a head for tokens to a model, as `register_classification_head` adds one for sentences.

    A model may have a `register_token_classification_head(name, num_classes=…)` of its own.

    Args:
        more: further arguments of fairseq's method, such as inner_dim

    Raises:
        KDPluginError: the model cannot label tokens
    """
    own = getattr(model, "register_token_classification_head", None)
    if own is not None:
        own(name, num_classes=num_classes, **more)
        return
    if not hasattr(model, "register_classification_head"):
        raise KDPluginError(
            f"the architecture {type(model).__name__} has no classification heads, so it cannot label. Remedy: --arch "
            "roberta or one of its sizes"
        )
    model.register_classification_head(name, num_classes=num_classes, **more)
    head = model.classification_heads[name]
    if isinstance(head, TokenClassificationHead):
        return
    if not isinstance(head, RobertaClassificationHead):
        raise KDPluginError(
            f"the architecture {type(model).__name__} labels whole sentences only. Remedy: --arch roberta or one of "
            "its sizes"
        )
    model.classification_heads[name] = TokenClassificationHead(head)
