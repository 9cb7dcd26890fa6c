"""Recognising and opening folders by kind."""

import functools
import tempfile
from pathlib import Path
from typing import Callable, List, NamedTuple

from kd_plugin.checkpoints.ctranslate2_models import check_installed
from kd_plugin.checkpoints.formats import holds_ctranslate2
from kd_plugin.checkpoints.read import no_checkpoint
from kd_plugin.checkpoints.transformers_library import is_huggingface
from kd_plugin.decoding.folders.base import Asked, TextModel
from kd_plugin.decoding.folders.converted import ConvertedFolder
from kd_plugin.decoding.folders.huggingface import HuggingFaceFolder
from kd_plugin.decoding.folders.marian import MarianFolder, is_marian


class Kind(NamedTuple):
    """is_one: whether a path is a folder of this kind. open: opens the model in it."""

    is_one: Callable[[str], bool]
    open: Callable[[Asked], TextModel]


KINDS: List[Kind] = [
    Kind(holds_ctranslate2, ConvertedFolder),
    Kind(is_huggingface, HuggingFaceFolder),
    Kind(is_marian, MarianFolder),
]


def check_folder(path: str) -> Kind:
    """The kind of a folder.

    Raises:
        KDPluginError: it contains no known model
    """
    for kind in KINDS:
        if kind.is_one(path):
            return kind
    raise no_checkpoint(
        path,
        "the path of a .pt file of fairseq-train, or a folder with a model from Hugging Face (config.json), Marian as "
        "OPUS-MT packages it (decoder.yml) or CTranslate2 (model.bin)",
    )


def open_folder(asked: Asked) -> TextModel:
    """The model in a folder.

    Raises:
        KDPluginError: it contains no known model, CTranslate2 is not installed, or flags do not fit the folder
    """
    kind = check_folder(asked.path)
    check_installed()
    return kind.open(asked)


class TextFolder:
    """A model from another toolkit, converted for the lifetime of this object."""

    def __init__(self, asked: Asked):
        self.model = open_folder(asked)

    @functools.cached_property
    def converted(self) -> Path:
        """The folder of the CTranslate2 model."""
        if self.model.is_converted:
            return Path(self.model.path)
        self._temporary = tempfile.TemporaryDirectory(prefix="kd_plugin-")
        return self.model.convert(Path(self._temporary.name) / "model")
