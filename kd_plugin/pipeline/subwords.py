"""From raw text to the symbols of a dictionary, and back."""

from pathlib import Path
from typing import Any, List, Optional

from fairseq.data.data_utils import post_process

from kd_plugin.errors import KDPluginError
from kd_plugin.files import sha256_of

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

    def identity(self) -> str:
        return f"sentencepiece:{self.sha256}" if self.sha256 else self._symbol

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
