"""The prompt for a server: a template with the sentence and the languages filled in, preceded by examples."""

import string
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.corpus.language_names import english_name
from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.decoding.http.options import HttpOptions
from kd_plugin.errors import KDPluginError

SOURCE, SOURCE_LANG, TARGET_LANG = "source", "source_lang", "target_lang"
PLACEHOLDERS = (SOURCE, SOURCE_LANG, TARGET_LANG)
DEFAULTS = {
    "chat": "Translate this sentence from {source_lang} to {target_lang}. Answer with the translation alone, in one "
    "line, without comments.\n\n{source}",
    # a model without instruction tuning continues the text
    "completions": "{source_lang}: {source}\n{target_lang}:",
}

Part = Tuple[str, Optional[str]]  # text, and the placeholder after it


class Prompt(NamedTuple):
    """A template ready to be filled in.

    Args:
        text: the template as the user wrote it
        parts: the parsed template
        examples: (source, translation) pairs, in order
        names: the languages' names, by placeholder
    """

    text: str
    parts: List[Part]
    examples: List[Tuple[str, str]]
    names: Dict[str, str]

    def identity(self) -> Dict[str, Any]:
        """All that determines the request for a sentence."""
        return {"template": self.text, "examples": self.examples, "names": self.names}

    def fill(self, source: str) -> str:
        """The template with a sentence filled in; braces in the sentence have no meaning."""
        values = {**self.names, SOURCE: source.strip()}
        return "".join(text + ("" if name is None else values[name]) for text, name in self.parts)

    def messages(self, source: str) -> List[Dict[str, str]]:
        """A conversation: each example is a question and its answer."""
        turns = [
            turn for asked, answer in self.examples for turn in (("user", self.fill(asked)), ("assistant", answer))
        ]
        return [{"role": role, "content": text} for role, text in (*turns, ("user", self.fill(source)))]

    def completion(self, source: str) -> str:
        """One text to continue, in which each example is a paragraph."""
        paragraphs = []
        for asked, answer in self.examples:
            text = self.fill(asked)
            paragraphs.append(f"{text}{'' if text[-1:].isspace() else ' '}{answer}\n\n")
        return "".join(paragraphs) + self.fill(source)


def open_prompt(options: HttpOptions, languages: Sequence[str]) -> Prompt:
    """The prompt that the flags ask for.

    Raises:
        KDPluginError: a file cannot be read, a placeholder is unknown, or a language has no name
    """
    where, text = "--prompt", DEFAULTS[options.api]
    if options.prompt is not None:
        where = f"--prompt {options.prompt}"
        text = "\n".join(line for _, line in numbered_lines(Path(options.prompt), "--prompt")).strip("\n")
    parts = parse(text, where)
    used = {name for _, name in parts}
    names = {}
    for place, code, side, given in (
        (SOURCE_LANG, languages[0], "source", options.source_name),
        (TARGET_LANG, languages[1], "target", options.target_name),
    ):
        if place in used:
            names[place] = given or _name(code, side)
        elif given is not None:
            raise KDPluginError(f"--{side}-name: {where} has no {{{place}}}. Remedy: add it there, or omit the flag")
    return Prompt(text, parts, [] if options.few_shot is None else read_examples(options.few_shot), names)


def parse(text: str, where: str) -> List[Part]:
    """The parts of a template. Literal braces are doubled, as in Python's format strings.

    Args:
        where: the flag and file, for errors
    """
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    remedy = f"Remedy: use {known}; write other braces twice, {{{{ and }}}}"
    parts: List[Part] = []
    try:
        for literal, name, form, conversion in string.Formatter().parse(text):
            if name is not None and (name not in PLACEHOLDERS or form or conversion):
                shown = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
                raise KDPluginError(f"{where}: unknown placeholder {{{shown}}}. {remedy}")
            parts.append((literal, name))
    except ValueError as error:
        raise KDPluginError(f"{where}: {error}. {remedy}") from error
    if SOURCE not in (name for _, name in parts):
        raise KDPluginError(f"{where}: has no {{{SOURCE}}}, so the prompt would be the same for all. {remedy}")
    return parts


def read_examples(path: str) -> List[Tuple[str, str]]:
    """The pairs of a file with `source TAB translation` in each line."""
    pairs = []
    for number, line in numbered_lines(Path(path), "--few-shot", table=True):
        sides = [side.strip() for side in line.split("\t")]
        if len(sides) != 2 or not all(sides):
            raise KDPluginError(
                f"--few-shot {path}, line {number}: is not source TAB translation. Remedy: correct the line"
            )
        pairs.append((sides[0], sides[1]))
    if not pairs:
        raise KDPluginError(
            f"--few-shot {path}: is empty. Remedy: source TAB translation in each line, or omit --few-shot"
        )
    return pairs


def _name(code: str, side: str) -> str:
    name = english_name(code)
    if name is None:
        raise KDPluginError(
            f"--{side}-lang {code}: no language with this code is known, and the prompt needs its name. Remedy: "
            f"--{side}-name with the name to use in the prompt"
        )
    return name
