"""Reduces the sums that batches and ranks have logged to the values that fairseq shows."""

import math
from typing import Any, Callable, NamedTuple, Optional, Sequence

from fairseq import utils
from fairseq.logging import metrics

BITS, PERCENT = 1 / math.log(2), 100.0  # factors from nats to bits, from fractions to percent


class Log(NamedTuple):
    """One value of the training log.

    key:   the key of the sum in logging outputs, from one batch on one rank
    over:  the key of the sum to divide by, which is also the value's weight in the mean of an epoch
    unit:  factor from the summed to the displayed unit
    name:  displayed name; None: the key
    shown: decides from the two sums whether to show the value
    """

    key: str
    over: str = "sample_size"
    unit: float = BITS
    round: int = 3
    name: Optional[str] = None
    shown: Callable[[float, float], bool] = lambda total, over: over > 0

    def reduce(self, logging_outputs: Sequence[Any]) -> None:
        """Passes the value to fairseq's meters, unless no batch has logged it."""
        if not any(self.key in log for log in logging_outputs):
            return
        # numbers, not tensors: every tensor in a meter adds 250 bytes to each checkpoint
        total, over = (utils.item(sum(log.get(key, 0) for log in logging_outputs)) for key in (self.key, self.over))
        if self.shown(total, over):
            metrics.log_scalar(self.name or self.key, total * self.unit / over, over, round=self.round)


class LogOfEach(NamedTuple):
    """Values of several languages, in bits: `nll_loss_de-en` from the sums `nll_of:de-en` over `n_of:de-en`.

    key, over: before the colon; as for Log
    name:      displayed, before the language
    """

    key: str
    over: str
    name: str

    def reduce(self, logging_outputs: Sequence[Any]) -> None:
        """As Log's."""
        keys = {key for log in logging_outputs for key in log if str(key).startswith(f"{self.key}:")}
        for key in sorted(keys):
            language = key.split(":", 1)[1]
            Log(key, f"{self.over}:{language}", name=f"{self.name}_{language}").reduce(logging_outputs)
