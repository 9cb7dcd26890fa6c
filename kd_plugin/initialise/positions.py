"""How long a sentence the student reads: learned positions are cut; sinusoids are computed for any length."""

from typing import Dict, Optional

from kd_plugin.errors import KDPluginError
from kd_plugin.initialise.whole import SIDES, Whole

FIRST = 2  # fairseq's row of a sentence's first position: padding_idx + 1


def keep_positions(whole: Whole, limits: Dict[str, Optional[int]]) -> Whole:
    """The model for sentences of at most so many symbols, end of sentence included.

    Args:
        limits: of `source` and `target`; None: as the teacher

    Raises:
        KDPluginError: the teacher has fewer learned positions
    """
    weights, options = dict(whole.weights), dict(whole.options)
    for side, name in zip(SIDES, ("source", "target")):
        limit, table = limits[name], f"{side}.embed_positions.weight"
        if limit is None:
            continue
        if table in weights:
            known = weights[table].size(0) - FIRST
            if limit > known:
                raise KDPluginError(
                    f"--max-{name}-positions {limit}: the teacher has learned only {known}. Remedy: at most {known}"
                )
            weights[table] = weights[table][: FIRST + limit]
        options[f"max_{name}_positions"] = limit
    return whole._replace(weights=weights, options=options)
