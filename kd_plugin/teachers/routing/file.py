"""Reads the file of --teacher-routing: which teacher answers for which language pair or tag."""

import json
import math
from typing import Any, Dict, List, NamedTuple, Optional

from kd_plugin.errors import KDPluginError
from kd_plugin.files.yaml_text import read_yaml
from kd_plugin.teachers.vocabulary import MISSING_SYMBOLS

KEEP, STRIP = "keep", "strip"
EXAMPLE = "`teachers:` with lines such as `  de-en: checkpoints/de-en.pt` below it"


class Route(NamedTuple):
    """A teacher of the file.

    name: its key: a language pair, a pattern of pairs, or a tag (tokens separated by spaces)
    tags: whether it reads the sentences' language tags; None: if its dictionary has them
    The other fields are those of the flags --teacher-….
    """

    name: str
    path: str
    weights: Optional[str] = None
    sha256: Optional[str] = None
    overrides: str = "{}"
    user_dir: Optional[str] = None
    source_lang: Optional[str] = None
    target_lang: Optional[str] = None
    missing_symbols: Optional[str] = None
    tags: Optional[str] = None


class Routing(NamedTuple):
    """The file's content.

    without:    names like those of routes, whose sentences have no teacher
    side:       where plain tagged sentences have their tag, `source` or `target`
    switch_off: a language's teacher rests while the student's validation loss is lower than the teacher's by more than
                this, in bits per token; None: teachers never rest
    """

    path: str
    routes: List[Route]
    without: List[str]
    side: str
    switch_off: Optional[float]


CHOICES = {"tags": (KEEP, STRIP), "missing_symbols": MISSING_SYMBOLS}


def read_routing(path: str) -> Routing:
    """
    Raises:
        KDPluginError: the file cannot be read, is not YAML, or has a key or value that it cannot have
    """
    content = read_yaml(path, "--teacher-routing", EXAMPLE)
    if not isinstance(content, dict) or not content.get("teachers") or not isinstance(content["teachers"], dict):
        raise _wrong(path, "it does not say `teachers:` with a teacher per language", EXAMPLE)
    _known(path, content, ("teachers", "without_teacher", "side", "switch_off"), "at the top")
    side = content.get("side", "source")
    if side not in ("source", "target"):
        raise _wrong(path, f"`side: {side}`", "source or target, the sentences that begin with tags")
    routes = [_route(path, " ".join(name.split()), value) for name, value in content["teachers"].items()]
    without = content.get("without_teacher", [])
    if not isinstance(without, list) or not all(isinstance(name, str) and name.strip() for name in without):
        raise _wrong(path, "`without_teacher` is not a list of names", "`without_teacher: [es-en]`")
    without = [" ".join(name.split()) for name in without]
    names = [route.name for route in routes] + without
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise _wrong(path, f"`{twice[0]}` occurs twice", "one teacher for each; several models form an ensemble")
    return Routing(path, routes, without, side, _margin(path, content.get("switch_off", "false")))


def _route(path: str, name: str, value: Any) -> Route:
    if isinstance(value, str):
        value = {"path": value}
    if not name:
        raise _wrong(path, "a teacher has an empty name", "a language pair or a tag")
    if not isinstance(value, dict):
        raise _wrong(path, f"`{name}` is neither a path nor a mapping", f"`{name}: CHECKPOINT`")
    _known(path, value, Route._fields[1:], f"of `{name}`")
    given: Dict[str, Any] = {key: _text(path, name, key, item) for key, item in value.items()}
    if not given.get("path"):
        raise _wrong(path, f"`{name}` has no path", f"`{name}: CHECKPOINT`")
    for key, choices in CHOICES.items():
        if given.get(key) not in (None, *choices):
            raise _wrong(path, f"`{key}: {given[key]}` of `{name}`", " or ".join(choices))
    return Route(name, **given)


def _text(path: str, name: str, key: str, value: Any) -> str:
    """A value as its flag takes it."""
    if isinstance(value, str):
        return value
    if key == "overrides" and isinstance(value, dict) or key in ("path", "user_dir") and isinstance(value, list):
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        if key == "weights":
            return ",".join(value)
        if key == "sha256":
            return ":".join(value)
    raise _wrong(path, f"`{key}` of `{name}` is not text", f"write it like --teacher-{key.replace('_', '-')}")


def _margin(path: str, value: Any) -> Optional[float]:
    if value in ("false", "true"):
        return 0.0 if value == "true" else None
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise _wrong(path, f"`switch_off: {value}`", "true, false, or a margin in bits per token")
    return margin


def _known(path: str, mapping: Dict[str, Any], names: Any, where: str) -> None:
    unknown = sorted(set(mapping) - set(names))
    if unknown:
        raise _wrong(path, f"unknown key `{unknown[0]}` {where}", ", ".join(names))


def _wrong(path: str, what: str, remedy: str) -> KDPluginError:
    return KDPluginError(f"--teacher-routing {path}: {what}. Remedy: {remedy}")
