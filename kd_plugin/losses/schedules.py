"""alpha and temperature as functions of the number of updates made so far. Schedules have no state, so a resumed run
continues them exactly."""

import math
from typing import Callable, Dict

# each maps progress in [0, 1] to the fraction of the way from the first value to the last
SCHEDULES: Dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 0.0,
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 * (1.0 - math.cos(math.pi * progress)),
}


def scheduled_value(start: float, end: float, schedule: str, num_updates: int, schedule_updates: int) -> float:
    """The value after `num_updates` updates: `start` at 0, `end` from `schedule_updates` on."""
    progress = min(max(num_updates / schedule_updates, 0.0), 1.0) if schedule_updates > 0 else 1.0
    share = SCHEDULES[schedule](progress)
    # written as a mixture so that both ends are exact
    return (1.0 - share) * start + share * end
