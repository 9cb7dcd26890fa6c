"""Which kind of folder a path names."""

import functools
import tempfile
from pathlib import Path
from typing import Callable, List, NamedTuple

from kd_plugin.checkpoints.formats import holds_ctranslate2
from kd_plugin.checkpoints.huggingface import is_huggingface
from kd_plugin.checkpoints.read import no_checkpoint
from kd_plugin.decoding.folders.base import Asked, TextModel


class Kind(NamedTuple):
    """is_one: of a path. open: what it holds."""

    is_one: Callable[[str], bool]
    open: Callable[[Asked], TextModel]


def _converted(asked: Asked) -> TextModel:
    from kd_plugin.decoding.folders.converted import ConvertedFolder

    return ConvertedFolder(asked)


def _huggingface(asked: Asked) -> TextModel:
    from kd_plugin.decoding.folders.huggingface import HuggingFaceFolder

    return HuggingFaceFolder(asked)


def _marian(asked: Asked) -> TextModel:
    from kd_plugin.decoding.folders.marian import MarianFolder

    return MarianFolder(asked)


def _is_marian(path: str) -> bool:
    return (Path(path) / "decoder.yml").is_file()


KINDS: List[Kind] = [
    Kind(holds_ctranslate2, _converted),
    Kind(is_huggingface, _huggingface),
    Kind(_is_marian, _marian),
]


def check_folder(path: str) -> Kind:
    """The kind of a folder.

    Raises:
        KDPluginError: it holds no model that is known
    """
    for kind in KINDS:
        if kind.is_one(path):
            return kind
    raise no_checkpoint(
        path,
        "the path of a .pt file of fairseq-train, or a folder with a model of Hugging Face (config.json), of Marian as "
        "OPUS-MT packs it (decoder.yml) or of CTranslate2 (model.bin)",
    )


def open_folder(asked: Asked) -> TextModel:
    """The model in a folder.

    Raises:
        KDPluginError: it holds none that is known, or flags do not fit it
    """
    return check_folder(asked.path).open(asked)


class TextFolder:
    """A model of another toolkit, converted for as long as this object lives."""

    def __init__(self, asked: Asked):
        self.model = open_folder(asked)

    @functools.cached_property
    def converted(self) -> Path:
        """Where it lies as a CTranslate2 model."""
        if self.model.is_converted:
            return Path(self.model.path)
        self._temporary = tempfile.TemporaryDirectory(prefix="kd_plugin-")
        return self.model.convert(Path(self._temporary.name) / "model")
