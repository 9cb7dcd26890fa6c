"""A folder of Hugging Face transformers: its own tokenizer segments the text, CTranslate2's converter converts it."""

import functools
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Optional

import torch
from torch import Tensor

from kd_plugin.checkpoints.ctranslate2_models import open_translator, vocabulary
from kd_plugin.checkpoints.huggingface import Folder, folder_sha256
from kd_plugin.checkpoints.tokenizer import Languages, Layout, Tokenizer
from kd_plugin.corpus.subwords import Segmentation, Subwords
from kd_plugin.decoding.base import UNKNOWN, Around
from kd_plugin.decoding.folders.base import Asked, TextModel
from kd_plugin.errors import KDPluginError

LOADERS = {  # in CTranslate2, which registers them by configuration class
    "marian": "MarianMTLoader",
    "m2m_100": "M2M100Loader",
    "mbart": "MBartLoader",
    "t5": "T5Loader",
    "mt5": "MT5Loader",
    "umt5": "UMT5Loader",
}
PROBE = 8  # symbols per side to check a conversion with
AGREEMENT = 1e-3  # of log-probabilities, relative where they are above 1


class TokenizerSubwords(Subwords):
    """One side of a transformers tokenizer.

    Args:
        vocabulary: symbol -> index, for that side
        text: the tokenizer's argument for text on that side
    """

    def __init__(self, tokenizer: Any, vocabulary: Dict[str, int], text: str, sha256: str):
        super().__init__(None, "none")
        self._tokenizer, self._identity = tokenizer, f"transformers:{sha256}"
        self._text, self.indices = text, vocabulary
        self.symbols = {index: symbol for symbol, index in vocabulary.items()}

    def identity(self) -> str:
        """As Subwords'."""
        return self._identity

    def encode(self, text: str) -> List[str]:
        """Symbols of a raw line, without what the model expects around it."""
        ids = self._tokenizer(**{self._text: text}, add_special_tokens=False, verbose=False)["input_ids"]
        return [self.symbols.get(index, UNKNOWN) for index in ids]

    def decode(self, tokens: List[str]) -> str:
        """Raw text; unknown symbols stay visible, as sentencepiece writes them."""
        parts: List[List[int]] = [[]]
        for token in tokens:
            if token == UNKNOWN:
                parts.append([])
            elif token in self.indices:
                parts[-1].append(self.indices[token])
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        texts = [self._tokenizer.decode(part, **options) for part in parts]
        return " ".join(" \u2047 ".join(texts).splitlines())


class HuggingFaceFolder(TextModel):
    """MarianMT, M2M100 and NLLB, mBART, T5, as opened by checkpoints.huggingface. `convert` reads the weights."""

    segments = True

    def __init__(self, asked: Asked):
        asked.refuse(
            ["source_prefix", "source_suffix", "target_prefix"],
            "is a Hugging Face folder, whose tokenizer knows the symbols around sentences",
            "--model-source-lang and --model-target-lang if it translates several languages",
        )
        asked.refuse(["subwords"], "is a Hugging Face folder, which has its own tokenizer", "leave them out")
        self.path = asked.path
        tokenizer = self._tokenizer = Tokenizer(asked.path, "model")
        self._sha256 = folder_sha256(asked.path)
        self._asked_languages = self._codes(asked)
        layout = self._layout = tokenizer.layout(self._asked_languages)
        vocabularies = tokenizer.vocabularies()
        sides = [
            TokenizerSubwords(tokenizer.tokenizer, known, text, self._sha256)
            for known, text in zip(vocabularies, ("text", "text_target"))
        ]
        self.subwords = Segmentation(*sides)
        # a tokenizer may name symbols that its model does not have
        self.source_symbols, self.target_symbols = (
            frozenset(symbol for symbol, index in side.items() if index < rows)
            for side, rows in zip(vocabularies, tokenizer.sizes)
        )
        source, target = tokenizer.symbols(layout)
        self.around = Around(
            tuple(source[index] for index in layout.source_prefix),
            tuple(source[index] for index in layout.source_suffix),
            tuple(target[index] for index in layout.target_prefix[1:]),
        )
        self.languages = self._said()

    def _codes(self, asked: Asked) -> Languages:
        """The model's language codes: from the flags, otherwise the corpus's if the model knows them."""
        said = asked.options.model_source_lang, asked.options.model_target_lang
        needed = {"both": (True, True), "target": (False, True), "none": (False, False)}[
            self._tokenizer.takes_languages
        ]
        codes = []
        for side, code, of_corpus, is_needed in zip(("source", "target"), said, asked.languages, needed):
            if code is not None and not is_needed and asked.alone:
                raise KDPluginError(
                    f"--model-{side}-lang {code}: {self.path} does not take a {side} language. Remedy: leave it out"
                )
            codes.append((code or of_corpus) if is_needed else None)
        return Languages(*codes)

    def _said(self) -> Optional[List[str]]:
        """The languages of a model for one language pair, as its tokenizer names them."""
        pair = [getattr(self._tokenizer.tokenizer, f"{side}_lang", None) for side in ("source", "target")]
        return [str(code) for code in pair] if all(pair) else None

    def identity(self) -> Dict[str, Any]:
        """As TextModel's."""
        return {"kind": "huggingface", "models": [self._sha256], "around": [list(part) for part in self.around]}

    def convert(self, folder: Path) -> Path:
        """As TextModel's."""
        opened = Folder(self.path, whose="model")
        limit = opened.max_positions()
        before, after, begins = self.around
        return self.write(
            _converter(opened, self._layout),
            folder,
            "use another version of ctranslate2, or translate with transformers itself and kd-plugin import",
            functools.partial(self._check_conversion, opened),
            parameters=opened.parameters,
            max_source_tokens=limit - len(before) - len(after),
            max_target_tokens=limit - len(begins) - 1,
        )

    def _check_conversion(self, opened: Folder, folder: Path) -> None:
        """Compare the converted model with the folder's own, on an artificial sentence pair."""
        known = [vocabulary(folder, side) for side in ("source", "target")]
        source, target = (self._some_pieces(side, some) for side, some in zip(self.subwords, known))
        before, after, begins = self.around
        translator = open_translator(folder, threads=1)
        pair = [*before, *source, *after], [*begins, *target]
        found = translator.score_batch([pair[0]], [pair[1]])[0].log_probs
        own = self._own_log_probs(opened, source, target, known[1])
        ours = torch.tensor(found[-len(own) :], dtype=torch.float64)
        error = float(((ours - own).abs() / own.abs().clamp(min=1.0)).max())
        if not error < AGREEMENT:
            raise KDPluginError(
                f"{self.path}: converted by CTranslate2, it gives other probabilities than with transformers (they "
                f"differ by {error:.3g}). Remedy: use other versions of ctranslate2 and transformers, and report it"
            )

    def _some_pieces(self, side: Subwords, known: FrozenSet[str]) -> List[str]:
        assert isinstance(side, TokenizerSubwords)
        specials = set(self._tokenizer.tokenizer.all_special_tokens)
        usual = [symbol for symbol in side.indices if symbol in known and symbol not in specials]
        return usual[:: max(1, len(usual) // PROBE)][:PROBE]

    @torch.no_grad()
    def _own_log_probs(self, opened: Folder, source: List[str], target: List[str], known: FrozenSet[str]) -> Tensor:
        """(len(target) + 1,) transformers' log-probabilities of the target and its end, among the `known` symbols."""
        sides = [side.indices for side in self.subwords if isinstance(side, TokenizerSubwords)]
        read, written = ([side[symbol] for symbol in some] for side, some in zip(sides, (source, target)))
        layout = self._layout
        encoder_input = torch.tensor([[*layout.source_prefix, *read, *layout.source_suffix]])
        decoder_input = torch.tensor([[*layout.target_prefix, *written]])
        logits = opened.model(input_ids=encoder_input, decoder_input_ids=decoder_input).logits[0].double()
        left_out = [index for symbol, index in sides[1].items() if index < logits.size(1) and symbol not in known]
        logits[:, left_out] = -torch.inf
        asked = torch.tensor([*written, _end(self._tokenizer)])
        return torch.log_softmax(logits, dim=-1)[-len(asked) :].gather(1, asked.unsqueeze(1)).squeeze(1)


def _converter(opened: Folder, layout: Layout) -> Any:
    """CTranslate2's converter, with the model opened here instead of one that it reads itself."""
    from ctranslate2.converters import transformers as known
    from ctranslate2.converters.converter import Converter

    start = layout.target_prefix[0]
    source, target = opened.symbols(layout)

    class Loader(getattr(known, LOADERS[opened.model_type])):  # type: ignore[misc]
        def get_model_spec(self, model: Any) -> Any:
            spec = super().get_model_spec(model)
            embeddings, rows = spec.decoder.embeddings, spec.decoder.projection.weight.shape[0]
            # Marian with two vocabularies may have embeddings that it never uses
            embeddings.weight = embeddings.weight[:rows]
            if spec.decoder.start_from_zero_embedding:
                spec.decoder.start_from_zero_embedding = self._is_zero(embeddings, start)
            return spec

        def _remove_pad_weights(self, spec: Any) -> None:
            # Marian begins with zeros, and transformers does so if the row of the padding is zero
            if self._is_zero(spec.decoder.embeddings, start):
                super()._remove_pad_weights(spec)

        @staticmethod
        def _is_zero(embeddings: Any, row: int) -> bool:
            return not bool(embeddings.weight[row:][:1].any())

        def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
            super().set_config(config, model, tokenizer)
            config.bos_token = config.bos_token or tokenizer.eos_token  # unused, but CTranslate2 requires a string
            config.decoder_start_token = target.get(start, tokenizer.eos_token)

        def get_vocabulary(self, *_: Any) -> List[str]:
            return []  # CTranslate2's own omits symbols that tokenizers do not name, and shifts those after them

        def set_vocabulary(self, spec: Any, tokens: List[str]) -> None:
            rows = spec.encoder.embeddings[0].weight.shape[0], spec.decoder.projection.weight.shape[0]
            spec.register_source_vocabulary(_all(source, rows[0]))
            spec.register_target_vocabulary(_all(target, rows[1]))

    class OfFolder(Converter):  # type: ignore[misc]
        def _load(self) -> Any:
            if opened.model_type == "mbart":  # transformers has no such setting: all its mBART models normalise
                opened.model.config.normalize_before = opened.model.config.normalize_embedding = True
            with torch.no_grad():
                return Loader()(opened.model, opened.tokenizer)

    return OfFolder()


def _all(symbols: Dict[int, str], rows: int) -> List[str]:
    """The symbol of every row."""
    return [symbols.get(index, f"unused{index}") for index in range(rows)]


def _end(tokenizer: Tokenizer) -> int:
    return int(tokenizer.tokenizer.eos_token_id)
