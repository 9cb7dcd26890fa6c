"""What the tokenizer in a Hugging Face folder says of its model: symbols, languages, symbols around sentences."""

import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from kd_plugin.checkpoints.transformers_library import LOCAL, model_type, opening
from kd_plugin.errors import KDPluginError

NO_LIMIT = 1_000_000  # positions of a model without a limit
PROBE = "a"  # any text: the symbols that a tokenizer adds around it are what the model expects around every sentence


class Layout(NamedTuple):
    """The symbols that a model expects around a sentence, as its own indices.

    source_prefix, source_suffix: the end of sentence is in the suffix
    target_prefix: before the first symbol of the translation
    """

    source_prefix: List[int]
    source_suffix: List[int]
    target_prefix: List[int]


class Languages(NamedTuple):
    """--teacher-source-lang and --teacher-target-lang: the teacher's own codes."""

    source: Optional[str] = None
    target: Optional[str] = None


class Tokenizer:
    """The symbols of a folder's model.

    Args:
        path: as for Folder
        whose: how the flags for its languages begin: --teacher-source-lang, or --model-source-lang

    Raises:
        KDPluginError: transformers is not installed, the model is of another kind, or there is no tokenizer
    """

    def __init__(self, path: str, whose: str = "teacher"):
        self.path, self._whose = path, whose
        self.model_type = model_type(path)
        with opening(path) as transformers:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path, **LOCAL)
            self.config: Any = transformers.AutoConfig.from_pretrained(path, **LOCAL)

    def vocabularies(self) -> Tuple[Dict[str, int], Dict[str, int]]:
        """The indices of all source and of all target symbols."""
        if getattr(self.tokenizer, "separate_vocabs", False):
            return dict(self.tokenizer.encoder), dict(self.tokenizer.target_encoder)
        symbols = dict(self.tokenizer.get_vocab())
        return symbols, symbols

    def symbols(self, layout: Layout) -> Tuple[Dict[int, str], Dict[int, str]]:
        """The source and the target symbol of each index, including those of a layout."""
        around = [*layout.source_prefix, *layout.source_suffix, *layout.target_prefix]
        # M2M100's language symbols are not in its vocabulary of pieces
        named = dict(zip(around, map(str, self.tokenizer.convert_ids_to_tokens(around))))
        source, target = ({index: symbol for symbol, index in side.items()} for side in self.vocabularies())
        return {**named, **source}, {**named, **target}

    def special(self, name: str, vocabulary: Dict[str, int]) -> Optional[int]:
        """The index of `eos`, `unk`, `pad` or `bos` in one of its vocabularies; None: it has none."""
        token = getattr(self.tokenizer, f"{name}_token", None)
        return vocabulary.get(str(token)) if token is not None else None

    def sentencepiece_models(self) -> Tuple[Path, Path]:
        """The sentencepiece models that segment its source and target text.

        Raises:
            KDPluginError: it has none, for instance if only a tokenizer.json was saved
        """
        names = ("spm_files", "spm_file", "vocab_file")  # Marian's two, M2M100's, and all others'
        named = next((found for found in (getattr(self.tokenizer, name, None) for name in names) if found), None)
        found = [Path(str(file)) for file in (named if isinstance(named, list) else [named, named])]
        if not all(file.suffix in (".model", ".spm") and file.is_file() for file in found):
            raise KDPluginError(
                f"{self.path}: has no sentencepiece model beside its tokenizer.json, but fairseq's data need one. "
                "Remedy: also download the model's source.spm and target.spm, sentencepiece.bpe.model or spiece.model"
            )
        return found[0], found[1]

    @property
    def rows(self) -> int:
        """The number of symbols that the model can read."""
        return int(self.config.vocab_size)

    @property
    def sizes(self) -> Tuple[int, int]:
        """The numbers of symbols that the model can read and write."""
        return int(self.config.vocab_size), int(getattr(self.config, "decoder_vocab_size", None) or self.rows)

    def layout(self, languages: Languages) -> Layout:
        """The symbols that it expects around a sentence, according to its own tokenizer.

        Raises:
            KDPluginError: a language is missing, or the model does not know it
        """
        text = self._set_languages(languages)
        probe = self.tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        source = self.tokenizer(text + PROBE)["input_ids"]
        target_probe = self.tokenizer(text_target=PROBE, add_special_tokens=False)["input_ids"]
        labels = self.tokenizer(text_target=PROBE)["input_ids"]
        before, after = _around(source, probe, self.path)
        labels_before, labels_after = _around(labels, target_probe, self.path)
        # transformers feeds the decoder the labels shifted by one: mBART moves the last one to the front
        start = labels[-1] if self.model_type == "mbart" else self.config.decoder_start_token_id
        eos = self.tokenizer.eos_token_id
        if start is None or eos not in after or labels_after[:1] != [eos]:
            raise KDPluginError(
                f"{self.path}: its tokenizer ends sentences with {after} and {labels_after}, but {eos} is the end of "
                "sentence. Remedy: use the tokenizer files that belong to this model"
            )
        beyond = [index for index in (*before, *after, *labels_before) if index >= self.rows]
        if beyond:
            raise KDPluginError(
                f"{self.path}: its tokenizer puts symbol {beyond[0]} around sentences, but the model has {self.rows:,} "
                "symbols. Remedy: use the tokenizer files that belong to this model"
            )
        return Layout(before, after, [int(start), *labels_before])

    def max_positions(self) -> int:
        """The most symbols on one side, including those around the sentence."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return int(limit) if limit else NO_LIMIT

    @property
    def takes_languages(self) -> str:
        """Which of the two flags it needs: `both`, `target` or `none`."""
        if hasattr(self.tokenizer, "src_lang") or (self._prefixes() and not self._tagged()):
            return "both"
        return "target" if self._tagged() else "none"

    def examples(self) -> str:
        """Some of its language codes."""
        if hasattr(self.tokenizer, "src_lang"):
            return _some(_known_codes(self.tokenizer))
        return _some(sorted(self._tagged()) or ["-".join(pair) for pair in sorted(self._prefixes())])

    def _set_languages(self, languages: Languages) -> str:
        """Set the tokenizer's languages; returns text to put before every sentence."""
        if self.takes_languages == "none":
            return ""
        if hasattr(self.tokenizer, "src_lang"):
            known = _known_codes(self.tokenizer)
            self.tokenizer.src_lang = self._known("source", languages.source, known)
            self.tokenizer.tgt_lang = self._known("target", languages.target, known)
            return ""
        tagged = self._tagged()
        if tagged:
            return tagged[self._known("target", languages.target, sorted(tagged))] + " "
        prefixes = self._prefixes()
        pairs = sorted({source for source, _ in prefixes})
        source = self._known("source", languages.source, pairs)
        target = self._known("target", languages.target, sorted(t for s, t in prefixes if s == source))
        return prefixes[source, target]

    def _tagged(self) -> Dict[str, str]:
        """Language -> the symbol before a source sentence that selects it: OPUS-MT's >>deu<<, MADLAD's <2de>."""
        pattern = r">>(.+)<<" if self.model_type == "marian" else r"<2(\w+)>"
        found = (re.fullmatch(pattern, symbol) for symbol in self.vocabularies()[0])
        return {match.group(1): match.group(0) for match in found if match}

    def _prefixes(self) -> Dict[Tuple[str, str], str]:
        """(source, target) -> text before a source sentence, from T5's configuration."""
        tasks = getattr(self.config, "task_specific_params", None) or {}
        found = {}
        for name, options in tasks.items():
            match = re.fullmatch(r"translation_(\w+)_to_(\w+)", name)
            if match and isinstance(options, dict) and options.get("prefix"):
                found[match.group(1), match.group(2)] = str(options["prefix"])
        return found

    def _known(self, side: str, code: Optional[str], known: List[str]) -> str:
        examples = _some(known)
        flag = f"--{self._whose}-{side}-lang"
        if code is None:
            raise KDPluginError(
                f"{self.path}: translates between several languages. Remedy: {flag} with one of its codes: {examples}"
            )
        if code in known:
            return code
        near = [other for other in known if other.lower().startswith(code.lower()[:2])][:6]
        raise KDPluginError(
            f"{flag} {code}: {self.path} does not know this language. Remedy: use one of its own codes: "
            f"{', '.join(near) if near else examples}"
        )


def _known_codes(tokenizer: Any) -> List[str]:
    codes = getattr(tokenizer, "lang_code_to_token", None)  # M2M100: en for __en__
    if codes:
        return sorted(codes)
    names = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    usual = {str(getattr(tokenizer, f"{name}_token", None)) for name in names}
    return sorted(token for token in map(str, tokenizer.all_special_tokens) if token not in usual)


def _some(codes: List[str]) -> str:
    return ", ".join(codes[:6]) + (f" … ({len(codes)})" if len(codes) > 6 else "")


def _around(ids: List[int], probe: List[int], path: str) -> Tuple[List[int], List[int]]:
    """The symbols before and after the probe."""
    for start in range(len(ids) - len(probe), -1, -1):
        if ids[start : start + len(probe)] == probe:
            return list(ids[:start]), list(ids[start + len(probe) :])
    raise KDPluginError(
        f"{path}: its tokenizer gives {ids} for a sentence, which alone is {probe}, so the symbols around sentences "
        "are unclear. Remedy: use the tokenizer files that belong to this model"
    )
