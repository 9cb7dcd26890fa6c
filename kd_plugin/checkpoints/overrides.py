"""Parses overrides of a checkpoint's configuration: --teacher-overrides, --model-overrides."""

import ast
from typing import Any, Dict

from kd_plugin.errors import KDPluginError
from kd_plugin.files.json_text import RefusedJson, parse_json


def parse_overrides(text: Any, flag: str = "--teacher-overrides") -> Dict[str, Any]:
    """The value of `flag`: a JSON or Python dictionary, or a mapping from a YAML file."""
    if not isinstance(text, str):
        return dict(text or {})
    for parse in (parse_json, ast.literal_eval):
        try:
            overrides = parse(text or "{}")
        except RefusedJson as error:
            raise KDPluginError(f"{flag} {text[:200]!r}: {error}. Remedy: each field once, in plain text") from error
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: from endless brackets
            continue
        if isinstance(overrides, dict) and all(isinstance(name, str) for name in overrides):
            return overrides
    shown = text if len(text) <= 200 else f"{text[:200]}…"
    raise KDPluginError(f"{flag} {shown!r} is not a dictionary. Remedy: write it like '{{\"dropout\": 0.0}}'")
