"""The interface of folders with a translation model from another toolkit."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Tuple

from kd_plugin.checkpoints.ctranslate2_models import write_model
from kd_plugin.checkpoints.exported import description
from kd_plugin.corpus.subword_checks import Marks, check_known, check_text
from kd_plugin.corpus.subwords import Segmentation, SubwordOptions, Subwords
from kd_plugin.decoding.base import Around, FolderOptions
from kd_plugin.errors import KDPluginError

# names of the sentencepiece models, source and target, in folders of Marian, OPUS-MT, NLLB, mBART and T5
SENTENCEPIECE = (
    ("source.spm", "target.spm"),
    ("sentencepiece.bpe.model",) * 2,
    ("spiece.model",) * 2,
    ("sentencepiece.model",) * 2,
    ("spm.model",) * 2,
)


class Asked(NamedTuple):
    """A folder, and what the flags say about it.

    languages: source and target of the corpus, as in its file names; None: unknown
    alone: whether all flags are for this model; otherwise some may be for other models
    """

    path: str
    options: FolderOptions
    subwords: SubwordOptions
    languages: Tuple[Optional[str], Optional[str]]
    alone: bool = True

    def refuse(self, names: List[str], reason: str, remedy: str) -> None:
        """Refuse flags that do not apply to this kind of folder.

        Args:
            names: fields of `options`, and `subwords` for the flags of sentencepiece models
        """
        given = {**self.options._asdict(), **self.subwords._asdict()}
        fields = [field for name in names for field in (SPM_FIELDS if name == "subwords" else (name,))]
        flags = [f"--{field.replace('_', '-')}" for field in fields if given[field] is not None]
        if flags and self.alone:
            raise KDPluginError(f"{' and '.join(flags)}: {self.path} {reason}. Remedy: {remedy}")

    def segmentation(self) -> Segmentation:
        """The sentencepiece models that the flags name, otherwise those in the folder."""
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
    """A translation model in a folder, with its own segmentation of text into symbols.

    subwords: its segmentation
    languages: source and target, if the folder names them
    around: symbols that it expects around every sentence
    source_symbols, target_symbols: its vocabularies
    is_converted: whether it already is a CTranslate2 model
    segments: whether it segments raw text itself, without a sentencepiece model of ours
    """

    path: str
    subwords: Segmentation
    languages: Optional[List[str]] = None
    around: Around
    source_symbols: FrozenSet[str]
    target_symbols: FrozenSet[str]
    is_converted = False
    segments = False

    @abstractmethod
    def identity(self) -> Dict[str, Any]:
        """All that determines its translations."""

    @abstractmethod
    def convert(self, folder: Path) -> Path:
        """Write it as a CTranslate2 model.

        Raises:
            KDPluginError: CTranslate2 cannot convert it, or the converted model differs
        """

    def write(
        self, converter: Any, folder: Path, remedy: str, check: Callable[[Path], None] = lambda _: None, **said: Any
    ) -> Path:
        """Let one of CTranslate2's converters write it.

        Args:
            remedy: if the converter cannot
            check: as for `write_model`
            said: for the description beside the model

        Raises:
            KDPluginError: as `convert`
        """
        about = description("ctranslate2", languages=self.languages, **said)
        try:
            return write_model(converter, folder, about, check=check)
        except KDPluginError:
            raise
        except Exception as error:  # whatever the converter and the readers under it raise about a stranger's files
            reason = " ".join(str(error).split())[:300]
            raise KDPluginError(
                f"{self.path}: CTranslate2 cannot convert it ({type(error).__name__}: {reason}). Remedy: {remedy}"
            ) from error

    def check_text(self, marks: Marks, name: str, side: int = 0) -> None:
        """Refuse text that is segmented already, or raw text that nothing segments.

        Args:
            name: of the text, for errors
            side: 0 for source text, 1 for target text
        """
        check_text(marks, self._has_model(side), (self.source_symbols, self.target_symbols)[side], name)

    def check_symbols(self, sentences: Iterable[List[str]], side: int = 0) -> None:
        """Refuse segmented text if the model does not know most of its symbols."""
        check_known(sentences, (self.source_symbols, self.target_symbols)[side], self._has_model(side))

    def check_sides(self, lines: Iterable[str], name: str) -> None:
        """Refuse sentencepiece models that are given for each other's side. lines, name: source text, raw"""
        self.subwords.check_sides(lines, name, self.source_symbols == self.target_symbols)

    def _has_model(self, side: int) -> bool:
        return self.segments or self.subwords[side].path is not None
