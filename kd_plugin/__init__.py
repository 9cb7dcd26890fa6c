"""Knowledge distillation for neural machine translation as a fairseq `--user-dir` plugin.

Importing the package registers the task `distillation_translation`, the criterion `kd_label_smoothed_cross_entropy`
and the student architectures (`kd_plugin.registration`). The command `kd-plugin` does so only if a verb needs it.
"""

from kd_plugin.quiet import is_command
from kd_plugin.version import __version__

if is_command():
    from kd_plugin.cli.verbs import worker_needs_fairseq as wanted
else:

    def wanted() -> bool:
        return True


if wanted():
    from kd_plugin.registration import register

    register()

__all__ = ["__version__"]
