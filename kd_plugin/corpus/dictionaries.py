"""Loads fairseq dictionaries."""

import re

from fairseq.data import Dictionary

from kd_plugin.errors import KDPluginError

FILLER = re.compile(r"madeupword\d{4}")  # fairseq pads dictionaries with them; they never occur in text
OF_TRAINING = "the dict.LANG.txt of the data that the model was trained on, undamaged"


def load_dictionary(path: str, remedy: str = OF_TRAINING) -> Dictionary:
    """Loads a fairseq dictionary; refuses a damaged one."""
    try:
        return Dictionary.load(path)
    except Exception as error:  # fairseq raises ValueError, RuntimeError and, for invalid UTF-8, Exception itself
        raise KDPluginError(
            f"{path}: not a fairseq dictionary ({' '.join(str(error).split())[:200] or type(error).__name__}). "
            f"Remedy: {remedy}"
        ) from error
