"""Which numbers the flags of kd-plugin take: one table for all verbs, compared before a verb begins its work."""

import argparse
import math
from typing import Dict, NamedTuple, Tuple

from kd_plugin.errors import KDPluginError, shown

MANY = 2**31 - 1  # what NumPy, torch and CTranslate2 can count everywhere


class Limits(NamedTuple):
    """From `low` to `high`, both included; `also` are single values outside, which mean something else."""

    low: float
    high: float = MANY
    also: Tuple[float, ...] = ()

    def allow(self, value: float) -> bool:
        """NaN is never allowed."""
        return self.low <= value <= self.high or value in self.also

    def rule(self, value: float) -> str:
        """What `value` breaks."""
        also = "".join(f", or {shown(other)}" for other in self.also)
        if self.high == MANY and value < self.low:
            return f"must be at least {shown(self.low)}{also}"
        return f"must lie in {shown(self.low)} … {shown(self.high)}{also}"


# by the name in args. What only goes together with another flag or a model (--nbest with --beam, --sampling-topk with
# the vocabulary) is looked at where both are known.
LIMITS: Dict[str, Limits] = {
    # search: beyond these fairseq divides by numbers that overflow, or writes unknown symbols alone
    "beam": Limits(1, 10_000),
    "nbest": Limits(1, 10_000),
    "max_len_a": Limits(0, 1e6),
    "max_len_b": Limits(0),
    "lenpen": Limits(-10, 10),
    "unkpen": Limits(-50, 1e4, also=(math.inf,)),
    "sampling_topk": Limits(1, also=(-1,)),
    "sampling_topp": Limits(1e-6, 1, also=(-1,)),
    "temperature": Limits(0.01, 1000),
    "seed": Limits(-MANY),
    # the work and how it is shared
    "max_tokens": Limits(1),
    "batch_size": Limits(1),
    "shard_sentences": Limits(1),
    "shard_tokens": Limits(1),
    "num_shards": Limits(1),
    "shard_id": Limits(0),
    "workers": Limits(1, 1024, also=(0,)),
    "threads": Limits(1, 1024),
    # requests to a server
    "concurrency": Limits(1, 1024),
    "timeout": Limits(0.1, 86_400),
    "retries": Limits(0, 100),
    "max_answer_ratio": Limits(1, 1000),
    # cache
    "k": Limits(1),
    "max_source_positions": Limits(2),
    # vocabulary
    "coverage": Limits(1e-6, 1),
    # select; filter's are with its rules
    "top": Limits(1),
    # evaluate and export; of fewer resamples than 40 none is outside of an interval of 95 %
    "cpu_sentences": Limits(1),
    "bootstrap": Limits(40, 100_000, also=(0,)),
    "max_positions": Limits(2),
    "check_threshold": Limits(0, 100),
}


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers, of any verb's flags, outside of LIMITS."""
    for name, value in vars(args).items():
        limits = LIMITS.get(name)
        if limits is None or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not limits.allow(value):
            raise KDPluginError(
                f"--{name.replace('_', '-')} {shown(value)}: {limits.rule(value)}. Remedy: such a "
                "number, or leave it out"
            )
