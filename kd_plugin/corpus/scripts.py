"""The scripts of letters, from Unicode character names."""

import functools
import sys
import unicodedata
from typing import FrozenSet, Iterable, Sequence

from kd_plugin.errors import KDPluginError

_SCRIPT_OF_NAME = {"IDEOGRAPHIC": "CJK", "KATAKANA-HIRAGANA": "KATAKANA"}  # 々, ー


@functools.lru_cache(maxsize=None)
def script_of(letter: str) -> str:
    """The first word of a character's Unicode name: LATIN, CYRILLIC, CJK; FULLWIDTH LATIN is Latin, 々 is CJK."""
    words = unicodedata.name(letter, "UNKNOWN").split()
    if words[0] in _SCRIPT_OF_NAME:
        return _SCRIPT_OF_NAME[words[0]]
    return words[1] if words[0] in ("FULLWIDTH", "HALFWIDTH") and len(words) > 1 else words[0]


def is_written_in(letters: Iterable[str], scripts: Sequence[str], share: float) -> bool:
    """Whether at least this share of the letters belongs to the scripts; true without letters."""
    found = [script_of(letter) in scripts for letter in letters]
    return sum(found) >= share * len(found)


def check_scripts(flag: str, names: Iterable[str]) -> None:
    """Refuse names that are not the script of any letter."""
    for name in names:
        if name not in _known():
            raise KDPluginError(
                f"{flag} {name}: no letters in Unicode {unicodedata.unidata_version} have that name. Remedy: use the "
                "first word of their names, such as LATIN, CYRILLIC, ARABIC, CJK, HIRAGANA, HANGUL"
            )


@functools.lru_cache(maxsize=None)
def _known() -> FrozenSet[str]:
    return frozenset(script_of(chr(code)) for code in range(sys.maxunicode + 1) if chr(code).isalpha())
