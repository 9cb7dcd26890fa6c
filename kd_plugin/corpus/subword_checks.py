"""Checks, before translation, that text, subwords and a model's dictionaries belong together."""

import re
import sys
from typing import Collection, Iterable, List, Optional, Sequence

from kd_plugin.errors import KDPluginError

SPACE, JOINER = "\u2581", "@@"
KIND_SHARE = 0.01  # of a dictionary's symbols have the mark: with sentencepiece half of them, in Chinese a few percent
# The largest share of a dictionary's symbols that may be missing from a model's pieces. Measured: with the right model
# 0 of 8,000; with a model of the same kind and size from other lines of the same corpus 17 %; with twice the size 0.8
# to 1.8 %; with 3,900 instead of 4,000 pieces 4.5 %. A few added placeholders do not indicate another model, but
# beginnings of words (with ▁) do.
WRONG_SHARE, WRONG_BEGINNINGS, ALLOWED = 0.005, 0.001, 1
MUST_BE_USED, FIRST_SHARE = 0.96, 0.96
# symbols that fairseq and its users add to a dictionary: <pad>, <2de>, __de__, [de_DE], >>deu<<, madeupword0001
ADDED = re.compile(r"<.*>|__\w+__|\[\w+\]|>>.*<<|[a-z]{2,3}_[A-Z]\w{1,3}|(madeupword|unused)\d+", re.DOTALL)
SHOWN = 5


class Marks:
    """Counts lines that look segmented: raw text does not have ▁ or @@ in every line."""

    def __init__(self, lines: Iterable[str] = ()):
        self.lines = self.spaced = self.joined = 0
        for line in lines:
            self.add(line)

    def add(self, line: str) -> None:
        if line and not line.isspace():
            self.lines += 1
            self.spaced += SPACE in line
            self.joined += JOINER in line and any(token.endswith(JOINER) for token in line.split())


def kind_of(symbols: Collection[str]) -> Optional[str]:
    """The tool that made a dictionary's symbols, by fairseq's name; None: whole words or characters."""
    # ▁ alone may also be the space of fairseq's --bpe characters
    spaced = sum(SPACE in symbol and len(symbol) > 1 for symbol in symbols)
    joined = sum(symbol.endswith(JOINER) for symbol in symbols)
    if max(spaced, joined) < KIND_SHARE * len(symbols) or not spaced + joined:
        return None
    return "sentencepiece" if spaced >= joined else "subword_nmt"


def check_model(model: str, pieces: Collection[str], symbols: Collection[str], what: str) -> None:
    """Refuses a sentencepiece model that lacks a dictionary's symbols.

    Args:
        model, what: names of the model and the dictionary, for errors

    Raises:
        KDPluginError: more than WRONG_SHARE of the symbols are missing, or WRONG_BEGINNINGS of those with ▁
    """
    regular = [symbol for symbol in symbols if not ADDED.fullmatch(symbol)]
    missing = [symbol for symbol in regular if symbol not in pieces]
    if _is_of_words(pieces):
        # a word model leaves unknown words as they are, so dictionary symbols need not be pieces, but must be words
        missing = [symbol for symbol in regular if SPACE not in symbol]
    else:
        missing = _without_unknown_characters(missing, pieces, len(regular))
    beginnings = sum(SPACE in symbol for symbol in missing)
    wrong, wrong_beginnings = (max(ALLOWED, share * len(regular)) for share in (WRONG_SHARE, WRONG_BEGINNINGS))
    if len(missing) > wrong or beginnings > wrong_beginnings:
        if SPACE not in "".join(regular):
            raise KDPluginError(
                f"{model}: no symbol of {what} has sentencepiece's {SPACE}: its text was not segmented with this "
                f"model ({_some(missing)}). Remedy: leave the model out, and give text prepared like the training data "
                "(whole words, or segmented with subword-nmt) with the matching --remove-bpe"
            )
        raise KDPluginError(
            f"{model}: is not the one that segmented the translation model's text: {len(missing):,} of "
            f"{len(regular):,} symbols of {what} are not among its pieces ({_some(missing)}). Remedy: the .model file "
            "of the training data; if source and target have their own, --source-sentencepiece-model and "
            "--target-sentencepiece-model"
        )


def check_size(model: str, merges: Sequence[str], symbols: Collection[str], what: str) -> None:
    """Refuses a BPE model with more merges than the one that segmented the training text.

    A larger model learns the same merges first, so all of the dictionary's symbols are among its pieces; but its later
    merges would put symbols into the text that never occurred in the training data. Measured with the symbols of a
    4,000-piece model: 98.8 % of its own merges are used, and none of a larger model's later ones. If the corpus is
    small or covers fewer of the model's languages, or if rare symbols were dropped, 34 to 92 % are used.

    Args:
        merges: the model's pieces of several characters, in the order of learning
        symbols: of all dictionaries that hold its pieces

    Raises:
        KDPluginError: the used merges are the first ones, and further ones follow
    """
    known = frozenset(symbols)
    used = [merge in known for merge in merges]
    first = used[: sum(used)]
    if sum(used) < MUST_BE_USED * len(used) and sum(first) > FIRST_SHARE * len(first):
        raise KDPluginError(
            f"{model}: is larger than the one that segmented the translation model's text: the last "
            f"{len(used) - len(first):,} of its {len(used):,} merges are not in {what} "
            f"({_some([merge for merge, is_used in zip(merges, used) if not is_used][-SHOWN:])}). Remedy: the .model "
            "file of the training data"
        )


def _without_unknown_characters(missing: List[str], pieces: Collection[str], of: int) -> List[str]:
    """Drops symbols with characters unknown to the model: it leaves those as they are, so they prove nothing."""
    known = {piece for piece in pieces if len(piece) == 1}
    left = [symbol for symbol in missing if SPACE in symbol or not known.isdisjoint(symbol)]
    # unless that would excuse a whole script
    return left if 2 * (len(missing) - len(left)) < of else missing


def _is_of_words(pieces: Collection[str]) -> bool:
    """Whether it is a model of whole words (--model_type word)."""
    regular = [piece for piece in pieces if not ADDED.fullmatch(piece)]
    return bool(regular) and all(piece.startswith(SPACE) or piece.endswith(SPACE) for piece in regular)


def _some(symbols: List[str]) -> str:
    return ", ".join(symbols[:SHOWN]) + (", …" if len(symbols) > SHOWN else "")


def check_joining(symbol: str, symbols: Collection[str], what: str) -> None:
    """Refuses a --remove-bpe that does not match the tool that segmented the text.

    Args:
        symbol: --remove-bpe
        what: name of the dictionary, for errors
    """
    kind = kind_of(symbols)
    if symbol == "sentencepiece" and (kind == "subword_nmt" or not any(SPACE in one for one in symbols)):
        raise KDPluginError(
            f"--remove-bpe sentencepiece: no symbol of {what} has sentencepiece's {SPACE}. "
            "Remedy: --remove-bpe subword_nmt (@@), or none for whole words"
        )
    if symbol == "subword_nmt" and kind == "sentencepiece":
        raise KDPluginError(
            f"--remove-bpe subword_nmt: {what} has sentencepiece symbols ({SPACE}). Remedy: --sentencepiece-model FILE "
            "for raw text, or --remove-bpe sentencepiece for text that is already segmented"
        )


def check_text(marks: Marks, has_model: bool, symbols: Collection[str], name: str) -> None:
    """Refuses raw text for a dictionary of subwords, and segmented text for a sentencepiece model.

    Args:
        has_model: whether a sentencepiece model segments the text
        name: of the text, for errors
    """
    if has_model:
        found = max(marks.spaced, marks.joined)
        if 2 * found > marks.lines:
            mark = SPACE if found == marks.spaced else JOINER
            raise KDPluginError(
                f"{name}: {found:,} of {marks.lines:,} lines contain {mark}: it is already segmented. Remedy: raw "
                "text, or no sentencepiece model"
            )
    elif marks.lines and 2 * marks.spaced <= marks.lines and kind_of(symbols) == "sentencepiece":
        raise KDPluginError(
            f"{name}: is raw text ({marks.lines - marks.spaced:,} of {marks.lines:,} lines without {SPACE}), but the "
            "model's dictionary has sentencepiece symbols. Remedy: --sentencepiece-model with the training data's "
            "model, or text that is already segmented"
        )


def check_known(sentences: Iterable[List[str]], known: Collection[str], has_model: bool = False) -> None:
    """Refuses text with mostly unknown symbols: it is segmented differently than the model's training data.

    Args:
        known: symbols of the dictionary
        has_model: whether a sentencepiece model has segmented the text

    Raises:
        KDPluginError: more than half of at least 20 symbols are unknown, or the text has whole words that the
            dictionary has only in parts
    """
    total = unknown = in_parts = joined = 0
    by_subword_nmt = not has_model and kind_of(known) == "subword_nmt"
    for tokens in sentences:
        total += len(tokens)
        for token in tokens:
            joined += token.endswith(JOINER)
            if token not in known:
                unknown += 1
                in_parts += by_subword_nmt and _has_parts(token, known)
    if by_subword_nmt and not joined and 20 * in_parts > total:
        raise KDPluginError(
            f"{in_parts:,} of {total:,} words of the text are not in the model's dictionary, which has them in parts "
            f"({JOINER}): the text is not segmented. Remedy: segment it with subword-nmt like the training data"
        )
    if 2 * unknown > total:
        found = f"{unknown:,} of {total:,} symbols of the text are not in the model's dictionary"
        if total >= 20:
            remedy = "text in the source language, prepared like the training data"
            if not has_model:
                remedy = "--sentencepiece-model with the training data's model, or text that is already segmented"
            raise KDPluginError(
                f"{found}: it is {'in another language or script' if has_model else 'segmented differently'}. "
                f"Remedy: {remedy}"
            )
        print(f"kd-plugin: warning: {found}; the model reads <unk> there", file=sys.stderr)


def _has_parts(word: str, known: Collection[str]) -> bool:
    """Whether subword-nmt would have split this unknown word."""
    return all(c + JOINER in known for c in word[:-1]) and word[-1] in known and len(word) > 1
