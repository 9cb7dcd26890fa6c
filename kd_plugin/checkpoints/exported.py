"""The description file that `kd-plugin export` writes beside a model."""

from pathlib import Path
from typing import Any, Dict, List, Optional

from kd_plugin.checkpoints.open import Checkpoint
from kd_plugin.errors import KDPluginError
from kd_plugin.files.json_text import LARGEST, parse_json
from kd_plugin.version import __version__

DESCRIPTION = "kd_plugin.json"  # beside every exported model
FORMAT, FORMAT_VERSION = "kd_plugin export", 1


def description(kind: str, **more: Any) -> Dict[str, Any]:
    """The content of DESCRIPTION that all models share."""
    return {"format": FORMAT, "version": FORMAT_VERSION, "kind": kind, "kd_plugin": __version__, **more}


def description_of(checkpoint: Checkpoint, kind: str, **more: Any) -> Dict[str, Any]:
    """The content of DESCRIPTION for a model made from a checkpoint."""
    return {
        **description(kind),
        "checkpoint_sha256": checkpoint.sha256,
        "parameters": checkpoint.parameters,
        "languages": checkpoint.languages,
        "max_source_tokens": checkpoint.max_source_tokens,
        "max_target_tokens": checkpoint.max_target_tokens,
        **more,
    }


def read_description(folder: Path) -> Dict[str, Any]:
    """The description that `kd-plugin export` wrote beside a model; empty for a model made by something else."""
    try:
        content = parse_json((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    for name in ("max_source_tokens", "max_target_tokens", "parameters"):
        value = content.get(name)
        if value is not None and not (type(value) is int and 0 < value < LARGEST):
            raise KDPluginError(
                f"{folder / DESCRIPTION}: {name} is {str(value)[:60]!r}, not a valid number. Remedy: export the model "
                "again"
            )
    return content


def described_languages(description: Dict[str, Any]) -> Optional[List[str]]:
    """The source and target language in a description, or None."""
    languages = description.get("languages")
    said = isinstance(languages, list) and len(languages) == 2 and all(isinstance(code, str) for code in languages)
    return languages if said else None
