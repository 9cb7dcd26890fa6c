"""Notices a teacher that cannot be meant: it finds the references less likely than guessing by frequency would."""

import logging
import math
from typing import Any, Dict, Optional

import torch

from kd_plugin.distill.logs import BITS

logger = logging.getLogger(__name__)

LOOKS = (10, 100)  # after how many batches to look, since each look makes the host wait for the device


def bits_of_guessing(dictionary: Any) -> float:
    """The entropy of a dictionary's counts in bits: what a token costs if one only knows the frequencies."""
    counts = torch.tensor([max(1, count) for count in dictionary.count[dictionary.nspecial :]], dtype=torch.float64)
    if counts.numel() == 0:
        return math.inf
    shares = counts / counts.sum()
    return float(-(shares * shares.log2()).sum())


class Plausible:
    """Warns once about a teacher with a wrong language code, direction, segmentation or dictionary.

    Args:
        dictionary: the target's, with the counts of the training data; None: never warn
    """

    def __init__(self, dictionary: Optional[Any]):
        self._dictionary = dictionary
        self._batches, self._nll, self._tokens = 0, 0.0, 0

    def __call__(self, logs: Dict[str, Any]) -> None:
        """Takes the sums of a training batch."""
        if self._dictionary is None or "teacher_nll_loss" not in logs:
            return
        self._batches += 1
        self._nll, self._tokens = (
            self._nll + logs["teacher_nll_loss"],
            self._tokens + logs.get("n_referred", logs["n_distilled"]),
        )
        if self._batches not in LOOKS:
            return
        dictionary, tokens = self._dictionary, int(self._tokens)
        mean, guessing = float(self._nll) * BITS / max(1, tokens), bits_of_guessing(dictionary)
        if tokens > 0 and mean > guessing:
            logger.warning(
                f"the teacher gives the references {mean:.1f} bits per token (teacher_nll_loss), but guessing by "
                f"frequency would cost {guessing:.1f}: it has learned nothing about such text. Remedy: check its "
                "language codes and direction (or the order of --teacher-labels, if it labels), and that the data have "
                "its segmentation and dictionary"
            )
            self._dictionary = None
        elif self._batches == LOOKS[-1]:
            self._dictionary = None
