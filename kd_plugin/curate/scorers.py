"""The interface of scorers: a model, a metric without references, or the user's command."""

import abc
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

Texts = Tuple[str, str]  # a source and its translation, raw
Pair = Tuple[List[str], List[str]]  # symbols of a model's input and of the text to score
Progress = Callable[[int], Any]  # called with the number of pairs done since the last call


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
