"""The numbers that kd-plugin's flags accept: one table for all verbs, checked before a verb begins its work."""

import argparse
import math
from typing import Dict, NamedTuple, Tuple

from kd_plugin.errors import KDPluginError, shown

MANY = 2**31 - 1  # the largest count that NumPy, torch and CTranslate2 support everywhere


class Limits(NamedTuple):
    """From `low` to `high`, inclusive; `also` lists single values outside, which have a special meaning."""

    low: float
    high: float = MANY
    also: Tuple[float, ...] = ()

    def allow(self, value: float) -> bool:
        """NaN is never allowed."""
        return self.low <= value <= self.high or value in self.also

    def rule(self, value: float) -> str:
        """The rule that `value` breaks."""
        also = "".join(f", or {shown(other)}" for other in self.also)
        if self.high == MANY and value < self.low:
            return f"must be at least {shown(self.low)}{also}"
        return f"must lie in {shown(self.low)} … {shown(self.high)}{also}"


# By the name in args. Limits that depend on another flag or a model (--nbest on --beam, --sampling-topk on the
# vocabulary) are checked where both are known.
LIMITS: Dict[str, Limits] = {
    # search: beyond these, fairseq divides by numbers that overflow, or writes only unknown symbols
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
    # batches, and how the work is divided
    "max_tokens": Limits(1),
    "batch_size": Limits(1),
    "shard_sentences": Limits(1),
    "shard_tokens": Limits(1),
    "num_shards": Limits(1),
    "shard_id": Limits(0),
    "workers": Limits(1, 1024, also=(0,)),
    "threads": Limits(1, 1024),
    "cores": Limits(1, 1024, also=(0,)),
    # requests to a server
    "concurrency": Limits(1, 1024),
    "timeout": Limits(0.1, 86_400),
    "retries": Limits(0, 100),
    "max_answer_ratio": Limits(1, 1000),
    # prepare-tagging
    "word_column": Limits(-1000, 1000),
    "label_column": Limits(-1000, 1000),
    "threshold": Limits(1),
    # cache
    "k": Limits(1),
    "max_source_positions": Limits(2),
    "max_target_positions": Limits(2),
    "init_token": Limits(0),
    "separator_token": Limits(0),
    "num_classes": Limits(1, also=(-1,)),
    # init; sizes that depend on the teacher's are checked with it
    "embed_dim": Limits(4),
    "ffn_dim": Limits(1),
    "heads": Limits(1),
    "decoder_output_dim": Limits(1),
    "sample_sentences": Limits(0),
    # vocabulary
    "coverage": Limits(1e-6, 1),
    # select; filter's are with its rules
    "top": Limits(1),
    "worst": Limits(0),
    # evaluate and export; with fewer than 40 resamples, none lies outside a 95% interval
    "cpu_sentences": Limits(1),
    "bootstrap": Limits(40, 100_000, also=(0,)),
    "max_positions": Limits(2),
    "check_threshold": Limits(0, 100),
}


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers outside LIMITS, whichever verb's flag they are for."""
    for name, value in vars(args).items():
        limits = LIMITS.get(name)
        if limits is None or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not limits.allow(value):
            raise KDPluginError(
                f"--{name.replace('_', '-')} {shown(value)}: {limits.rule(value)}. Remedy: give such a "
                "number, or leave it out"
            )
