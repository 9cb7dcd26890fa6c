"""Binarised data for a task, made in this process: no fairseq-preprocess has to start."""

import torch
from fairseq.data import indexed_dataset

from tests.unit.conftest import write_dictionaries


def binarise(folder, words, split, pairs, source="en", target="de"):
    """Write pairs of lists of ids, without end of sentence, as `folder/split.en-de.*`, and both dictionaries."""
    write_dictionaries(folder, words)
    for side, lang in enumerate((source, target)):
        prefix = folder / f"{split}.{source}-{target}.{lang}"
        builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=len(words) + 4)
        for pair in pairs:
            builder.add_item(torch.tensor([*pair[side], 2], dtype=torch.int32))
        builder.finalize(f"{prefix}.idx")
