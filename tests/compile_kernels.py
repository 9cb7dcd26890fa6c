"""Compiles the CPU kernels once, before tests side by side would each do it: `python -m tests.compile_kernels`."""

import torch

from kd_plugin.losses.definition import Objective
from kd_plugin.losses.engine.dispatch import kernels_for
from kd_plugin.losses.sparse import SparseAnswer


def main() -> None:
    kernels = kernels_for("cpu")
    if kernels is None:
        print("numba is not installed: nothing to compile")
        return
    target = torch.zeros(2, dtype=torch.long)
    for dtype in (torch.float32, torch.float64):
        logits = torch.zeros(2, 8, dtype=dtype)
        ids, lprobs, log_rest = kernels.top_entries(logits, 2)
        for teacher in (logits, SparseAnswer(ids, lprobs, log_rest)):
            kernels.one_pass(logits, teacher, target, Objective(0.5))


if __name__ == "__main__":
    main()
