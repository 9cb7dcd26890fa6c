"""Reads a user's YAML in which every value is text, as the command's flags take it."""

from pathlib import Path
from typing import Any, Dict

import yaml

from kd_plugin.errors import KDPluginError


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


class _Strings(yaml.BaseLoader):
    """Reads every scalar as text, because YAML's `no` (Norwegian) is false; refuses a key that occurs twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Dict[str, Any]:
        pairs = [(self.construct_object(key, deep=True), value) for key, value in node.value]
        names = [key for key, _ in pairs]
        for key in names:
            if not isinstance(key, str) or names.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice or is not text", node.start_mark
                )
        return {key: self.construct_object(value, deep=True) for key, value in pairs}
