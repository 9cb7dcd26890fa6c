"""BLEU of --eval-bleu when a student says nothing yet."""

from typing import Any, Dict, Sequence

import numpy as np
from fairseq.logging import metrics
from fairseq.tasks.translation import EVAL_BLEU_ORDER
from sacrebleu.metrics import BLEU

SYSTEM, REFERENCE = "_bleu_sys_len", "_bleu_ref_len"
COUNTS, TOTALS = "_bleu_counts", "_bleu_totals"


def log_bleu_of_nothing(logging_outputs: Sequence[Dict[str, Any]]) -> None:
    """Logs a validation step of --eval-bleu all of whose translations are empty.

    fairseq leaves such a step out. After a few updates all are like this, and --best-checkpoint-metric bleu then ends
    the training with KeyError: 'bleu'. Other steps are fairseq's own business, and training steps have no BLEU.
    """
    logs = [each for each in logging_outputs if SYSTEM in each]
    if not logs or sum(float(each[SYSTEM]) for each in logs) > 0:
        return
    nothing = np.zeros(EVAL_BLEU_ORDER)
    metrics.log_scalar(COUNTS, nothing)
    metrics.log_scalar(TOTALS, nothing)
    metrics.log_scalar(SYSTEM, 0)
    metrics.log_scalar(REFERENCE, sum(float(each[REFERENCE]) for each in logs))
    metrics.log_derived("bleu", _bleu)


def _bleu(meters: Any) -> float:
    """Of all steps so far, as fairseq's: the function that is logged first stays."""
    counts, totals = (meters[key].sum for key in (COUNTS, TOTALS))
    lengths = [int(meters[key].sum) for key in (SYSTEM, REFERENCE)]
    return round(BLEU.compute_bleu(counts, totals, *lengths, smooth_method="exp").score, 2)
