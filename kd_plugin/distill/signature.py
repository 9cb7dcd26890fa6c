"""The one line that identifies a run."""

from typing import Any, Iterable, Optional

import torch

from kd_plugin.compat import fairseq_distribution
from kd_plugin.distill.terms.base import Term
from kd_plugin.losses import DIVERGENCES
from kd_plugin.teachers.base import Teacher
from kd_plugin.version import __version__


def run_signature(cfg: Any, teacher: Optional[Teacher] = None, terms: Iterable[Term] = (), further: str = "") -> str:
    """`kd|alpha:0.5|T:2.0|…`: everything that determines what a run learns from its teacher, and the software versions.

    A scheduled value is written start>end:schedule:updates.

    Args:
        cfg: the criterion's flags
    """
    fields = [
        f"alpha:{_scheduled(cfg, cfg.kd_alpha, cfg.kd_alpha_end)}",
        f"T:{_scheduled(cfg, cfg.kd_temperature, cfg.kd_temperature_end)}",
        f"div:{_divergence(cfg)}",
        f"ls:{getattr(cfg, 'label_smoothing', 0.0)}",
        f"select:{_selection(cfg)}",
        *(field for field in (*(term.signature() for term in terms), further) if field),
    ]
    if teacher is None:
        fields.append("teacher:none")
    else:
        fields += teacher.signature_fields()
    fields += [fairseq_distribution(), f"torch:{torch.__version__}", f"kd_plugin:{__version__}"]
    return "kd|" + "|".join(fields)


def _divergence(cfg: Any) -> str:
    """`js(js_beta=0.5)+rank:5`: the divergence with its parameters and the ranking term."""
    names = DIVERGENCES[str(cfg.kd_divergence)].parameters
    parameters = ",".join(f"{name}={getattr(cfg, f'kd_{name}')}" for name in names)
    rank = f"+rank:{cfg.kd_top1_rank}" if cfg.kd_top1_rank else ""
    return str(cfg.kd_divergence) + (f"({parameters})" if parameters else "") + rank


def _selection(cfg: Any) -> str:
    if str(cfg.kd_selection) == "all":
        return "all"
    queue = f":{cfg.kd_queue_size}" if str(cfg.kd_selection) == "global" else ""
    return f"{cfg.kd_selection}:{cfg.kd_select_ratio}{queue}"


def _scheduled(cfg: Any, start: float, end: Optional[float]) -> str:
    if end is None:
        return f"{start}"
    return f"{start}>{end}:{cfg.kd_schedule}:{cfg.kd_schedule_updates}"
