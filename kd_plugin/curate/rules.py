"""What `kd-plugin filter` drops. A rule is a function of a pair and the options (its flags, each an
attribute), and its row in RULES.

The rules are asked in the order of the table, cheap ones first; a translation is charged to the first that hits.
"""

import re
from typing import Any, Callable, Dict, FrozenSet, NamedTuple, Sequence, Tuple

import regex

from kd_plugin.corpus.scripts import is_written_in
from kd_plugin.curate.sentences import SHORTEST_LOOP, Pair, Side, has_loop

INFINITY = float("inf")
# all controls but the tab, what a decoder puts in the place of broken UTF-8, and what Unicode will never assign
BROKEN = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\ufffd\ufffe\uffff]")
# An unknown symbol as sentencepiece writes it: U+2047 between spaces, or its own sign for one (U+2581), and what
# punctuation a detokenizer has attached. What is attached to a word somebody has typed.
UNKNOWN_PIECE = regex.compile(
    r"(?<![^\s\u2581])(?:(?!\u2047)[\p{P}\p{Sm}\p{Sc}\p{Sk}])*+\u2047[\p{P}\p{Sm}\p{Sc}\p{Sk}]*+(?![^\s\u2581])"
)
# as fairseq, its references, Moses and BERT write it
UNKNOWN = re.compile(r"<unk>|&lt;unk&gt;|\[UNK\]", re.IGNORECASE)
# as tokenizers and translations leave it of those; or somebody's placeholder
UNKNOWN_IN_BRACKETS = re.compile(
    r"(?:[<\[{\u2039\u27e8\u2329\u3008\uff1c]|&lt;)\s*unk\s*(?:[>\]}\u203a\u27e9\u232a\u3009\uff1e]|&gt;)",
    re.IGNORECASE,
)
UNKNOWN_WORD = re.compile(r"(?<!\S)UNK(?!\S)")  # or an abbreviation
SHORTEST_AMOUNT = 2.0  # words: of less, characters tell too little (恭喜! is おめでとうございます!)


class Flag(NamedTuple):
    """An option of a rule.

    Args:
        default: decides the type; a bool is a switch
        low, high: the numbers allowed, both included
        old: a name that it had, and still answers to
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
        """In args and in a folder's identity, which a new name does not change."""
        return (self.old or self.name)[2:].replace("-", "_")


class Rule(NamedTuple):
    """drops: whether this pair has to go. mend: what to do where good translations go; else the flags are named"""

    drops: Callable[[Pair, Any], bool]
    flags: Tuple[Flag, ...] = ()
    mend: str = ""

    def remedy(self) -> str:
        return self.mend or " or ".join(flag.name for flag in self.flags) or "look at what is in the files"


def broken_characters(pair: Pair, options: Any) -> bool:
    return BROKEN.search(pair.hypothesis.text) is not None


def unknown_symbols(pair: Pair, options: Any) -> bool:
    """What the decoder or the binariser did not know, on either side; a bare UNK or {unk} where the source has none."""
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
    """The same but for case and blanks, or as many words shared as --copy-overlap says.

    Sentences without a letter (numbers, times) are the same in every language.
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

    In characters only letters count, and a loop has to be twice as long: 1,000,000, dots and Schifffahrt are none.
    """
    by_words = [side.counts_words(options.length_unit) for side in pair]
    if by_words[0] != by_words[1]:
        # what is a loop of words on one side is one of characters on the other
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
    """Other digits than the source's, in any order: 1,234.5 and 1.234,5 are the same."""
    return options.numbers and pair.source.digits != pair.hypothesis.digits


def foreign_script(pair: Pair, options: Any) -> bool:
    if not options.script:
        return False
    return not is_written_in(pair.hypothesis.letters, options.script.split(","), options.script_share)


RULES: Dict[str, Rule] = {
    "broken_characters": Rule(broken_characters, mend="the encoding of the text may be wrong: convert it (iconv)"),
    "unknown_symbols": Rule(
        unknown_symbols,
        (
            Flag(
                "--unknown-symbols",
                "drop",
                "pairs with <unk> or sentencepiece's \u2047 on either side, where a model or a dictionary did not know "
                "something",
                choices=("drop", "keep"),
            ),
        ),
    ),
    "length": Rule(
        length,
        (
            Flag("--min-length", 1, "of both sides", low=1),
            Flag("--max-length", 250, "of both sides, as in fairseq's recipes for WMT", low=1),
            Flag(
                "--length-unit",
                "auto",
                "auto: words, and of languages without spaces (by their codes: zh, ja, th, km, …) what their "
                "characters amount to in words; characters: without blanks, of both sides",
                choices=("auto", "words", "characters"),
            ),
        ),
        "--min-length, --max-length, or another --length-unit",
    ),
    "length_ratio": Rule(
        length_ratio,
        (
            # clean-corpus-n.perl: 9 where no -ratio is given, 1.5 (of subwords) in fairseq's recipes, which costs
            # short sentences and compounds when words are counted
            Flag("--max-length-ratio", 3.0, "the longer side's length over the shorter one's", low=1),
        ),
        "a larger --max-length-ratio, or --length-unit characters where the codes of the languages do not tell that "
        "there are no spaces between words",
    ),
    "few_letters": Rule(
        few_letters,
        (
            Flag(
                "--min-letters",
                0.5,
                "share of letters and digits among the characters, as a part of the source's share",
                high=1,
            ),
        ),
    ),
    "copied_source": Rule(
        copied_source,
        (
            # students learn to copy from few of them: Khayrallah & Koehn 2018; half of the words: Ott et al. 2018
            Flag("--copied-source", "drop", "translations that are their source again", choices=("drop", "keep")),
            Flag("--copy-overlap", 0.5, "words of both sides over words of either: from here on it is a copy", high=1),
        ),
    ),
    "repetition": Rule(
        repetition,
        (
            Flag(
                "--max-repeats",
                3,
                "an n-gram (1 to 4 words) that comes so often in a row is a loop; in characters twice as often; inside "
                f"a word letters that do so, at least 3 times and {SHORTEST_LOOP} letters long",
                low=2,
            ),
        ),
    ),
    "numbers": Rule(numbers, (Flag("--numbers", False, "drop translations with other digits than the source"),)),
    "foreign_script": Rule(
        foreign_script,
        (
            Flag("--script", "", "NAME[,NAME…]: scripts of the target language, as Unicode calls them: LATIN, CJK"),
            Flag("--script-share", 0.5, "of a translation's letters that must be in one of them", high=1),
        ),
    ),
}
