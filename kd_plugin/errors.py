"""The one exception family of the plugin, and the one of others that a user can do something about."""

import re

OUT_OF_MEMORY = re.compile("out of memory|(?:can't|cannot) allocate memory|not enough memory", re.IGNORECASE)


class KDPluginError(RuntimeError):
    """A refusal: the message names the file or flag, what is wrong with it, and what to do.

    It derives from RuntimeError because fairseq's trainer answers any other exception raised in an update by
    writing a `crash.pt` beside the good checkpoints.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or CTranslate2 says so, of the machine's memory or a GPU's."""
    return isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)) is not None


def shown(value: float) -> str:
    """A number as a user would write it, however many digits it has."""
    text = str(value) if isinstance(value, int) else f"{value:g}"
    return text if len(text) <= 40 else f"{text[:20]}… ({len(text)} characters)"
