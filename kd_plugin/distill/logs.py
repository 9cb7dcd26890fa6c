"""How a logged value comes from the sums that batches and ranks have logged."""

import math
from typing import Any, Callable, NamedTuple, Optional, Sequence

from fairseq import utils
from fairseq.logging import metrics

BITS, PERCENT = 1 / math.log(2), 100.0  # of nats; of a share


class Log(NamedTuple):
    """One value of a training's log.

    key:   of the sum in logging outputs, over the tokens or batches of one batch on one rank
    over:  the key of the sum that it is divided by; the value weighs as much in the mean of an epoch
    unit:  factor from what is summed to what is shown
    name:  under which it is shown; None: the key
    shown: whether it is worth showing, by the two sums
    """

    key: str
    over: str = "sample_size"
    unit: float = BITS
    round: int = 3
    name: Optional[str] = None
    shown: Callable[[float, float], bool] = lambda total, over: over > 0

    def reduce(self, logging_outputs: Sequence[Any]) -> None:
        """Hand it to fairseq's meters; nothing where no batch has logged it."""
        if not any(self.key in log for log in logging_outputs):
            return
        # numbers, not tensors: every tensor in a meter takes 250 bytes of each checkpoint
        total, over = (utils.item(sum(log.get(key, 0) for log in logging_outputs)) for key in (self.key, self.over))
        if self.shown(total, over):
            metrics.log_scalar(self.name or self.key, total * self.unit / over, over, round=self.round)
