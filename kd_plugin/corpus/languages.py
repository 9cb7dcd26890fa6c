"""What a language code implies: whether spaces separate words, sacreBLEU's tokenizer, and whether it can name a file.

Codes are ISO 639-1, -2 or -3, with or without script and country, in any case and with any separator: zh, zh_CN,
zh-Hans, cmn, zho_Hant (NLLB), JA_XX (mBART). Only languages written without spaces, and Korean, need special treatment,
so a small table suffices here, and a library of all languages is unnecessary.
"""

import itertools
import re
from typing import Dict, Iterable, NamedTuple, Optional, Pattern, Tuple

from sacrebleu.metrics import BLEU

from kd_plugin.errors import KDPluginError

# families of languages with the same writing system, named by one of them: codes and names, then scripts (ISO 15924)
_CODES = {
    "zh": "zh zho chi cmn yue wuu nan hak gan hsn lzh cjy cdo cpx czh czo mnp cnp csp cn zht zhs chs cht chinese "
    "mandarin cantonese",
    "ja": "ja jpn ojp ryu jp japanese",
    "ko": "ko kor okm korean",
    "th": "th tha nod sou tts thai",
    "lo": "lo lao",
    "km": "km khm khmer",
    "my": "my mya bur shn mnw ksw burmese",
    "bo": "bo bod tib dz dzo tibetan dzongkha",
}
_SCRIPTS = {
    "zh": "hans hant hani hanb bopo",
    "ja": "jpan hira kana hrkt",
    "ko": "kore hang",
    "th": "thai lana",
    "lo": "laoo",
    "km": "khmr",
    "my": "mymr",
    "bo": "tibt",
}
_OF_CODE = {code: family for family, codes in _CODES.items() for code in codes.split()}
_OF_SCRIPT = {script: family for family, scripts in _SCRIPTS.items() for script in scripts.split()}
_SPACED_SCRIPTS = frozenset(("latn", "cyrl", "arab", "deva"))  # zh_Latn is pinyin
WITHOUT_SPACES = frozenset(_CODES) - {"ko"}

# sacreBLEU's tokenizers, of which the first installed one is used; other languages without spaces: char
_TOKENIZERS = {"zh": ("zh",), "ja": ("ja-mecab", "char"), "ko": ("ko-mecab", "char")}

HAN = re.compile("[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
HANGUL = re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")
# non-blank characters that say as much as an English word, estimated from parallel text
CHARACTERS_OF_A_WORD = 5.0  # in alphabets; Thai, Khmer, Lao and Burmese are close to it
DENSE = ((HAN, 1.7), (KANA, 2.5), (HANGUL, 2.5))
_LETTERS: Dict[str, Pattern[str]] = {
    "zh": HAN,
    "ja": KANA,
    "th": re.compile("[\u0e01-\u0e4e]"),
    "lo": re.compile("[\u0e81-\u0ece\u0edc-\u0edf]"),
    "km": re.compile("[\u1780-\u17d3\u17d7]"),
    "my": re.compile("[\u1000-\u103f\u1050-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f]"),
    "bo": re.compile("[\u0f00-\u0f14\u0f40-\u0fbc]"),
}
KANA_OF_JAPANESE = 0.1  # lowest share of kana in Japanese letters; Chinese text has almost none
LINES_LOOKED_AT = 2000

_NAME = re.compile(r"\w[\w.@+-]*")
LONGEST_NAME = 64
RESERVED = ("scores", "jsonl", "json", "none")  # PREFIX.scores, shards and manifests; fairseq's name for no side


def family(code: Optional[str]) -> Optional[str]:
    """The family of a language that needs its own word segmentation; None if spaces separate its words, or no code."""
    parts = re.findall("[a-z]+", (code or "").lower())
    scripts = [part for part in parts[1:] if len(part) == 4]
    if not parts or any(script in _SPACED_SCRIPTS for script in scripts):
        return None
    of_script = next((_OF_SCRIPT[script] for script in scripts if script in _OF_SCRIPT), None)
    return _OF_CODE.get(parts[0], of_script)


def has_spaces(code: Optional[str]) -> bool:
    """Whether spaces separate this language's words; in Korean they do."""
    return family(code) not in WITHOUT_SPACES


def amount(text: str) -> float:
    """The amount of text in English words, estimated from its characters, to compare texts in any two scripts.

    Args:
        text: without blanks
    """
    if text.isascii():
        return len(text) / CHARACTERS_OF_A_WORD
    counts = [len(letters.findall(text)) for letters, _ in DENSE]
    dense = sum(count / size for count, (_, size) in zip(counts, DENSE))
    return dense + (len(text) - sum(counts)) / CHARACTERS_OF_A_WORD


def family_of_text(texts: Iterable[str]) -> Optional[str]:
    """The family without spaces that most letters of the first lines belong to; None: any other language."""
    found, total = dict.fromkeys(_LETTERS, 0), 0
    for text in itertools.islice(texts, LINES_LOOKED_AT):
        letters = "".join(filter(str.isalpha, text))
        total += len(letters)
        if not letters.isascii():
            for name, letter in _LETTERS.items():
                found[name] += len(letter.findall(letters))
    if 2 * sum(found.values()) <= total:
        return None
    if found["ja"] > KANA_OF_JAPANESE * (found["ja"] + found["zh"]):
        found["ja"] += found["zh"]
    return max(found, key=lambda name: found[name])


def may_be_the_same(one: str, other: str) -> bool:
    """Whether two codes can mean the same language: de and deu_Latn can, de and fr cannot."""
    if family(one) != family(other):
        return False
    first, second = (re.split("[^a-z]", code.lower())[0] for code in (one, other))
    return family(one) is not None or first == second or len(first) != len(second)


class Tokenizer(NamedTuple):
    """sacreBLEU's tokenizer for BLEU in a language.

    name: sacreBLEU's name; None: its default, 13a. family: from `family`. note: what a reader of the scores must know.
    doubtful: the scores may be worthless
    """

    name: Optional[str]
    family: Optional[str]
    note: str = ""
    doubtful: bool = False


SPACED = Tokenizer(None, None)


def bleu_tokenizer(language: Optional[str], references: Iterable[str] = ()) -> Tokenizer:
    """Chooses the tokenizer by the language's code or, without one, by the letters of the references.

    Args:
        language: the target language; None: not given
        references: to detect the language, and to warn if they contradict the code
    """
    known = family(language)
    found = known or family_of_text(references)
    if found is None:
        return SPACED
    name, missing = _installed(found)
    if language is not None and known is None:
        note = (
            f"the references look like {found!r}, which has no spaces between words, but the target language is "
            f"{language!r}: BLEU may be worthless. Remedy: --tokenize {name}, or the correct --target-lang"
        )
        return Tokenizer(None, None, note, True)
    note = f"BLEU with sacreBLEU's tokenizer {name}, because "
    note += f"the target language is {language}" if known else f"the references look like {found!r} (no language given)"
    if missing:
        note += f"; {missing} is not installed (pip install 'sacrebleu[{found}]')"
    return Tokenizer(name, found, note)


def _installed(found: str) -> Tuple[str, Optional[str]]:
    """The tokenizer to use, and a better one that is not installed, or None."""
    names = _TOKENIZERS.get(found, ("char",))
    for name in names[:-1]:
        if _works(name):
            return name, None
    return names[-1], names[0] if len(names) > 1 else None


def _works(name: str) -> bool:
    if name not in BLEU.TOKENIZERS:  # an older sacreBLEU
        return False
    try:
        BLEU(tokenize=name)
    except (ImportError, RuntimeError):  # sacreBLEU's errors for a missing package
        return False
    return True


def check_languages(
    source: Optional[str], target: Optional[str], *, where: Optional[str] = None, distinct: bool = True
) -> None:
    """Refuses languages that cannot be part of a file name.

    Args:
        source, target: None: not given
        where: the file that names them; None: the flags do
        distinct: whether files of both sides are told apart by the languages' names
    """
    for side, language in (("source", source), ("target", target)):
        if language is None:
            continue
        name = f"--{side}-lang {language!r}" if where is None else f"{where}: its {side} language {language!r}"
        if not _NAME.fullmatch(language) or len(language) > LONGEST_NAME:
            raise KDPluginError(f"{name} cannot be part of a file's name. Remedy: a code such as en, zh or zho_Hans")
        if language.lower() in RESERVED:
            raise KDPluginError(f"{name} is a reserved file ending. Remedy: a code such as en, zh or zho_Hans")
    if distinct and source is not None and target is not None and source.lower() == target.lower():
        name = f"--target-lang {target}" if where is None else f"{where}: its target language {target}"
        raise KDPluginError(
            f"{name} is also the source language. Remedy: two different names, since they end file names"
        )
