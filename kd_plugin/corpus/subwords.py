"""Converts raw text to a dictionary's symbols and back, with one sentencepiece model or one per language."""

import itertools
from pathlib import Path
from typing import Any, Collection, Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Union

from kd_plugin.corpus.subword_checks import SPACE, check_joining, check_model, check_size
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import sha256_of

SYMBOLS = ("sentencepiece", "subword_nmt", "none")
JOINT = "--sentencepiece-model"
SIDES = ("source", "target")
LOOKED_AT = 200  # lines


class Subwords:
    """Segmentation of one language's text, by a sentencepiece model or already done.

    Args:
        model: path of a sentencepiece model; None: spaces separate the tokens
        symbol: how to join segmented text (fairseq's --remove-bpe); unused with a sentencepiece model
        flag: the flag that names the model, for errors
    """

    def __init__(self, model: Optional[str] = None, symbol: str = "sentencepiece", flag: str = JOINT):
        self._symbol = symbol
        self._processor: Any = None
        self.path, self.flag = model, flag
        self.sha256 = None
        if model is not None:
            import sentencepiece

            if not Path(model).is_file():
                raise KDPluginError(f"{flag} {model}: no such file. Remedy: the model of the training data")
            try:
                self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
            except (OSError, RuntimeError) as error:
                raise KDPluginError(
                    f"{flag} {model}: not a sentencepiece model ({error}). Remedy: the .model file of the training data"
                ) from error
            self.sha256 = sha256_of(model)

    def __str__(self) -> str:
        """As the user named it."""
        return f"{self.flag} {self.path}" if self.path is not None else "text that is already segmented"

    @property
    def joins(self) -> bool:
        """Whether decode(encode(text)) changes text by joining segments."""
        return self._processor is None and self._symbol != "none"

    @property
    def pieces(self) -> FrozenSet[str]:
        """All pieces that the sentencepiece model can produce, except unknown characters; empty without a model."""
        if self._processor is None:
            return frozenset()
        return frozenset(self._processor.id_to_piece(list(range(self._processor.get_piece_size()))))

    @property
    def merges(self) -> List[str]:
        """A BPE model's pieces of several characters, in the order of learning; empty for all other kinds."""
        processor = self._processor
        pieces: List[str] = []
        if processor is None:
            return pieces
        for index in range(processor.get_piece_size()):
            piece = processor.id_to_piece(index)
            if len(piece) > 1 and not (
                processor.is_control(index)
                or processor.is_unknown(index)
                or processor.is_byte(index)
                or processor.is_unused(index)
            ):
                # a BPE score is minus the piece's position in that order; symbols added by hand have score 0
                if processor.get_score(index) == -float(len(pieces)):
                    pieces.append(piece)
                elif processor.get_score(index) != 0:
                    return []
        return pieces

    def identity(self) -> str:
        return f"sentencepiece:{self.sha256}" if self.sha256 else self._symbol

    def check_joining(self, symbols: Collection[str], what: str = "the model's dictionary") -> None:
        """Refuses a --remove-bpe that does not match the symbols; does nothing with a sentencepiece model."""
        if self._processor is None:
            check_joining(self._symbol, symbols, what)

    def encode(self, text: str) -> List[str]:
        """The symbols of a raw line."""
        if self._processor is None:
            return text.split()
        return list(self._processor.encode(text, out_type=str))

    def decode(self, tokens: List[str]) -> str:
        """The raw text of some symbols, without line breaks."""
        if self._processor is not None:
            text = self._processor.decode_pieces(tokens)
        else:
            from fairseq.data.data_utils import post_process

            text = post_process(" ".join(tokens), self._symbol)
        return " ".join(text.splitlines()) if "\n" in text or "\r" in text else text


class Segmentation(NamedTuple):
    """The segmentation of a model's source and target."""

    source: Subwords
    target: Subwords

    def identity(self) -> Union[str, Dict[str, str]]:
        ours, theirs = self.source.identity(), self.target.identity()
        return ours if ours == theirs else {"source": ours, "target": theirs}

    def models(self) -> Dict[str, Subwords]:
        """The sides with a sentencepiece model, by name; "" for one model for both sides."""
        if self.source is self.target:
            return {"": self.source} if self.source.path is not None else {}
        return {side: subwords for side, subwords in zip(SIDES, self) if subwords.path is not None}

    def check(self, path: str, source_symbols: Collection[str], target_symbols: Collection[str]) -> None:
        """Refuses sentencepiece models that do not belong to the translation model; looks at no text.

        Args:
            path: of the translation model, for errors

        Raises:
            KDPluginError: a dictionary has symbols that are not pieces, or only one side has a sentencepiece model but
                the other's dictionary needs one too
        """
        models = self.models()
        for side, other, symbols in zip(SIDES, SIDES[::-1], (source_symbols, target_symbols)):
            if other in models and side not in models and any(SPACE in symbol for symbol in symbols):
                raise KDPluginError(
                    f"{models[other]}: there is no model for the {side} side, but {path}'s {side} dictionary has "
                    f"sentencepiece symbols ({SPACE}). Remedy: --{side}-sentencepiece-model as well, or {JOINT} for "
                    "a joint model"
                )
        if models and frozenset(source_symbols) == frozenset(target_symbols):
            # a joined dictionary may hold the pieces of two models
            names = " and ".join(map(str, models.values()))
            every = frozenset().union(*(subwords.pieces for subwords in models.values()))
            check_model(names, every, source_symbols, f"{path}'s joined dictionary")
            if len(models) == 1:
                check_size(names, self.source.merges, source_symbols, "the dictionary")
            return
        for side, subwords, symbols in zip(SIDES, self, (source_symbols, target_symbols)):
            if subwords.path is not None:
                check_model(str(subwords), subwords.pieces, symbols, f"{path}'s {side} dictionary")
        for side, subwords in models.items():
            own = {"source": source_symbols, "target": target_symbols}.get(side, {*source_symbols, *target_symbols})
            check_size(str(subwords), subwords.merges, own, f"{path}'s dictionaries")

    def check_sides(self, lines: Iterable[str], name: str, joined: bool) -> None:
        """Refuses swapped models, which a joined dictionary cannot reveal.

        A model needs the fewest pieces for text in its own language.

        Args:
            lines, name: raw text of the source language
            joined: whether both sides share a dictionary

        Raises:
            KDPluginError: on source text with at least 50 pieces, the target side's model needs at most 80 % of them
        """
        if not joined or len(self.models()) < 2:
            return
        chosen = list(itertools.islice(lines, LOOKED_AT))
        ours, theirs = (sum(len(subwords.encode(line)) for line in chosen) for subwords in self)
        if ours >= 50 and theirs <= 0.8 * ours:
            raise KDPluginError(
                f"{self.source}: splits {name} into {ours:,} pieces, but {self.target} into only {theirs:,}: the two "
                "models seem to be swapped. Remedy: the source side's model is for the language that the translation "
                "model reads"
            )


class SubwordOptions(NamedTuple):
    """The sentencepiece models that the flags name, and how to join segmented text without one."""

    sentencepiece_model: Optional[str] = None
    source_sentencepiece_model: Optional[str] = None
    target_sentencepiece_model: Optional[str] = None
    remove_bpe: str = SYMBOLS[0]

    def open(self) -> Segmentation:
        """Opens the models.

        Raises:
            KDPluginError: a file is not a sentencepiece model, or there is a joint model and one for a single side
        """
        own = (self.source_sentencepiece_model, self.target_sentencepiece_model)
        if own == (None, None):
            both = Subwords(self.sentencepiece_model, self.remove_bpe)
            return Segmentation(both, both)
        if self.sentencepiece_model is not None:
            side = SIDES[0] if own[0] is not None else SIDES[1]
            raise KDPluginError(
                f"{JOINT} excludes --{side}-sentencepiece-model: it is for both sides. Remedy: either {JOINT}, or "
                "--source-sentencepiece-model and --target-sentencepiece-model"
            )
        flags = (f"--{side}-sentencepiece-model" for side in SIDES)
        return Segmentation(*(Subwords(path, self.remove_bpe, flag) for path, flag in zip(own, flags)))
