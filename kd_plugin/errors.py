"""The plugin's exception, and the detection of out-of-memory errors, which a user can act on."""

import re

OUT_OF_MEMORY = re.compile("out of memory|(?:can't|cannot) allocate memory|not enough memory", re.IGNORECASE)


class KDPluginError(RuntimeError):
    """A refusal: the message names the file or flag, what is wrong with it, and what to do.

    Derives from RuntimeError, because fairseq's trainer reacts to any other exception in an update by writing a
    `crash.pt` beside the good checkpoints.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or CTranslate2 reports that the machine or a GPU is out of memory."""
    return isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)) is not None


def shown(value: float) -> str:
    """A number as a user would write it, shortened if it has very many digits."""
    text = str(value) if isinstance(value, int) else f"{value:g}"
    return text if len(text) <= 40 else f"{text[:20]}… ({len(text)} characters)"
