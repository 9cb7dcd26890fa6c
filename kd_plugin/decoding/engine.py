"""The engines of `kd-plugin decode`: their interface, their answers, and a row for each."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from kd_plugin.corpus.hypotheses import Hypothesis
from kd_plugin.corpus.sources import Sentence, Source

if TYPE_CHECKING:
    from kd_plugin.decoding.decode import Corpus


class Answer(NamedTuple):
    """An engine's answer to a sentence.

    hypotheses: its translations, best first; none if it is skipped
    lines: the names under which the manifest counts every line with this sentence
    translations: the names under which it counts translations, one entry per translation
    amounts: other numbers to sum up in the manifest, by name
    """

    hypotheses: List[Hypothesis]
    lines: Tuple[str, ...] = ()
    translations: Tuple[str, ...] = ()
    amounts: Mapping[str, int] = {}


class Engine(ABC):
    """A model or a server, opened to translate one corpus. Every worker opens its own.

    languages: source and target
    source: the text to translate
    counted: all names under which its answers are counted, in the order of the summary
    """

    languages: List[str]
    source: Source
    counted: Tuple[str, ...] = ()

    @abstractmethod
    def identity(self) -> Dict[str, Any]:
        """All that determines its answers, besides the corpus and the languages. Another identity is another job."""

    def prepare(self) -> None:
        """Work to do once, before the workers begin."""
        return None

    @abstractmethod
    def __call__(self, sentences: Sequence[Sentence], shard: int, progress: Callable[[int], Any]) -> List[Answer]:
        """The answer to each sentence of a shard, in their order.

        Args:
            sentences: distinct, none of them empty
            shard: its number; draws depend on it, not on the order in which shards are done
            progress: called with the number of sentences answered since the last call
        """

    def written(self, shard: int) -> None:
        """Called when the shard with this number, translated by this engine, is on disk."""
        return None

    def summary(self) -> str:
        """One line about this process's work; empty: nothing to report."""
        return ""


def _of_checkpoints(args: "Corpus", number: int) -> Engine:
    from kd_plugin.decoding.symbol_engines import CheckpointEngine

    return CheckpointEngine(args, number, engine_for(args))


def _ctranslate2(args: "Corpus", number: int) -> Engine:
    if not Path(args.models.path).is_dir():
        return _of_checkpoints(args, number)
    from kd_plugin.decoding.folder_engine import FolderEngine

    return FolderEngine(args, number)


def _http(args: "Corpus", number: int) -> Engine:
    from kd_plugin.decoding.http.engine import HttpEngine

    return HttpEngine(args, number)


OPEN: Dict[str, Callable[["Corpus", int], Engine]] = {
    "fairseq": _of_checkpoints,
    "ctranslate2": _ctranslate2,
    "http": _http,
}


def engine_for(args: "Corpus") -> str:
    """The name of the engine: `auto` is CTranslate2 for folders and fairseq for checkpoints."""
    if args.engine != "auto":
        return args.engine
    return "ctranslate2" if Path(args.models.path).is_dir() else "fairseq"


def open_engine(args: "Corpus", number: int) -> Engine:
    """The engine that the flags ask for. number: the worker's"""
    return OPEN[engine_for(args)](args, number)
