"""The course of a number during training: alpha, the temperature, a term's weight."""

from typing import Any, List, NamedTuple, Optional

from kd_plugin.losses.schedules import scheduled_value


class Schedule(NamedTuple):
    """Constant if `end` is None."""

    start: float
    end: Optional[float]
    kind: str
    updates: int

    @classmethod
    def of(cls, cfg: Any, name: str) -> "Schedule":
        """Of the flags --NAME, --NAME-end and --kd-schedule."""
        end = getattr(cfg, f"{name}_end")
        return cls(float(getattr(cfg, name)), end, str(cfg.kd_schedule), int(cfg.kd_schedule_updates))

    def at(self, update: int) -> float:
        """The value after `update` updates."""
        if self.end is None:
            return self.start
        return scheduled_value(self.start, self.end, self.kind, update, self.updates)

    def ends(self) -> List[float]:
        """The first value and, unless it is constant, the last."""
        return [self.start] if self.end is None else [self.start, self.end]

    def __str__(self) -> str:
        """As in the run's signature."""
        return f"{self.start:g}" if self.end is None else f"{self.start:g}>{self.end:g}:{self.kind}:{self.updates}"
