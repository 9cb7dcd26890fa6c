"""From raw text to the symbols of a dictionary, and back."""

from pathlib import Path
from typing import Any, Collection, Container, Iterable, List, Optional

from fairseq.data.data_utils import post_process

from kd_plugin.errors import KDPluginError
from kd_plugin.files import sha256_of

SPACE = "\u2581"
SYMBOLS = ("sentencepiece", "subword_nmt", "none")


class Subwords:
    """A sentencepiece model, or text that is segmented already.

    Args:
        model: path of a sentencepiece model; None: tokens are what spaces separate
        symbol: how segmented text is put together again (fairseq's --remove-bpe); a sentencepiece model does it itself
    """

    def __init__(self, model: Optional[str] = None, symbol: str = "sentencepiece"):
        self._symbol = symbol
        self._processor: Any = None
        self.sha256 = None
        if model is not None:
            import sentencepiece

            if not Path(model).is_file():
                raise KDPluginError(
                    f"--sentencepiece-model {model}: no such file. Remedy: the model of the training data"
                )
            try:
                self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
            except (OSError, RuntimeError) as error:
                raise KDPluginError(
                    f"--sentencepiece-model {model}: no sentencepiece model ({error}). Remedy: the .model file of the "
                    "training data"
                ) from error
            self.sha256 = sha256_of(model)

    @property
    def joins(self) -> bool:
        """Whether decode(encode(text)) is other text: segmented text is put together."""
        return self._processor is None and self._symbol != "none"

    def identity(self) -> str:
        return f"sentencepiece:{self.sha256}" if self.sha256 else self._symbol

    def check(self, symbols: Collection[str]) -> None:
        """Refuse to take spaces out of what is no sentencepiece text.

        Args:
            symbols: of the model's target dictionary

        Raises:
            KDPluginError: --remove-bpe sentencepiece, and the dictionary has no such symbols
        """
        if self._processor is None and self._symbol == "sentencepiece":
            if not any(SPACE in symbol for symbol in symbols):
                raise KDPluginError(
                    f"--remove-bpe sentencepiece: no symbol of the model's dictionary has sentencepiece's {SPACE}. "
                    "Remedy: --remove-bpe subword_nmt (@@), or none for whole words"
                )

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
            text = post_process(" ".join(tokens), self._symbol)
        return " ".join(text.splitlines()) if "\n" in text or "\r" in text else text


def check_known(sentences: Iterable[List[str]], known: Container[str]) -> None:
    """Refuse text of which most symbols are unknown: it is segmented otherwise than the model's training data.

    Args:
        known: symbols of the model's source dictionary

    Raises:
        KDPluginError: more than half of at least 20 symbols
    """
    total = unknown = 0
    for tokens in sentences:
        total += len(tokens)
        unknown += sum(token not in known for token in tokens)
    if total >= 20 and 2 * unknown > total:
        raise KDPluginError(
            f"{unknown:,} of {total:,} symbols of the text are not in the model's dictionary: it is segmented "
            "otherwise. Remedy: --sentencepiece-model with the training data's, or text that is segmented already"
        )
