"""The interface of scorers: a model, a metric without references, or the user's command."""

import abc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.corpus.subwords import SubwordOptions

if TYPE_CHECKING:
    import torch

Texts = Tuple[str, str]  # a source and its translation, raw
Pair = Tuple[List[str], List[str]]  # symbols of a model's input and of the text to score
Progress = Callable[[int], Any]  # called with the number of pairs done since the last call


class ByModel(NamedTuple):
    """What scoring with a model needs beside the model.

    compute_type: a type of weights, or auto
    max_tokens: per batch, with padding
    languages: source and target of the translations, which are in `folder`
    """

    subwords: SubwordOptions
    compute_type: str
    max_tokens: int
    languages: List[str]
    folder: Path
    device: "torch.device"


class Scorer(abc.ABC):
    """Gives each translation a number; higher is better.

    Attributes:
        identity: all that determines the scores, besides the translations; JSON
    """

    identity: Dict[str, Any]

    def let_go(self) -> None:
        """Free a model's memory, when other processes score."""
        return None

    @abc.abstractmethod
    def __call__(self, pairs: Sequence[Texts], progress: Progress) -> List[Optional[float]]:
        """A finite score for each translation, None if it is too long.

        Raises:
            KDPluginError: one could not be scored
        """
