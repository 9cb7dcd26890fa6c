"""Whether text, subwords and a model's dictionaries belong together: looked at before anything is translated."""

import re
import sys
from typing import Collection, Iterable, List, Optional, Sequence

from kd_plugin.errors import KDPluginError

SPACE, JOINER = "\u2581", "@@"
KIND_SHARE = 0.01  # of a dictionary's symbols: half of sentencepiece's have ▁, in Chinese a few of a hundred
# Of a dictionary's symbols may be no pieces. All are in what the right model has written (measured: 0 of 8,000). A
# model of the same kind and size from other lines of the same corpus lacks 17 %, one of twice the size 0.8 to 1.8 %,
# one of 3,900 instead of 4,000 pieces 4.5 %. A few placeholders that somebody has added are no sign of another model,
# beginnings of words (with ▁) are.
WRONG_SHARE, WRONG_BEGINNINGS, ALLOWED = 0.005, 0.001, 1
MUST_BE_USED, FIRST_SHARE = 0.96, 0.96
# what fairseq and its users add to a dictionary beside text: <pad>, <2de>, __de__, [de_DE], >>deu<<, madeupword0001
ADDED = re.compile(r"<.*>|__\w+__|\[\w+\]|>>.*<<|[a-z]{2,3}_[A-Z]\w{1,3}|(madeupword|unused)\d+", re.DOTALL)
SHOWN = 5


class Marks:
    """How many raw lines look segmented: nobody writes ▁ or @@ into every line."""

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
    """Which tool has made a dictionary's symbols, by fairseq's name; None: whole words or characters."""
    # alone it is a space between characters too (fairseq's --bpe characters)
    spaced = sum(SPACE in symbol and len(symbol) > 1 for symbol in symbols)
    joined = sum(symbol.endswith(JOINER) for symbol in symbols)
    if max(spaced, joined) < KIND_SHARE * len(symbols) or not spaced + joined:
        return None
    return "sentencepiece" if spaced >= joined else "subword_nmt"


def check_model(model: str, pieces: Collection[str], symbols: Collection[str], what: str) -> None:
    """Refuse a sentencepiece model of which a dictionary's symbols are no pieces.

    Args:
        model, what: name the model and the dictionary, for errors

    Raises:
        KDPluginError: more than WRONG_SHARE of the symbols, or WRONG_BEGINNINGS with ▁
    """
    regular = [symbol for symbol in symbols if not ADDED.fullmatch(symbol)]
    missing = [symbol for symbol in regular if symbol not in pieces]
    if _is_of_words(pieces):
        # such a model writes every other word as it is: in the dictionary they are no pieces, but words
        missing = [symbol for symbol in regular if SPACE not in symbol]
    else:
        missing = _without_unknown_characters(missing, pieces, len(regular))
    beginnings = sum(SPACE in symbol for symbol in missing)
    wrong, wrong_beginnings = (max(ALLOWED, share * len(regular)) for share in (WRONG_SHARE, WRONG_BEGINNINGS))
    if len(missing) > wrong or beginnings > wrong_beginnings:
        if SPACE not in "".join(regular):
            raise KDPluginError(
                f"{model}: no symbol of {what} has sentencepiece's {SPACE}: its text was not segmented with this "
                f"model ({_some(missing)}). Remedy: leave the model out, and give text as the training data had it "
                "(whole words, or segmented with subword-nmt) with the --remove-bpe that fits"
            )
        raise KDPluginError(
            f"{model}: is not the one that the translation model's text was segmented with: {len(missing):,} of "
            f"{len(regular):,} symbols of {what} are no pieces of it ({_some(missing)}). Remedy: the .model file of "
            "the training data; where source and target have their own, --source-sentencepiece-model and "
            "--target-sentencepiece-model"
        )


def check_size(model: str, merges: Sequence[str], symbols: Collection[str], what: str) -> None:
    """Refuse a BPE model with more merges than the one that the text was segmented with.

    A larger model learns the same merges first: no symbol of the dictionary tells them apart, but what was learned
    later is in the text from now on and was never in the training data. Measured, with symbols of a model of 4,000
    pieces: of as many merges 98.8 % are in use, and none of the later ones. Where a corpus is small, of fewer languages
    than the model, or rare symbols were left out, 34 to 92 % are.

    Args:
        merges: the model's pieces of several characters, as they were learned
        symbols: of all dictionaries that hold its pieces

    Raises:
        KDPluginError: the symbols in use are the first ones, and then there are others
    """
    known = frozenset(symbols)
    used = [merge in known for merge in merges]
    first = used[: sum(used)]
    if sum(used) < MUST_BE_USED * len(used) and sum(first) > FIRST_SHARE * len(first):
        raise KDPluginError(
            f"{model}: is larger than the one that the translation model's text was segmented with: the last "
            f"{len(used) - len(first):,} of its {len(used):,} merges are not in {what} "
            f"({_some([merge for merge, is_used in zip(merges, used) if not is_used][-SHOWN:])}). Remedy: the .model "
            "file of the training data"
        )


def _without_unknown_characters(missing: List[str], pieces: Collection[str], of: int) -> List[str]:
    """A model leaves characters that it does not know as they are: such symbols say nothing against it."""
    known = {piece for piece in pieces if len(piece) == 1}
    left = [symbol for symbol in missing if SPACE in symbol or not known.isdisjoint(symbol)]
    # but not the whole script
    return left if 2 * (len(missing) - len(left)) < of else missing


def _is_of_words(pieces: Collection[str]) -> bool:
    """Whether it is a model of whole words (--model_type word)."""
    regular = [piece for piece in pieces if not ADDED.fullmatch(piece)]
    return bool(regular) and all(piece.startswith(SPACE) or piece.endswith(SPACE) for piece in regular)


def _some(symbols: List[str]) -> str:
    return ", ".join(symbols[:SHOWN]) + (", …" if len(symbols) > SHOWN else "")


def check_joining(symbol: str, symbols: Collection[str], what: str) -> None:
    """Refuse to put text together that another tool has segmented.

    Args:
        symbol: --remove-bpe
        what: names the dictionary, for errors
    """
    kind = kind_of(symbols)
    if symbol == "sentencepiece" and (kind == "subword_nmt" or not any(SPACE in one for one in symbols)):
        raise KDPluginError(
            f"--remove-bpe sentencepiece: no symbol of {what} has sentencepiece's {SPACE}. "
            "Remedy: --remove-bpe subword_nmt (@@), or none for whole words"
        )
    if symbol == "subword_nmt" and kind == "sentencepiece":
        raise KDPluginError(
            f"--remove-bpe subword_nmt: {what} is one of sentencepiece ({SPACE}). Remedy: --sentencepiece-model FILE "
            "for raw text, or --remove-bpe sentencepiece for text that is segmented already"
        )


def check_text(marks: Marks, has_model: bool, symbols: Collection[str], name: str) -> None:
    """Refuse raw text for a dictionary of subwords, and segmented text for a sentencepiece model, of any size.

    Args:
        has_model: whether a sentencepiece model segments it
        name: of the text, for errors
    """
    if has_model:
        found = max(marks.spaced, marks.joined)
        if 2 * found > marks.lines:
            mark = SPACE if found == marks.spaced else JOINER
            raise KDPluginError(
                f"{name}: {found:,} of {marks.lines:,} lines hold {mark}: it is segmented already. Remedy: raw text, "
                "or no sentencepiece model"
            )
    elif marks.lines and 2 * marks.spaced <= marks.lines and kind_of(symbols) == "sentencepiece":
        raise KDPluginError(
            f"{name}: is raw text ({marks.lines - marks.spaced:,} of {marks.lines:,} lines without {SPACE}), and the "
            "model's dictionary is one of sentencepiece. Remedy: --sentencepiece-model with the training data's, or "
            "text that is segmented already"
        )


def check_known(sentences: Iterable[List[str]], known: Collection[str], has_model: bool = False) -> None:
    """Refuse text of which most symbols are unknown: it is segmented otherwise than the model's training data.

    Args:
        known: symbols of the dictionary
        has_model: whether a sentencepiece model has segmented it

    Raises:
        KDPluginError: more than half of at least 20 symbols; or whole words, and the dictionary has them in parts
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
            f"({JOINER}): it is not segmented. Remedy: text that subword-nmt has segmented as the training data's were"
        )
    if 2 * unknown > total:
        found = f"{unknown:,} of {total:,} symbols of the text are not in the model's dictionary"
        if total >= 20:
            remedy = "text of the source language, prepared as the training data's were"
            if not has_model:
                remedy = "--sentencepiece-model with the training data's, or text that is segmented already"
            raise KDPluginError(
                f"{found}: it is {'in another language or script' if has_model else 'segmented otherwise'}. "
                f"Remedy: {remedy}"
            )
        print(f"kd-plugin: warning: {found}; the model reads <unk> there", file=sys.stderr)


def _has_parts(word: str, known: Collection[str]) -> bool:
    """Whether subword-nmt would have split a word that it does not know."""
    return all(c + JOINER in known for c in word[:-1]) and word[-1] in known and len(word) > 1
