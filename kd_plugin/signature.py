"""The one line that identifies a run."""

import torch

from kd_plugin.compat import fairseq_distribution
from kd_plugin.losses import DIVERGENCES
from kd_plugin.version import __version__


def run_signature(criterion, teacher=None) -> str:
    """`kd|alpha:0.5|T:2.0|…`: everything that decides what a run learns from its teacher, and with which software.

    Values that a schedule moves are written start>end:schedule:updates.
    """
    fields = [
        f"alpha:{_scheduled(criterion, criterion.kd_alpha, criterion.kd_alpha_end)}",
        f"T:{_scheduled(criterion, criterion.kd_temperature, criterion.kd_temperature_end)}",
        f"div:{_divergence(criterion)}",
        f"ls:{criterion.eps}",
        f"select:{_selection(criterion)}",
    ]
    if teacher is None:
        fields.append("teacher:none")
    else:
        fields += teacher.signature_fields()
    fields += [fairseq_distribution(), f"torch:{torch.__version__}", f"kd_plugin:{__version__}"]
    return "kd|" + "|".join(fields)


def _divergence(criterion) -> str:
    """`js(js_beta=0.5)+rank:5`: with what shapes it."""
    names = DIVERGENCES[criterion.kd_divergence].parameters
    parameters = ",".join(f"{name}={criterion.kd_parameters[name]}" for name in names)
    rank = f"+rank:{criterion.kd_top1_rank}" if criterion.kd_top1_rank else ""
    return criterion.kd_divergence + (f"({parameters})" if parameters else "") + rank


def _selection(criterion) -> str:
    if criterion.kd_selection == "all":
        return "all"
    queue = f":{criterion.kd_queue_size}" if criterion.kd_selection == "global" else ""
    return f"{criterion.kd_selection}:{criterion.kd_select_ratio}{queue}"


def _scheduled(criterion, start: float, end) -> str:
    if end is None:
        return f"{start}"
    return f"{start}>{end}:{criterion.kd_schedule}:{criterion.kd_schedule_updates}"
