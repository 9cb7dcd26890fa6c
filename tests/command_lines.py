"""Flags of the tests' trainings; imported before torch by whoever prepares for them."""

import pathlib
from typing import Any, List

MODEL = [
    "--arch", "transformer", "--encoder-layers", 1, "--decoder-layers", 1, "--encoder-embed-dim", 16,
    "--decoder-embed-dim", 16, "--encoder-ffn-embed-dim", 32, "--decoder-ffn-embed-dim", 32,
    "--encoder-attention-heads", 2, "--decoder-attention-heads", 2,
]  # fmt: skip
OPTIMIZER = ["--optimizer", "adam", "--lr", "0.003", "--clip-norm", "1.0", "--seed", 5]
BATCHES = ["--max-tokens", 200, "--required-batch-size-multiple", 1, "--num-workers", 0]
# no thread that reads ahead: with torch 1.13 it sometimes outlives the training and aborts the finished process
BATCHES += ["--data-buffer-size", 0]
LOGS = ["--log-format", "json", "--log-interval", 1]


def training(data: pathlib.Path, save_dir: pathlib.Path, *extra: Any) -> List[Any]:
    """`fairseq-train` with everything but the task: a tiny student."""
    common = ["--cpu", "--save-dir", save_dir, "--label-smoothing", 0.1, "--dropout", 0.1]
    return ["fairseq-train", data, *common, *MODEL, *OPTIMIZER, *BATCHES, *LOGS, *extra]


STOCK = ["--task", "translation", "--criterion", "label_smoothed_cross_entropy"]
