"""What gives scores to translations: a model, a metric without references, or anybody's command."""

import abc
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

Texts = Tuple[str, str]  # a source and its translation, raw
Pair = Tuple[List[str], List[str]]  # symbols of what a model reads and of what it is asked about
Progress = Callable[[int], Any]  # told how many pairs are done


class Scorer(abc.ABC):
    """Gives each translation a number, the higher the better.

    Attributes:
        identity: all that decides the scores, beside the translations; JSON
    """

    identity: Dict[str, Any]

    def let_go(self) -> None:
        """Free the memory of a model, where other processes score."""
        return None

    @abc.abstractmethod
    def __call__(self, pairs: Sequence[Texts], progress: Progress) -> List[Optional[float]]:
        """A finite score of each translation, None where it is too long.

        Raises:
            KDPluginError: one could not be scored
        """
