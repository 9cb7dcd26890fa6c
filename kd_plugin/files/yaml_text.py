"""Reads a user's YAML in which every value is text, as the command's flags take it, and says what is wrong where."""

import difflib
from pathlib import Path
from typing import Any, Dict, Iterable

import yaml

from kd_plugin.errors import KDPluginError


class Mapping(Dict[str, Any]):
    """A mapping of the file. lines: where each key stands, from 1"""

    lines: Dict[str, int]


def wrong(path: str, what: str, remedy: str) -> KDPluginError:
    return KDPluginError(f"{path}: {what}. Remedy: {remedy}")


def check_keys(path: str, mapping: Dict[str, Any], names: Iterable[str], where: str) -> None:
    """
    Args:
        where: the mapping's place, for the error: "at the top", "of `halving`"

    Raises:
        KDPluginError: a key is not among `names`; the nearest one is named first
    """
    known = list(names)
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            others = ", ".join(known)
            lines = getattr(mapping, "lines", {})
            at = f", line {lines[key]}" if key in lines else ""
            raise wrong(path + at, f"unknown key `{key}` {where}", f"`{near[0]}`? All: {others}" if near else others)


def read_yaml(path: str, flag: str, example: str) -> Any:
    """The content: mappings, lists and text.

    Args:
        flag: that names the file, for errors
        example: what the file should look like, for errors

    Raises:
        KDPluginError: the file cannot be read or is not YAML, or a key occurs twice
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Strings)  # noqa: S506  a safe loader
    except OSError as error:
        raise KDPluginError(f"{flag} {path}: {error.strerror}. Remedy: the path of a YAML file") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise KDPluginError(f"{flag} {path}: not valid YAML ({reason}). Remedy: {example}") from error


def read_settings(path: str, known: Iterable[str], required: Iterable[str], example: str) -> Dict[str, Any]:
    """read_yaml of a command's CONFIG, a mapping.

    Raises:
        KDPluginError: also if a key is not among `known`, or a `required` one is missing or empty
    """
    content = read_yaml(path, "CONFIG", example)
    if not isinstance(content, dict):
        raise wrong(path, "it is not a mapping", example)
    check_keys(path, content, known, "at the top")
    for key in required:
        if not content.get(key):
            raise wrong(path, f"`{key}:` is missing or empty", example)
    return content


class _Strings(yaml.BaseLoader):
    """Reads every scalar as text, because YAML's `no` (Norwegian) is false; refuses a key that occurs twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Dict[str, Any]:
        pairs = [(self.construct_object(key, deep=True), value) for key, value in node.value]
        mapping = Mapping()
        mapping.lines = {str(name): key.start_mark.line + 1 for (name, _), (key, _) in zip(pairs, node.value)}
        names = [key for key, _ in pairs]
        for key in names:
            if not isinstance(key, str) or names.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice or is not text", node.start_mark
                )
        mapping.update((key, self.construct_object(value, deep=True)) for key, value in pairs)
        return mapping


def _construct(loader: _Strings, node: Any) -> Dict[str, Any]:
    return loader.construct_mapping(node)


_Strings.add_constructor("tag:yaml.org,2002:map", _construct)
