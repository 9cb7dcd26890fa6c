"""The rules of `kd-plugin filter`. A rule is a function of a pair and the options (its flags, each an attribute), and a
row in RULES.

Rules run in the order of the table, cheap ones first; a translation counts for the first rule that drops it.
"""

import re
from typing import Any, Callable, Dict, FrozenSet, NamedTuple, Sequence, Tuple

import regex

from kd_plugin.corpus.scripts import is_written_in
from kd_plugin.curate.sentences import SHORTEST_LOOP, Pair, Side, has_loop

INFINITY = float("inf")
# control characters except tab, the replacement character for broken UTF-8, and Unicode noncharacters
BROKEN = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\ufffd\ufffe\uffff]")
# An unknown symbol as sentencepiece writes it: U+2047 between spaces or its own space sign (U+2581), possibly with
# punctuation attached by a detokenizer. If it is attached to a word, somebody has typed it.
UNKNOWN_PIECE = regex.compile(
    r"(?<![^\s\u2581])(?:(?!\u2047)[\p{P}\p{Sm}\p{Sc}\p{Sk}])*+\u2047[\p{P}\p{Sm}\p{Sc}\p{Sk}]*+(?![^\s\u2581])"
)
# as written by fairseq, in fairseq's references, by Moses and by BERT
UNKNOWN = re.compile(r"<unk>|&lt;unk&gt;|\[UNK\]", re.IGNORECASE)
# the same, altered by tokenizers and translation; or a placeholder in the text
UNKNOWN_IN_BRACKETS = re.compile(
    r"(?:[<\[{\u2039\u27e8\u2329\u3008\uff1c]|&lt;)\s*unk\s*(?:[>\]}\u203a\u27e9\u232a\u3009\uff1e]|&gt;)",
    re.IGNORECASE,
)
UNKNOWN_WORD = re.compile(r"(?<!\S)UNK(?!\S)")  # may also be an abbreviation
SHORTEST_AMOUNT = 2.0  # words: below this, the estimate from characters is unreliable (恭喜! is おめでとうございます!)


class Flag(NamedTuple):
    """An option of a rule.

    Args:
        default: also determines the type; a bool is a switch
        low, high: the allowed range, inclusive
        old: a former name that still works
    """

    name: str
    default: Any
    help: str
    low: float = 0.0
    high: float = INFINITY
    choices: Tuple[str, ...] = ()
    old: str = ""

    @property
    def dest(self) -> str:
        """The name in args and in a folder's identity, which stays the same if the flag is renamed."""
        return (self.old or self.name)[2:].replace("-", "_")

    @property
    def metavar(self) -> str:
        """Its value, for the help text."""
        if self.high == 1:
            return "SHARE"
        return {int: "N", str: "NAME[,NAME…]"}.get(type(self.default), "X")


class Rule(NamedTuple):
    """A rule. drops: whether it drops a pair. mend: the remedy if it drops good ones; default: its flags' names"""

    drops: Callable[[Pair, Any], bool]
    flags: Tuple[Flag, ...] = ()
    mend: str = ""

    def remedy(self) -> str:
        return self.mend or " or ".join(flag.name for flag in self.flags) or "check the content of the files"


def broken_characters(pair: Pair, options: Any) -> bool:
    return BROKEN.search(pair.hypothesis.text) is not None


def unknown_symbols(pair: Pair, options: Any) -> bool:
    """A decoder's or binariser's unknown symbol on either side, or a bare UNK or {unk} that is not in the source."""
    if options.unknown_symbols == "keep":
        return False
    source, hypothesis = pair.source.text, pair.hypothesis.text
    if any(UNKNOWN.search(text) or ("\u2047" in text and UNKNOWN_PIECE.search(text)) for text in (source, hypothesis)):
        return True
    if not _in_brackets(hypothesis) <= _in_brackets(source):
        return True
    return UNKNOWN_WORD.search(hypothesis) is not None and UNKNOWN_WORD.search(source) is None


def _in_brackets(text: str) -> FrozenSet[str]:
    return frozenset("".join(found[0].lower().split()) for found in UNKNOWN_IN_BRACKETS.finditer(text))


def length(pair: Pair, options: Any) -> bool:
    lengths = [side.length(options.length_unit) for side in pair]
    return min(lengths) < options.min_length or max(lengths) > options.max_length


def length_ratio(pair: Pair, options: Any) -> bool:
    if options.length_unit == "auto" and not all(side.spaced for side in pair):
        shorter, longer = sorted(max(SHORTEST_AMOUNT, side.amount) for side in pair)
    else:
        shorter, longer = sorted(float(max(1, side.length(options.length_unit))) for side in pair)
    return longer > options.max_length_ratio * shorter


def few_letters(pair: Pair, options: Any) -> bool:
    return pair.hypothesis.readable < options.min_letters * pair.source.readable


def copied_source(pair: Pair, options: Any) -> bool:
    """The same text except for case and blanks, or at least --copy-overlap of the words in common.

    Does not apply to sentences without letters (numbers, times), which are the same in every language.
    """
    if options.copied_source == "keep" or not pair.source.letters:
        return False
    source, hypothesis = pair.source.vocabulary, pair.hypothesis.vocabulary
    union = len(source | hypothesis)
    if union > 1 and len(source & hypothesis) >= options.copy_overlap * union:
        return True
    return pair.source.text.casefold().split() == pair.hypothesis.text.casefold().split()


def repetition(pair: Pair, options: Any) -> bool:
    """A loop of words, or of letters inside a word, unless the source has one too.

    With characters as the unit, only letters count, and a loop must be twice as long: 1,000,000, dots and Schifffahrt
    are not loops.
    """
    by_words = [side.counts_words(options.length_unit) for side in pair]
    if by_words[0] != by_words[1]:
        # a loop of words on one side corresponds to one of characters on the other
        return _any_loop(pair.hypothesis, by_words[1], options) and not (
            _any_loop(pair.source, by_words[0], options) or has_loop(pair.source.bare_words, options.max_repeats)
        )
    if pair.hypothesis.loops(options.max_repeats) and not pair.source.loops(options.max_repeats):
        return True
    if by_words[1]:
        return _new_loop(pair.hypothesis.words, pair.source.words, options.max_repeats)
    return _new_loop(pair.hypothesis.letters, pair.source.letters, 2 * options.max_repeats)


def _any_loop(side: Side, by_words: bool, options: Any) -> bool:
    units, times = (side.words, 1) if by_words else (side.letters, 2)
    return side.loops(options.max_repeats) or has_loop(units, times * options.max_repeats)


def _new_loop(hypothesis: Sequence[str], source: Sequence[str], times: int) -> bool:
    return has_loop(hypothesis, times) and not has_loop(source, times)


def numbers(pair: Pair, options: Any) -> bool:
    """Digits that differ from the source's, ignoring order: 1,234.5 and 1.234,5 are the same."""
    return options.numbers and pair.source.digits != pair.hypothesis.digits


def foreign_script(pair: Pair, options: Any) -> bool:
    if not options.script:
        return False
    return not is_written_in(pair.hypothesis.letters, options.script.split(","), options.script_share)


RULES: Dict[str, Rule] = {
    "broken_characters": Rule(broken_characters, mend="convert the text (iconv): its encoding may be wrong"),
    "unknown_symbols": Rule(
        unknown_symbols,
        (
            Flag(
                "--unknown-symbols",
                "drop",
                "what to do with pairs that have <unk> or sentencepiece's \u2047 on either side, because a model or "
                "dictionary lacked a symbol",
                choices=("drop", "keep"),
            ),
        ),
    ),
    "length": Rule(
        length,
        (
            Flag("--min-length", 1, "shortest length of either side", low=1),
            Flag("--max-length", 250, "longest length of either side, as in fairseq's recipes for WMT", low=1),
            Flag(
                "--length-unit",
                "auto",
                "auto: words, which in languages without spaces (known by their codes: zh, ja, th, km, …) are "
                "estimated from characters; characters: without blanks, on both sides",
                choices=("auto", "words", "characters"),
            ),
        ),
        "--min-length, --max-length, or another --length-unit",
    ),
    "length_ratio": Rule(
        length_ratio,
        (
            # clean-corpus-n.perl: default 9; 1.5 (in subwords) in fairseq's recipes, which in words would drop short
            # sentences and compounds
            Flag("--max-length-ratio", 3.0, "the longer side's length over the shorter one's", low=1),
        ),
        "a larger --max-length-ratio, or --length-unit characters if a language without spaces has an unknown code",
    ),
    "few_letters": Rule(
        few_letters,
        (
            Flag(
                "--min-letters",
                0.5,
                "smallest share of letters and digits among the characters, relative to the source's share",
                high=1,
            ),
        ),
    ),
    "copied_source": Rule(
        copied_source,
        (
            # even few copies teach a model to copy: Khayrallah & Koehn 2018; half of the words: Ott et al. 2018
            Flag("--copied-source", "drop", "what to do with copies of the source", choices=("drop", "keep")),
            Flag("--copy-overlap", 0.5, "the share of common words (both over either side) that makes a copy", high=1),
        ),
    ),
    "repetition": Rule(
        repetition,
        (
            Flag(
                "--max-repeats",
                3,
                "an n-gram (1 to 4 words) repeated this often in a row is a loop; with characters, twice as often; "
                f"inside a word, letters repeated this often, at least 3 times and over {SHORTEST_LOOP} letters",
                low=2,
            ),
        ),
    ),
    "numbers": Rule(numbers, (Flag("--numbers", False, "drop translations whose digits differ from the source's"),)),
    "foreign_script": Rule(
        foreign_script,
        (
            Flag("--script", "", "scripts of the target language, by Unicode names: LATIN, CJK"),
            Flag("--script-share", 0.5, "share of a translation's letters that must be in these scripts", high=1),
        ),
    ),
}
