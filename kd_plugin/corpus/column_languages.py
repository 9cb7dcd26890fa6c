"""Other names of a language code: its ISO 639 codes, and the language's name in English or in itself."""

import re

from kd_plugin.corpus.languages import may_be_the_same

# the most common languages: ISO 639 codes, then names
_LANGUAGES = """
ar ara arabic|bg bul bulgarian|bn ben bengali bangla|ca cat catalan català|cs ces cze czech čeština
da dan danish dansk|de deu ger german deutsch|el ell gre greek ελληνικά|en eng english|es spa spanish español
et est estonian eesti|fa fas per persian farsi|fi fin finnish suomi|fr fra fre french français
gu guj gujarati|ha hau hausa|he heb hebrew|hi hin hindi|hr hrv croatian hrvatski|hu hun hungarian magyar
id ind indonesian|is isl ice icelandic|it ita italian italiano|ja jpn japanese 日本語|ko kor korean 한국어
lt lit lithuanian|lv lav latvian|mr mar marathi|ms msa may malay|nl nld dut dutch nederlands
no nor nb nob norwegian norsk|pl pol polish polski|pt por portuguese português|ro ron rum romanian română
ru rus russian русский|sk slk slo slovak|sl slv slovenian slovene|sr srp serbian|sv swe swedish svenska
sw swa swahili|ta tam tamil|te tel telugu|th tha thai|tr tur turkish türkçe|uk ukr ukrainian українська
ur urd urdu|vi vie vietnamese|zh zho chi cmn chinese 中文
"""
NAMED = {name: names.split()[0] for names in re.split("[|\n]", _LANGUAGES) for name in names.split()}


def language_of(name: str) -> str:
    """The two-letter code for any name of a common language; for other names, their first part."""
    first = re.split(r"[\W_]", name.strip().lower())[0]
    return NAMED.get(first, first)


def other_language(said: str, expected: str) -> bool:
    """Whether a code or name cannot mean the expected language."""
    one, other = language_of(said), language_of(expected)
    if one in NAMED and other in NAMED:
        return one != other
    return bool(one) and not may_be_the_same(said.strip(), expected)
