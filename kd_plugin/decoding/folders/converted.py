"""A folder that already contains a CTranslate2 model."""

from pathlib import Path
from typing import Any, Dict, Tuple

from kd_plugin.checkpoints.ctranslate2_models import vocabulary
from kd_plugin.checkpoints.exported import described_languages, read_description
from kd_plugin.checkpoints.read import model_sha256
from kd_plugin.decoding.base import Around
from kd_plugin.decoding.ctranslate2_search import END
from kd_plugin.decoding.folders.base import Asked, TextModel
from kd_plugin.errors import KDPluginError
from kd_plugin.files.json_text import parse_json


class ConvertedFolder(TextModel):
    """Made by kd-plugin export, or by any of CTranslate2's converters.

    Such a folder does not contain the symbols around sentences: the flags give them. If the model does not add the end
    of the source itself, the default suffix is that end.
    """

    is_converted = True

    def __init__(self, asked: Asked):
        asked.refuse(
            ["model_source_lang", "model_target_lang"],
            "is a CTranslate2 folder, which does not describe how the model is told its languages",
            "--source-prefix, --source-suffix and --target-prefix with the symbols themselves",
        )
        self.path = asked.path
        folder = Path(asked.path)
        self._sha256 = model_sha256(folder / "model.bin")
        self.languages = described_languages(read_description(folder))
        self.source_symbols, self.target_symbols = vocabulary(folder, "source"), vocabulary(folder, "target")
        end = () if _adds_end(folder) else (END,)
        self.around = Around(
            self._symbols(asked, "source_prefix", ()),
            self._symbols(asked, "source_suffix", end),
            self._symbols(asked, "target_prefix", ()),
        )
        self.subwords = asked.segmentation()
        self.subwords.check(self.path, self._pieces("source"), self._pieces("target"))
        for side, symbols in zip(self.subwords, (self.source_symbols, self.target_symbols)):
            side.check_joining(symbols)

    def _symbols(self, asked: Asked, name: str, default: Tuple[str, ...]) -> Tuple[str, ...]:
        value = getattr(asked.options, name)
        symbols = default if value is None else tuple(value.split())
        known = self.target_symbols if name == "target_prefix" else self.source_symbols
        unknown = [symbol for symbol in symbols if symbol not in known]
        if unknown:
            flag = f"--{name.replace('_', '-')}"
            raise KDPluginError(
                f"{flag} {value or ' '.join(default)}: {self.path} has no symbol {unknown[0]}. Remedy: use the model's "
                "own symbols, such as NLLB's deu_Latn, separated by spaces"
            )
        return symbols

    def _pieces(self, side: str) -> Any:
        """The vocabulary without the symbols around sentences, which no sentencepiece model has."""
        symbols = self.source_symbols if side == "source" else self.target_symbols
        return symbols - {symbol for part in self.around for symbol in part}

    def identity(self) -> Dict[str, Any]:
        """As TextModel's."""
        return {"kind": "ctranslate2", "models": [self._sha256], "around": [list(part) for part in self.around]}

    def convert(self, folder: Path) -> Path:
        """As TextModel's; there is nothing to do."""
        return Path(self.path)


def _adds_end(folder: Path) -> bool:
    """Whether CTranslate2 itself adds the end to every source sentence."""
    try:
        return bool(parse_json((folder / "config.json").read_bytes()).get("add_source_eos", True))
    except (OSError, ValueError, AttributeError):
        return True  # from versions without such a file
