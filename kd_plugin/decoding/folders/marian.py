"""A Marian folder as OPUS-MT packages it: decoder.yml, weights (.npz), vocabularies (.yml), sentencepiece models."""

import re
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Tuple

from kd_plugin.checkpoints.read import model_sha256
from kd_plugin.decoding.base import Around
from kd_plugin.decoding.folders.base import Asked, TextModel
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of

DECODER = "decoder.yml"
POSITIONS = 2048  # computed by CTranslate2's converter; Marian itself has no limit
TAG = re.compile(r">>(.+)<<")  # before a source sentence of a model with several target languages


def is_marian(path: str) -> bool:
    return (Path(path) / DECODER).is_file()


class MarianFolder(TextModel):
    """Models that CTranslate2's converter for OPUS-MT reads."""

    def __init__(self, asked: Asked):
        asked.refuse(
            ["source_prefix", "source_suffix", "target_prefix", "model_source_lang"],
            "is a Marian folder, whose symbols around sentences are known",
            "leave them out; --model-target-lang if the model translates into several languages",
        )
        self.path = asked.path
        from ctranslate2.converters.marian import load_vocab

        weights, vocabularies = self._files()
        self._sha256 = digest_of([model_sha256(file) for file in (weights, *vocabularies)])
        try:
            symbols: List[FrozenSet[str]] = [frozenset(load_vocab(str(file))) for file in vocabularies]
        except (OSError, ValueError) as error:
            raise KDPluginError(
                f"{self.path}: its vocabularies cannot be read ({error}). Remedy: copy the folder again"
            ) from error
        self.source_symbols, self.target_symbols = symbols[0], symbols[-1]
        self.around = Around((*self._tag(asked),))
        self.subwords = asked.segmentation()
        self.subwords.check(
            self.path, *({s for s in some if not TAG.fullmatch(s)} for some in (symbols[0], symbols[-1]))
        )
        for side, known in zip(self.subwords, (self.source_symbols, self.target_symbols)):
            side.check_joining(known)

    def _files(self) -> Tuple[Path, List[Path]]:
        """The weights and the vocabularies that decoder.yml names."""
        import yaml

        folder = Path(self.path)
        try:
            content = yaml.safe_load((folder / DECODER).read_text(encoding="utf-8"))
            models, vocabularies = content["models"], content["vocabs"]
            files = [folder / str(name) for name in (*models, *vocabularies)]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
            raise KDPluginError(
                f"{folder / DECODER}: does not name models and vocabs ({error}). Remedy: copy the folder again"
            ) from error
        missing = [file for file in files if not file.is_file()]
        if missing or len(models) != 1 or files[0].suffix != ".npz" or not vocabularies:
            what = f"{missing[0].name} is missing" if missing else f"it names {len(models)} models, {files[0].name} …"
            raise KDPluginError(
                f"{folder / DECODER}: {what}. Remedy: use a folder with the weights of one model (.npz) and its "
                "vocabularies (.yml), as in OPUS-MT's archives"
            )
        return files[0], files[1:]

    def _tag(self, asked: Asked) -> List[str]:
        """The symbol for the target language, if there are several."""
        known = sorted(match.group(1) for match in map(TAG.fullmatch, self.source_symbols) if match)
        code = asked.options.model_target_lang if asked.alone or known else None
        if code is None and asked.languages[1] in known:
            code = asked.languages[1]
        if not known and code is None:
            return []
        if code in known:
            return [f">>{code}<<"]
        some = ", ".join(known[:6]) + (f" … ({len(known)})" if len(known) > 6 else "")
        problem = "translates into several languages" if code is None else f"does not know {code}"
        raise KDPluginError(
            f"{self.path}: {problem}. Remedy: --model-target-lang with one of its own codes: {some}"
            if known
            else f"--model-target-lang {code}: {self.path} translates into one language. Remedy: leave it out"
        )

    def identity(self) -> Dict[str, Any]:
        """As TextModel's."""
        return {"kind": "marian", "models": [self._sha256], "around": [list(part) for part in self.around]}

    def convert(self, folder: Path) -> Path:
        """As TextModel's."""
        from ctranslate2.converters import OpusMTConverter

        longest = POSITIONS - 1 - len(self.around.source_prefix)
        remedy = "use a Marian transformer as OPUS-MT trains them, or marian-decoder and kd-plugin import"
        converter = OpusMTConverter(self.path)
        return self.write(converter, folder, remedy, max_source_tokens=longest, max_target_tokens=longest)
