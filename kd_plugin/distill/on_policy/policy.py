"""When an update is on-policy; the same on every rank, and after a resume."""

import random
from typing import Any, Dict, Optional, Sequence, Tuple

from kd_plugin.distill.logs import PERCENT, Log
from kd_plugin.distill.on_policy.flags import OFF, PARALLEL
from kd_plugin.distill.on_policy.sampled import Sampler

LOGS: Sequence[Log] = (
    Log("n_on_policy", "n_decided", PERCENT, 1, "on_policy"),
    Log("on_policy_kd_loss", "n_own_tokens"),
    Log("n_own_tokens", "n_own_sentences", 1.0, 2, "on_policy_length", shown=lambda total, over: over > 0),
    Log("n_own_repeated", "n_own_pairs", PERCENT, 1, "on_policy_repeated"),
    Log("n_drawn_tokens", "drawing_seconds", 1.0, 0, "on_policy_tokens_per_second"),
)


class OnPolicy:
    """On-policy distillation as the criterion's flags ask for it.

    Args:
        cfg: the criterion's flags, already checked
        task: the student's
        seed: of the training
    """

    def __init__(self, cfg: Any, task: Any, seed: int):
        self._mode, self._share, self._seed = str(cfg.kd_on_policy), float(cfg.kd_on_policy_share), seed
        self.passes = int(cfg.kd_on_policy_passes) if self._mode == PARALLEL else 1
        self._sampler = None if self._mode in (OFF, PARALLEL) else Sampler(cfg, task, seed)

    @property
    def asked(self) -> bool:
        """Whether some updates may be on-policy."""
        return self._mode != OFF and self._share > 0.0

    def signature(self) -> str:
        """Its field in the run's signature; empty: off."""
        return f"on_policy:{self._mode}:{self._share:g}" if self.asked else ""

    def decides(self, update: int) -> bool:
        """Whether the update after `update` updates is on-policy."""
        return self.asked and random.Random(f"on-policy {self._seed} {update}").random() < self._share

    def own_batch(
        self, model: Any, sample: Dict[str, Any], update: int
    ) -> Optional[Tuple[Dict[str, Any], Dict[str, Any]]]:
        """With `sampled`: a batch whose targets are the student's own, and its sums for the log; else None."""
        return None if self._sampler is None else self._sampler(model, sample, update)

    def state_dict(self) -> Dict[str, Any]:
        """The translations that are still to be learned from, if several are drawn at a time."""
        return {} if self._sampler is None else self._sampler.state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Restores them."""
        if self._sampler is not None:
            self._sampler.load_state_dict(state)
