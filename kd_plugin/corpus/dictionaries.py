"""fairseq's dictionaries: which symbol an index means."""

from fairseq.data import Dictionary

from kd_plugin.errors import KDPluginError


def load_dictionary(path: str) -> Dictionary:
    """fairseq's dictionary in a file; a damaged one is refused."""
    try:
        return Dictionary.load(path)
    except Exception as error:  # fairseq raises ValueError, RuntimeError and, for what is no UTF-8, Exception itself
        raise KDPluginError(
            f"{path}: no dictionary of fairseq ({' '.join(str(error).split())[:200] or type(error).__name__}). "
            "Remedy: the dict.LANG.txt of the data that the model was trained on, undamaged"
        ) from error
