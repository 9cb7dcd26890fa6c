"""The engines of `kd-plugin decode`: a row for each."""

from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict

from kd_plugin.decoding.engine import Engine

if TYPE_CHECKING:
    from kd_plugin.decoding.decode import Corpus


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
