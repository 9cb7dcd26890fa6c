"""Reads the JSON of verbs that leave one in their folder."""

from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple, TypeVar

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import read_json

Kind = TypeVar("Kind")


def read_result(argument: str, verb: str, convert: Callable[[Path, Dict[str, Any]], Kind]) -> Kind:
    """What a verb wrote.

    Args:
        argument: its folder or its JSON file
        convert: the path and the content to what the report needs

    Raises:
        KDPluginError: the file is missing, another verb's, or not as the verb wrote it
    """
    remedy = f"Remedy: the folder or the {verb}.json of kd-plugin {verb}, unedited"
    path = Path(argument)
    path = path / f"{verb}.json" if path.is_dir() else path
    content = read_json(path, remedy)
    if content.get("format") != f"kd_plugin {verb}" or content.get("version") != 1:
        raise KDPluginError(f"{path}: is not of kd-plugin {verb}, or of a version that this kd_plugin lacks. {remedy}")
    try:
        return convert(path, content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise KDPluginError(f"{path}: {error!r}. {remedy}") from error


def finite(value: Any) -> Optional[float]:
    """A number that a chart can show, or None."""
    return float(value) if value is not None and abs(value) < 1e300 else None


def texts(content: Dict[str, Any], *keys: str) -> Tuple[str, ...]:
    return tuple(str(content[key] or "") for key in keys)
