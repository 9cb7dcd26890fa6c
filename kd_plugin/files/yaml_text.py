"""Reads a user's YAML in which every value is text, as the command's flags take it, and says what is wrong where."""

import difflib
import re
from pathlib import Path
from typing import Any, Dict, Iterable, List, Tuple

import yaml

from kd_plugin.errors import KDPluginError

MOST_VALUES = 100_000  # aliases of aliases can stand for endlessly many
LONGEST = 500  # characters of a complaint
STANDARD = "tag:yaml.org,2002:"
PLAIN = [STANDARD + kind for kind in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")]
Pairs = List[Tuple[Any, Any]]


class Mapping(Dict[str, Any]):
    """A mapping of the file. lines: where each key stands, from 1"""

    lines: Dict[str, int]


def wrong(path: str, what: str, remedy: str) -> KDPluginError:
    if len(what) > LONGEST:
        what = f"{what[: LONGEST // 2]}…{what[-LONGEST // 2 :]}"
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
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}" if mark else ""
        said = error.problem or error.context or ""
        reason = f"{error.context}: {said}" if error.context and error.problem else said
        remedy = "spaces instead of the tab" if "'\\t'" in reason else example
        raise wrong(f"{flag} {path}{at}", f"not valid YAML ({reason})", remedy) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise wrong(f"{flag} {path}", f"not valid YAML ({' '.join(str(error).split())})", example) from error


def read_settings(path: str, known: Iterable[str], required: Iterable[str], example: str) -> Dict[str, Any]:
    """read_yaml of a command's CONFIG, a mapping.

    Raises:
        KDPluginError: also if a key is not among `known`, or a `required` one is missing or empty
    """
    content = read_yaml(path, "CONFIG", example)
    if not isinstance(content, dict):
        raise wrong(path, "it is not a mapping" if content else "it is empty", example)
    check_keys(path, content, known, "at the top")
    for key in required:
        if not content.get(key):
            raise wrong(path, f"`{key}:` is missing or empty", example)
    return content


class _Strings(yaml.BaseLoader):
    """Reads every scalar as text, because YAML's `no` (Norwegian) is false; refuses a key that occurs twice."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _check(node, {})
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Dict[str, Any]:
        own, merged = _pairs(node)
        mapping = Mapping()
        mapping.lines = {}
        for key, value in [*own, *merged]:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise _error("a key is no text", key)
            if name not in mapping:
                mapping.lines[name] = key.start_mark.line + 1
                mapping[name] = self.construct_object(value, deep=True)
            elif (key, value) in own:
                raise _error(f"the key '{name}' occurs twice, first in line {mapping.lines[name]}", key)
        return mapping


def _error(what: str, node: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def _check(node: Any, sizes: Dict[Any, int]) -> int:
    """How many values it stands for, with aliases written out.

    Raises:
        ConstructorError: too many, or a tag other than those of text, lists and mappings, which would be ignored
    """
    if node in sizes:
        return sizes[node]  # 0 of one that contains itself, which is refused when it is constructed
    sizes[node] = 0
    if node.tag not in PLAIN:
        raise _error(f"the tag {node.tag.replace(STANDARD, '!!')} is not known here", node)
    if isinstance(node, yaml.ScalarNode) and re.search("[\0\ud800-\udfff]", node.value):
        raise _error("an escape for NUL or for half a character, which no file name or argument can have", node)
    parts = [] if isinstance(node, yaml.ScalarNode) else node.value
    inner = [each for part in parts for each in (part if isinstance(part, tuple) else [part])]
    sizes[node] = 1 + sum(_check(each, sizes) for each in inner)
    if sizes[node] > MOST_VALUES:
        raise _error(f"more than {MOST_VALUES:,} values, with aliases written out", node)
    return sizes[node]


def _pairs(node: Any) -> Tuple[Pairs, Pairs]:
    """Its own keys and values, and those that `<<` takes from other mappings."""
    own: Pairs = []
    merged: Pairs = []
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value == "<<" and key.style is None:
            for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(other, yaml.MappingNode):
                    raise _error("`<<` takes the keys of another mapping", key)
                merged += [pair for pairs in _pairs(other) for pair in pairs]
        else:
            own.append((key, value))
    return own, merged


def _construct(loader: _Strings, node: Any) -> Dict[str, Any]:
    return loader.construct_mapping(node)


_Strings.add_constructor(STANDARD + "map", _construct)
