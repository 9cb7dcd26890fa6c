"""COMET models, as the library of that name opens them (Rei et al. 2020, https://aclanthology.org/2020.emnlp-main.213)."""

import importlib.util
import logging
from pathlib import Path
from typing import Any, NamedTuple

from kd_plugin.errors import KDPluginError

INSTALL_COMET = "pip install unbabel-comet"
EXAMPLE = "Unbabel/wmt22-comet-da"


class Opened(NamedTuple):
    """A COMET model, the path of its file, and the library's version."""

    model: Any
    path: Path
    version: str


def open_comet(flag: str, model: str, example: str = EXAMPLE) -> Opened:
    """A COMET model.

    Args:
        flag: the flag that names it, with its value, for errors
        model: path of a checkpoint, or a name to download
        example: a name that works here, for errors

    Raises:
        KDPluginError: COMET is not installed, or there is no such model
    """
    if importlib.util.find_spec("comet") is None:
        raise KDPluginError(f"{flag}: COMET is not installed. Remedy: {INSTALL_COMET}")
    import comet

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it would list its devices for each system
    try:
        path = Path(model if Path(model).is_file() else comet.download_model(model))
        opened = comet.load_from_checkpoint(str(path))
    except Exception as error:  # a download raises all kinds
        raise KDPluginError(
            f"{flag}: cannot be loaded ({' '.join(str(error).split())[:200]}). Remedy: use a model name of the "
            f"COMET project, such as {example}, or the path of a downloaded checkpoint"
        ) from error
    return Opened(opened, path, str(getattr(comet, "__version__", "?")))
