"""An engine for models from other toolkits: they are converted automatically, and CTranslate2 runs them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional, Sequence

from kd_plugin.corpus.languages import check_languages
from kd_plugin.corpus.sources import Sentence, TextSource
from kd_plugin.decoding.base import UNKNOWN, Decoder
from kd_plugin.decoding.ctranslate2 import CTranslate2Decoder
from kd_plugin.decoding.folders.base import Asked
from kd_plugin.decoding.folders.opening import open_folder
from kd_plugin.decoding.symbol_engines import APPROXIMATE, SymbolEngine
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of

if TYPE_CHECKING:
    from kd_plugin.decoding.decode import Corpus


class FolderEngine(SymbolEngine):
    """A folder from Hugging Face, Marian (OPUS-MT) or CTranslate2."""

    counted = (*SymbolEngine.counted, APPROXIMATE)

    def __init__(self, args: "Corpus", number: int):
        super().__init__(args, number)
        options = args.models
        if args.input is None:
            raise KDPluginError(
                f"--path {options.path}: its symbols are not those of {args.data}. Remedy: --input with the raw text"
            )
        options.refuse_of_checkpoints()
        asked = Asked(options.path, args.folder, args.subwords, (options.source_lang, options.target_lang))
        model = self._model = open_folder(asked)
        own: Sequence[Optional[str]] = model.languages or (None, None)
        source_lang, target_lang = options.source_lang or own[0], options.target_lang or own[1]
        if source_lang is None or target_lang is None:
            raise KDPluginError(f"--path {options.path}: does not name its languages. Remedy: -s LANG -t LANG")
        self.languages = [source_lang, target_lang]
        check_languages(source_lang, target_lang, where=options.path)
        self.subwords = model.subwords
        source = self.source = TextSource(args.input, self.subwords.source)
        model.check_text(source.marks, f"--input {args.input}")
        model.check_sides((one.text for one in source.read(range(len(source)))), f"--input {args.input}")
        if args.compute_type == "auto" and model.is_converted:
            self._compute_type = "default"  # the type of the stored weights
        args.search.check_vocabulary(len(model.target_symbols))

    def identity(self) -> Dict[str, Any]:
        """As Engine's."""
        found = {**super().identity(), "engine": "ctranslate2", **self._model.identity()}
        if self.subwords.target.identity() != self.subwords.source.identity():
            found["target_subwords"] = self.subwords.target.identity()
        return found

    @property
    def _folder(self) -> Path:
        """The folder of the converted model, named by its origin."""
        if self._model.is_converted:
            return Path(self._model.path)
        return Path(self._args.to.output) / f"model-ctranslate2-{digest_of(self._model.identity())[:16]}"

    def prepare(self) -> None:
        """As Engine's."""
        if not self._folder.is_dir():
            self._model.convert(self._folder)

    def open_decoder(self) -> Decoder:
        """As SymbolEngine's."""
        device, index = self._device.type, self._device.index or 0
        around = self._model.around
        return CTranslate2Decoder(self._folder, self._args.search, device, self._compute_type, 0, index, around=around)

    def check(self, sentences: Sequence[Sentence]) -> None:
        """As SymbolEngine's."""
        self._model.check_symbols(sentence.tokens for sentence in sentences)

    def is_known(self, token: str) -> bool:
        """As SymbolEngine's."""
        return token != UNKNOWN and token in self._model.source_symbols
