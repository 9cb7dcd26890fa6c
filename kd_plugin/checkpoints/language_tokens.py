"""The language tokens that fairseq's multilingual tasks add to a dictionary at startup; no dictionary file has them."""

import copy
import shlex
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence

import torch
from fairseq.data import Dictionary
from fairseq.data.multilingual.multilingual_utils import augment_dictionary

from kd_plugin.errors import KDPluginError

# weights with one row per symbol; the first that exists in a checkpoint gives the size of the vocabulary
VOCABULARY_WEIGHTS: Dict[str, Sequence[str]] = {
    "source": ("encoder.embed_tokens.weight",),
    "target": ("decoder.output_projection.weight", "decoder.embed_tokens.weight"),
}
DECODED_ELSEWHERE = (
    "its task {task} replaces ends of sentences by language tokens, which is not supported here: the model would not "
    "answer as it has learned. Remedy: translate the training text with fairseq-generate --task {task}, then kd-plugin "
    "import"
)


def vocabulary_rows(weights: Mapping[str, Any], side: str) -> Optional[int]:
    """The number of symbols that a checkpoint's `model` has on one side, source or target; None: unknown."""
    return next(
        (weights[name].size(0) for name in VOCABULARY_WEIGHTS[side] if torch.is_tensor(weights.get(name))), None
    )


def task_name(task_cfg: Any) -> str:
    return str(getattr(task_cfg, "_name", None) or getattr(task_cfg, "task", None))


def languages_of(task_cfg: Any) -> List[Optional[str]]:
    """Source and target language from a checkpoint's task, or from the only pair of a multilingual one."""
    languages = [getattr(task_cfg, field, None) for field in ("source_lang", "target_lang")]
    pairs = _listed(getattr(task_cfg, "lang_pairs", None))
    if languages == [None, None] and len(pairs) == 1 and pairs[0].count("-") == 1:
        return list(pairs[0].split("-"))
    return languages


def appended_symbols(task_cfg: Any, dictionary: Dictionary) -> List[str]:
    """The symbols that a checkpoint's task appends to a dictionary file's, in its order.

    Args:
        dictionary: from the file; not modified
    """
    name, more = task_name(task_cfg), copy.deepcopy(dictionary)
    if name == "translation_multi_simple_epoch":
        augment_dictionary(
            more,
            _languages_in_order(task_cfg),
            getattr(task_cfg, "lang_tok_style", None) or "multilingual",
            langtoks_specs=getattr(task_cfg, "langtoks_specs", ("main",)),
            extra_data=getattr(task_cfg, "extra_data", None),
        )
    elif name == "translation_from_pretrained_bart":
        for symbol in [*(f"[{language}]" for language in _listed(task_cfg.langs)), "<mask>"]:
            more.add_symbol(symbol)
    elif name in ("multilingual_translation", "semisupervised_translation") and _replaces(task_cfg):
        for language in sorted({language for pair in _listed(task_cfg.lang_pairs) for language in pair.split("-")}):
            more.add_symbol(f"__{language}__")
    elif name == "online_backtranslation":
        for symbol in ["<mask>", *(f"__{language}__" for language in _listed(task_cfg.mono_langs))]:
            more.add_symbol(symbol)
    return more.symbols[len(dictionary) :]


def check_rows(
    weights: Mapping[str, Any], task_cfg: Any, dictionaries: Sequence[Dictionary], files: Sequence[str], path: str
) -> None:
    """Refuses dictionary files that lack the symbols that the checkpoint's task adds.

    Other mismatches are left to the loading of the model.

    Args:
        weights: the checkpoint's `model`
        dictionaries, files: source and target, and where they were found

    Raises:
        KDPluginError: symbols are missing (the message names them and says how to add them), or the task uses its
            tokens in a way that text cannot express
    """
    if _replaces(task_cfg):
        raise KDPluginError(f"{path}: {DECODED_ELSEWHERE.format(task=task_name(task_cfg))}")
    for side, dictionary, file in zip(VOCABULARY_WEIGHTS, dictionaries, files):
        rows = vocabulary_rows(weights, side)
        if rows is None or rows == len(dictionary):
            continue
        reason = missing_symbols(task_cfg, dictionary, file, rows)
        if reason:
            raise KDPluginError(f"{path}: {reason}")


def missing_symbols(task_cfg: Any, dictionary: Dictionary, file: str, rows: int) -> str:
    """Why a model has more rows than a dictionary file has symbols, and the remedy; empty if its task adds none."""
    symbols = appended_symbols(task_cfg, dictionary)
    if not symbols:
        return ""
    listed = " ".join(symbols)
    if len(listed) > 400:
        listed = f"{listed[:300]} … {symbols[-1]}"
    fits = len(dictionary) + len(symbols) == rows
    begins = (
        f"its task {task_name(task_cfg)} adds {len(symbols)} symbols to the dictionary at startup, which {file} "
        f"({len(dictionary)} symbols) lacks: {listed}"
    )
    if not fits:
        return (
            f"{begins}. With them there are {len(dictionary) + len(symbols)}, but the model has {rows}. Remedy: the "
            "dictionary files of its training, with these lines at the end"
        )
    if _replaces(task_cfg):
        return DECODED_ELSEWHERE.format(task=task_name(task_cfg))
    lines = " ".join(map(shlex.quote, symbols))
    append = f"printf '%s 1\\n' {lines} >> DICT" if len(lines) < 2000 else "each followed by ` 1`"
    return (
        f"{begins}. Remedy: add them at the end of a copy of the dictionary files, in this order: {append}; name its "
        "folder (--dict-dir, --dict, or --teacher-overrides '{\"data\": …}'), and binarise the student's data with it "
        f"(fairseq-preprocess --srcdict --tgtdict). {how_sentences_begin(task_cfg)}".rstrip()
    )


def how_sentences_begin(task_cfg: Any) -> str:
    """Says where a model expects language tokens in its sentences; empty if nowhere."""
    if task_name(task_cfg) != "translation_multi_simple_epoch" or _replaces(task_cfg):
        return ""
    of_source = {"src": "source", "tgt": "target"}.get(str(getattr(task_cfg, "encoder_langtok", None)))
    parts = [] if of_source is None else [f"source sentences with that of the {of_source} language"]
    if getattr(task_cfg, "decoder_langtok", False):
        parts.append("target sentences with that of the target language")
    if not parts:
        return ""
    return (
        f"As in its training, its sentences must begin with a language token ({_token(task_cfg).format('LANG')}): "
        f"{', '.join(parts)}"
    )


def source_token(task_cfg: Any, languages: Optional[Sequence[str]]) -> Optional[str]:
    """The language token at the beginning of a model's source sentences, or None.

    Args:
        languages: source and target; None: unknown
    """
    side = {"src": 0, "tgt": 1}.get(str(getattr(task_cfg, "encoder_langtok", None)))
    if languages is None or side is None or not how_sentences_begin(task_cfg):
        return None
    return _token(task_cfg).format(languages[side])


def check_source_token(token: Optional[str], sentences: Iterable[Sequence[str]], path: str) -> None:
    """Refuses sentences without the model's language token, which it might translate into any of its languages.

    Args:
        token: from `source_token`
    """
    found = next((tokens for tokens in sentences if token is not None and tokens and tokens[0] != token), None)
    if found is not None:
        raise KDPluginError(
            f"{path}: its source sentences must begin with {token}, but one begins with {found[0]}. Remedy: text that "
            f"is already segmented (without --sentencepiece-model), with `{token} ` in front of every line; or "
            "fairseq-generate with the model's own task, then kd-plugin import"
        )


def _token(task_cfg: Any) -> str:
    return "[{}]" if getattr(task_cfg, "lang_tok_style", None) == "mbart" else "__{}__"


def _languages_in_order(task_cfg: Any) -> List[str]:
    """As MultilingualDatasetManager.load_langs; empty if the file of --lang-dict is gone."""
    if getattr(task_cfg, "lang_dict", None):
        try:
            with open(task_cfg.lang_dict, encoding="utf-8") as file:
                return [line.strip() for line in file if line.strip()]
        except (OSError, UnicodeError):
            return []
    pairs = _listed(getattr(task_cfg, "lang_pairs", None))
    return _listed(getattr(task_cfg, "langs", None)) or sorted({lang for pair in pairs for lang in pair.split("-")})


def _replaces(task_cfg: Any) -> bool:
    """Whether the task's tokens replace the end of sentence, which text cannot express."""
    name = task_name(task_cfg)
    asked = getattr(task_cfg, "encoder_langtok", None) is not None or bool(getattr(task_cfg, "decoder_langtok", False))
    if name == "translation_multi_simple_epoch":
        return asked and bool(getattr(task_cfg, "lang_tok_replacing_bos_eos", False))
    if name in ("multilingual_translation", "semisupervised_translation"):
        return asked
    return name == "translation_from_pretrained_bart"


def _listed(value: Any) -> List[str]:
    """The items of a comma-separated string or a list."""
    if value is None:
        return []
    return value.split(",") if isinstance(value, str) else [str(item) for item in value]
