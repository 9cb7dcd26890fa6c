"""What a folder with a translation model of another toolkit says of itself."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Tuple

from kd_plugin.corpus.subwords import Segmentation, SubwordOptions, Subwords
from kd_plugin.decoding.base import Around, FolderOptions
from kd_plugin.errors import KDPluginError

# sentencepiece models as folders of Marian, OPUS-MT, NLLB, mBART and T5 have them, of both sides
SENTENCEPIECE = (
    ("source.spm", "target.spm"),
    ("sentencepiece.bpe.model",) * 2,
    ("spiece.model",) * 2,
    ("sentencepiece.model",) * 2,
    ("spm.model",) * 2,
)


class Asked(NamedTuple):
    """What the flags say of a folder.

    languages: source and target of the corpus, as its files' names have them; None: not said
    alone: whether all flags are for this model; others may be for models beside it
    """

    path: str
    options: FolderOptions
    subwords: SubwordOptions
    languages: Tuple[Optional[str], Optional[str]]
    alone: bool = True

    def refuse(self, names: List[str], reason: str, remedy: str) -> None:
        """Refuse flags that this kind of folder has no use for.

        Args:
            names: fields of `options`, and `subwords` for the flags of sentencepiece models
        """
        given = {**self.options._asdict(), **self.subwords._asdict()}
        fields = [field for name in names for field in (SPM_FIELDS if name == "subwords" else (name,))]
        flags = [f"--{field.replace('_', '-')}" for field in fields if given[field] is not None]
        if flags and self.alone:
            raise KDPluginError(f"{' and '.join(flags)}: {self.path} {reason}. Remedy: {remedy}")

    def segmentation(self) -> Segmentation:
        """The sentencepiece models that the flags name, and otherwise those that lie in the folder."""
        if any(getattr(self.subwords, field) is not None for field in SPM_FIELDS):
            return self.subwords.open()
        for names in SENTENCEPIECE:
            source, target = (Path(self.path) / name for name in names)
            if source.is_file() and target.is_file():
                both = Subwords(str(source))
                return Segmentation(both, both if target == source else Subwords(str(target)))
        return self.subwords.open()


SPM_FIELDS = ("sentencepiece_model", "source_sentencepiece_model", "target_sentencepiece_model")


class TextModel(ABC):
    """A translation model in a folder, and its own way from text to symbols.

    subwords: its segmentation
    languages: source and target, where the folder says them
    around: what it expects around every sentence
    source_symbols, target_symbols: that it knows
    is_converted: whether it is CTranslate2's already
    """

    path: str
    subwords: Segmentation
    languages: Optional[List[str]] = None
    around: Around
    source_symbols: FrozenSet[str]
    target_symbols: FrozenSet[str]
    is_converted = False

    @abstractmethod
    def identity(self) -> Dict[str, Any]:
        """What decides how it translates."""

    @abstractmethod
    def convert(self, folder: Path) -> Path:
        """Write it as a CTranslate2 model.

        Raises:
            KDPluginError: CTranslate2 cannot convert it, or makes another model of it
        """
