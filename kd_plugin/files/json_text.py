"""Reads untrusted JSON: anything wrong with it raises a ValueError that says what."""

import json
import math
import re
from typing import Any, Dict, List, Tuple, Type, TypeVar, Union, get_type_hints

DEEPEST = 100  # nesting of lists and objects; ours has 5 levels
LARGEST = 2**63  # integers below fit into NumPy's int64
SURROGATE = re.compile("[\ud800-\udfff]")  # allowed in a Python string, but not in UTF-8

Kind = TypeVar("Kind")


class RefusedJson(ValueError):
    """Valid JSON that nobody can have meant to write."""


def parse_json(text: Union[str, bytes]) -> Any:
    """Parses JSON.

    Raises:
        ValueError: not JSON, too many digits, too deep nesting, a repeated key or half of a surrogate pair
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError("brackets are nested too deeply") from error
    waiting: List[Tuple[Any, int]] = [(content, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError("brackets are nested too deeply")
        if isinstance(value, dict):
            waiting += ((inner, depth + 1) for inner in (*value, *value.values()))
        elif isinstance(value, list):
            waiting += ((inner, depth + 1) for inner in value)
        elif isinstance(value, str) and SURROGATE.search(value):
            raise RefusedJson(f"half of a surrogate pair in {value[:40]!r}")
    return content


def _without_repeats(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise RefusedJson(f"the key {next(name for name in names if names.count(name) > 1)!r} is repeated")
    return content


def typed(kind: Type[Kind], content: Any) -> Kind:
    """A NamedTuple from a JSON object that has exactly the class's fields, each of the annotated type.

    Raises:
        TypeError: a field is missing, unknown or of another type; the message names it
    """
    if not isinstance(content, dict):
        raise TypeError(f"{kind.__name__} is {_short(content)}, not an object")
    hints = get_type_hints(kind)
    for name, value in content.items():
        if name in hints and not _fits(value, hints[name]):
            raise TypeError(f"{name} is {_short(value)}")
    return kind(**content)


def _fits(value: Any, hint: Any) -> bool:
    origin: Any = getattr(hint, "__origin__", None)
    inner: Any = getattr(hint, "__args__", ())
    if hint is Any:
        return True
    if origin is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, inner[1]) for each in value.values())
    if origin is Union:
        return any(_fits(value, each) for each in inner)
    if hint is float:
        return is_number(value)
    return type(value) is hint and (hint is not int or abs(value) < LARGEST)


def is_number(value: Any) -> bool:
    """Whether it is an int or float, possibly infinite, but not NaN or bool."""
    return type(value) in (int, float) and not math.isnan(value) and (type(value) is float or abs(value) < LARGEST)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
