"""What `kd-plugin decode` translates with: an engine, and what it answers."""

from abc import ABC, abstractmethod
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from kd_plugin.corpus.hypotheses import Hypothesis
from kd_plugin.corpus.sources import Sentence, Source


class Answer(NamedTuple):
    """What an engine makes of a sentence.

    hypotheses: its translations, best first; none where it is left out
    lines: the names under which the manifest counts every line that holds the sentence
    translations: the names under which it counts translations, one entry for each of them
    amounts: what else it sums up, by its name
    """

    hypotheses: List[Hypothesis]
    lines: Tuple[str, ...] = ()
    translations: Tuple[str, ...] = ()
    amounts: Mapping[str, int] = {}


class Engine(ABC):
    """A model or a server, opened to translate one corpus. Every worker opens its own.

    languages: source and target
    source: what it translates
    counted: all names that its answers count under, in the order of the summary
    """

    languages: List[str]
    source: Source
    counted: Tuple[str, ...] = ()

    @abstractmethod
    def identity(self) -> Dict[str, Any]:
        """What decides how it answers, besides the corpus and the languages. Another identity is another job."""

    def prepare(self) -> None:
        """What has to be done once, before the workers begin."""
        return None

    @abstractmethod
    def __call__(self, sentences: Sequence[Sentence], shard: int, progress: Callable[[int], Any]) -> List[Answer]:
        """The answer to each sentence of a shard, in their order.

        Args:
            sentences: different ones, none of them empty
            shard: its number; draws depend on it, and not on the order in which shards are done
            progress: told how many more sentences are answered
        """

    def written(self, shard: int) -> None:
        """The shard of this number, which this engine has translated, is on the disk."""
        return None

    def summary(self) -> str:
        """What there is to say of this process' work, in a line; empty: nothing."""
        return ""
