"""Which answers of a language model are translations. All others are rejected, and counted by reason."""

import re
from typing import NamedTuple, Optional, Sequence, Tuple

from kd_plugin.corpus.languages import amount
from kd_plugin.corpus.scripts import is_written_in
from kd_plugin.files.json_text import SURROGATE

EMPTY, REFUSED, CUT_OFF = "empty_answers", "refused_answers", "cut_off_answers"
SEVERAL_LINES, OVERLONG = "answers_of_several_lines", "overlong_answers"
OTHER_SCRIPT, BROKEN = "answers_in_another_script", "broken_answers"
REASONS = (EMPTY, REFUSED, CUT_OFF, SEVERAL_LINES, OVERLONG, OTHER_SCRIPT, BROKEN)
# lines without any answer: too long for the server, rejected by it for another reason, or persistent faults
TOO_LONG, REJECTED, FAILED = "too_long_lines", "rejected_lines", "failed_lines"

SHORTEST_AMOUNT = 2.0  # words: for a shorter source, character counts say too little
SCRIPT_SHARE = 0.5  # of the letters, as in kd-plugin filter --script-share
# control characters except the tab, and replacement characters for invalid UTF-8
_BROKEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff]")
THOUGHTS = "<think>"
_THOUGHTS = re.compile(rf"\s*{THOUGHTS}.*?</think>", re.DOTALL)
# Refusals to translate in English, which models use whatever the target language.
_REFUSAL = re.compile(
    r"(?:(?:i['’]?m|i am|we['’]?re|we are) (?:so |very |really )?sorry|(?:i |my )?apolog[a-z]+|sorry|unfortunately)?"
    r"[\s,.;:!–—-]*(?:but |however,? )?"
    r"(?:(?:as|being) an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|i(?: can(?:no|['’]?)t| could(?: not|n['’]?t)|(?:['’]m| am) (?:not able to|unable to)| won['’]?t"
    r"| do(?: not|n['’]?t) feel comfortable)"
    r"(?: be able to)? (?:assist|help|translat|provid|fulfil|comply|complet|process|continu|engag|generat|produc"
    r"|creat|do (?:that|this)|with)[a-z]*)",
    re.IGNORECASE,
)
_SPEAKS_OF_ITSELF = re.compile(
    r"\b(?:as an ai|language model|translat\w*|your request|this request|guidelines)\b", re.I
)
AGREEMENT = 2.0  # ratio of lengths: a translation is rarely twice as long as its source, or half as long


class Choice(NamedTuple):
    """One answer from a server.

    finish: why it ends: stop, length or refusal
    logprob: mean log-probability of its tokens; None: unknown
    """

    text: str
    finish: str
    logprob: Optional[float] = None


class Rules(NamedTuple):
    """What the flags require of answers.

    scripts: the expected scripts; empty: any
    target_lang: the target language's code
    """

    max_ratio: float
    scripts: Sequence[str] = ()
    target_lang: str = ""

    @property
    def into_english(self) -> bool:
        """Whether a translation may itself begin like a refusal."""
        return re.split("[^a-z]", self.target_lang.lower())[0] in ("en", "eng")


def translation_in(choice: Choice) -> Tuple[str, Optional[float]]:
    """The text without surrounding blanks and without the model's thoughts before it, and the score.

    The mean log-probability includes the thoughts, so an answer with thoughts has no score.
    """
    found = _THOUGHTS.match(choice.text)
    if found is None:
        return choice.text.strip(), choice.logprob
    return choice.text[found.end() :].strip(), None


def fault_of(choice: Choice, source: str, rules: Rules) -> Optional[str]:
    """The first of REASONS to reject an answer; None: it is a translation."""
    if choice.finish == "refusal":
        return REFUSED
    if choice.finish == "length":
        return CUT_OFF
    text, _ = translation_in(choice)
    if not text or text.startswith(THOUGHTS):  # the thoughts never end
        return EMPTY
    if _BROKEN.search(text) or SURROGATE.search(text):
        return BROKEN
    if is_refusal(text, source, rules.into_english):
        return REFUSED
    if "\n" in text or "\r" in text:
        return SEVERAL_LINES
    if _ratio(text, source) > rules.max_ratio:
        return OVERLONG
    if rules.scripts and not is_written_in(filter(str.isalpha, text), rules.scripts, SCRIPT_SHARE):
        return OTHER_SCRIPT
    return None


def is_refusal(text: str, source: str, into_english: bool) -> bool:
    """Whether a model says that it will not translate, instead of translating.

    The answer begins like a refusal in English, and its source does not. If the target language is English, in addition
    either the lengths disagree or the answer mentions language models, translating or requests: "I cannot help you." is
    accepted for "Ich kann dir nicht helfen."
    """
    if _REFUSAL.match(text) is None or _REFUSAL.match(source.strip()) is not None:
        return False
    if not into_english:
        return True
    ratio = _ratio(text, source)
    return not 1 / AGREEMENT <= ratio <= AGREEMENT or _SPEAKS_OF_ITSELF.search(text) is not None


def _ratio(text: str, source: str) -> float:
    lengths = [max(SHORTEST_AMOUNT, amount("".join(side.split()))) for side in (text, source)]
    return lengths[0] / lengths[1]
