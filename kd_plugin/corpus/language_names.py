"""English names of languages, by code."""

import re
from typing import Optional

from kd_plugin.errors import KDPluginError

NO_LANGUAGE = ("mul", "und", "zxx")  # codes for several, for an unknown one, and for none


def english_name(code: str) -> Optional[str]:
    """The name for a code as in `corpus.languages`: German for de, deu_Latn and de_DE; Simplified Chinese for zho_Hans.

    The names, and which script a language is written in unless its code says otherwise, are those of the Unicode
    Common Locale Data Repository (https://cldr.unicode.org).

    Returns:
        None: no such language is known

    Raises:
        KDPluginError: Babel, which has the names, is not installed
    """
    try:
        from babel import Locale
        from babel.core import get_global
    except ImportError as error:
        raise KDPluginError(
            f"the name of language {code}: {error}. Remedy: pip install 'kd-plugin[http]', or --source-name and "
            "--target-name"
        ) from error
    language, *rest = re.split("[-_]", code)
    language = get_global("language_aliases").get(language.lower(), language.lower())
    script = next((part.title() for part in rest if re.fullmatch("[A-Za-z]{4}", part)), None)
    territory = next((part.upper() for part in rest if re.fullmatch("[A-Za-z]{2}|[0-9]{3}", part)), None)
    english = Locale("en")
    names, likely = english.languages, get_global("likely_subtags")
    usual = likely.get(language, "").split("_")
    if script is None and territory is not None:  # zh_TW uses another script than zh
        script = next((part for part in likely.get(f"{language}_{territory}", "").split("_") if len(part) == 4), None)
    name = names.get(f"{language}_{territory}") or (script and names.get(f"{language}_{script}"))
    if name:
        return str(name)
    if language not in names or language in NO_LANGUAGE:
        return None
    if script is None or script in usual or script not in english.scripts:
        return str(names[language])
    return f"{names[language]} in {english.scripts[script]} script"
