"""Compiles the CPU kernels of a dtype once, before parallel tests would: `python -m tests.compile_kernels float32`."""

import sys

import torch

from kd_plugin.losses.definition import Objective
from kd_plugin.losses.engine.dispatch import kernels_for
from kd_plugin.losses.sparse import SparseAnswer


def main(dtype: torch.dtype) -> None:
    kernels = kernels_for("cpu")
    if kernels is None:
        print("numba is not installed: nothing to compile")
        return
    target = torch.zeros(2, dtype=torch.long)
    logits = torch.zeros(2, 8, dtype=dtype)
    ids, lprobs, log_rest = kernels.top_entries(logits, 2)
    for teacher in (logits, SparseAnswer(ids, lprobs, log_rest)):
        kernels.one_pass(logits, teacher, target, Objective(0.5))


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
