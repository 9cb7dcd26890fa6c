"""--max-len-a and --max-len-b: how long a translation may become, and which translations were cut off there.

At the limit, fairseq's search allows only the end of sentence, however unlikely it is.
"""

from typing import Any, Optional, Sequence, Tuple

from kd_plugin.errors import KDPluginError

Answer = Sequence[Tuple[Sequence[str], Any]]  # the translations of a sentence: symbols without end, and their scores


def length_limit(max_len_a: float, max_len_b: int, longest: int, max_target_tokens: int) -> int:
    """The most symbols of a translation, without its end of sentence.

    Args:
        longest: symbols of the longest sentence of the batch, without end of sentence: the limit is the same for all
            sentences of a batch, as in fairseq
        max_target_tokens: the most that the model can write
    """
    limit = min(int(max_len_a * (longest + 1) + max_len_b), max_target_tokens)
    if limit < 1:
        raise KDPluginError(
            f"--max-len-a {max_len_a:g} and --max-len-b {max_len_b}: no symbol is left for the translation of a "
            f"sentence of {longest} symbols by a model that writes at most {max_target_tokens}. Remedy: use a larger "
            "--max-len-b"
        )
    return limit


def is_capped(answer: Optional[Answer], limit: int) -> bool:
    """Whether one of a sentence's translations was ended by the limit rather than by the model."""
    return any(len(tokens) >= limit for tokens, _ in answer or ())
