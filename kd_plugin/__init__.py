"""Knowledge distillation for neural machine translation as a fairseq `--user-dir` plugin.

Importing the package registers the task `distillation_translation`, the criterion `kd_label_smoothed_cross_entropy`
and the student architectures, allows the few harmless types that fairseq checkpoints hold to be read under torch's
`weights_only`, also between ranks, and keeps fairseq 0.12.2 off a code path that dies on today's torch. It does no
other work.
"""

from kd_plugin.quiet import first_import
from kd_plugin.version import __version__

with first_import():
    from kd_plugin.compat import (
        allow_fairseq_checkpoints,
        disable_better_transformer,
        has_fairseq,
        let_ranks_share_checkpoints,
    )

    allow_fairseq_checkpoints()
    # without it there is nothing to register with; `kd-plugin doctor` and the losses work all the same
    if has_fairseq():
        disable_better_transformer()
        let_ranks_share_checkpoints()
        from kd_plugin import criterions, models, tasks  # noqa: F401

__all__ = ["__version__"]
