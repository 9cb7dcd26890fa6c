"""From raw text to the symbols of a dictionary, and back: with one sentencepiece model, or one for each language."""

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
    """How text of one language is segmented: by a sentencepiece model, or already.

    Args:
        model: path of a sentencepiece model; None: tokens are what spaces separate
        symbol: how segmented text is put together again (fairseq's --remove-bpe); a sentencepiece model does it itself
        flag: that names the model, for errors
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
                    f"{flag} {model}: no sentencepiece model ({error}). Remedy: the .model file of the training data"
                ) from error
            self.sha256 = sha256_of(model)

    def __str__(self) -> str:
        """As the user has named it."""
        return f"{self.flag} {self.path}" if self.path is not None else "text that is segmented already"

    @property
    def joins(self) -> bool:
        """Whether decode(encode(text)) is other text: segmented text is put together."""
        return self._processor is None and self._symbol != "none"

    @property
    def pieces(self) -> FrozenSet[str]:
        """All that the sentencepiece model can write, besides characters that it does not know; empty without one."""
        if self._processor is None:
            return frozenset()
        return frozenset(self._processor.id_to_piece(list(range(self._processor.get_piece_size()))))

    @property
    def merges(self) -> List[str]:
        """A BPE model's pieces of several characters, as it has learned them; empty for every other kind."""
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
                # scores of BPE are the places in that order, and those of symbols that somebody has added are 0
                if processor.get_score(index) == -float(len(pieces)):
                    pieces.append(piece)
                elif processor.get_score(index) != 0:
                    return []
        return pieces

    def identity(self) -> str:
        return f"sentencepiece:{self.sha256}" if self.sha256 else self._symbol

    def check_joining(self, symbols: Collection[str], what: str = "the model's dictionary") -> None:
        """Refuse to put text together that is segmented otherwise; nothing to do with a sentencepiece model."""
        if self._processor is None:
            check_joining(self._symbol, symbols, what)

    def encode(self, text: str) -> List[str]:
        """Symbols of a raw line."""
        if self._processor is None:
            return text.split()
        return list(self._processor.encode(text, out_type=str))

    def decode(self, tokens: List[str]) -> str:
        """Raw text of symbols, without line breaks."""
        if self._processor is not None:
            text = self._processor.decode_pieces(tokens)
        else:
            from fairseq.data.data_utils import post_process

            text = post_process(" ".join(tokens), self._symbol)
        return " ".join(text.splitlines()) if "\n" in text or "\r" in text else text


class Segmentation(NamedTuple):
    """Subwords of what a model reads and of what it writes."""

    source: Subwords
    target: Subwords

    def identity(self) -> Union[str, Dict[str, str]]:
        ours, theirs = self.source.identity(), self.target.identity()
        return ours if ours == theirs else {"source": ours, "target": theirs}

    def models(self) -> Dict[str, Subwords]:
        """Those with a sentencepiece model, by the name of the side; "" where it is one for both."""
        if self.source is self.target:
            return {"": self.source} if self.source.path is not None else {}
        return {side: subwords for side, subwords in zip(SIDES, self) if subwords.path is not None}

    def check(self, path: str, source_symbols: Collection[str], target_symbols: Collection[str]) -> None:
        """Refuse sentencepiece models that are not those of the translation model, whatever the text.

        Args:
            path: of the translation model, for errors

        Raises:
            KDPluginError: a dictionary holds symbols that are no pieces, or one side alone has a sentencepiece model
                and the other's dictionary needs one
        """
        models = self.models()
        for side, other, symbols in zip(SIDES, SIDES[::-1], (source_symbols, target_symbols)):
            if other in models and side not in models and any(SPACE in symbol for symbol in symbols):
                raise KDPluginError(
                    f"{models[other]}: there is no model for the {side} side, and {path}'s {side} dictionary is one of "
                    f"sentencepiece ({SPACE}). Remedy: --{side}-sentencepiece-model too, or {JOINT} for one of both"
                )
        if models and frozenset(source_symbols) == frozenset(target_symbols):
            # the pieces of two models may well be joined to one dictionary
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
        """Refuse models that are given for each other's side, which a joined dictionary of both does not tell.

        Each takes text of its own language into the fewest pieces.

        Args:
            lines, name: raw text of the source language
            joined: whether both sides have one dictionary

        Raises:
            KDPluginError: the target side's model needs at most 80 % of the source side's pieces, at least 50 of them
        """
        if not joined or len(self.models()) < 2:
            return
        chosen = list(itertools.islice(lines, LOOKED_AT))
        ours, theirs = (sum(len(subwords.encode(line)) for line in chosen) for subwords in self)
        if ours >= 50 and theirs <= 0.8 * ours:
            raise KDPluginError(
                f"{self.source}: makes {ours:,} pieces of {name}, and {self.target} makes {theirs:,}: they seem to be "
                "given for each other's side. Remedy: the source side's model is that of the language which the "
                "translation model reads"
            )


class SubwordOptions(NamedTuple):
    """Which sentencepiece models the flags name, and how segmented text is put together where there is none."""

    sentencepiece_model: Optional[str] = None
    source_sentencepiece_model: Optional[str] = None
    target_sentencepiece_model: Optional[str] = None
    remove_bpe: str = SYMBOLS[0]

    def open(self) -> Segmentation:
        """The subwords.

        Raises:
            KDPluginError: a file is no sentencepiece model, or there are one for both sides and one for one of them
        """
        own = (self.source_sentencepiece_model, self.target_sentencepiece_model)
        if own == (None, None):
            both = Subwords(self.sentencepiece_model, self.remove_bpe)
            return Segmentation(both, both)
        if self.sentencepiece_model is not None:
            side = SIDES[0] if own[0] is not None else SIDES[1]
            raise KDPluginError(
                f"{JOINT} and --{side}-sentencepiece-model: the first is for both sides. Remedy: either {JOINT}, or "
                "--source-sentencepiece-model and --target-sentencepiece-model"
            )
        flags = (f"--{side}-sentencepiece-model" for side in SIDES)
        return Segmentation(*(Subwords(path, self.remove_bpe, flag) for path, flag in zip(own, flags)))
