"""Knowledge distillation for neural machine translation as a fairseq `--user-dir` plugin.

Importing the package registers the task `distillation_translation`, the criterion `kd_label_smoothed_cross_entropy`
and the student architectures, and allows the few harmless types that fairseq checkpoints hold to be read under
torch's `weights_only`. It does no other work.
"""

from kd_plugin.compat import allow_fairseq_checkpoints, require_fairseq
from kd_plugin.version import __version__

require_fairseq()
allow_fairseq_checkpoints()

from kd_plugin import criterions, models, tasks  # noqa: E402

__all__ = ["__version__", "criterions", "models", "tasks"]
