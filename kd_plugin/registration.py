"""Registers the plugin with fairseq on import, once."""

import functools
import importlib.util

from kd_plugin.quiet import first_import


@functools.lru_cache(maxsize=None)
def register() -> None:
    """Registers with fairseq, and fixes what keeps fairseq from working on today's torch (kd_plugin.compat).

    Does nothing without fairseq; the losses work all the same.
    """
    if importlib.util.find_spec("fairseq") is None:
        return
    with first_import():
        from kd_plugin.compat import allow_fairseq_checkpoints, disable_better_transformer, let_ranks_share_checkpoints

        allow_fairseq_checkpoints()
        disable_better_transformer()
        let_ranks_share_checkpoints()
        from kd_plugin import criterions, models, tasks  # noqa: F401
