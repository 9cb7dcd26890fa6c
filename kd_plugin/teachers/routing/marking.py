"""Marks every sentence of a batch with its way, on the host, while the batch is collated."""

from typing import Any, Dict, List, Sequence

import torch
from fairseq.data import BaseWrapperDataset
from torch import Tensor

WAYS = "teacher_ways"  # in a batch: a list with the number of each sentence's way; -1: none
SHIFT = 40  # bits of a sentence's number in its dataset, above which the number of the dataset's way lies


class MarkByTag:
    """Wraps a dataset's collater; recognises plain sentences by the tag at their beginning.

    Args:
        side: `source` or `target`
        tags: (tokens,) int64 of each way; the first that a sentence begins with counts
        pad: of that side's dictionary
    """

    def __init__(self, collater: Any, side: str, tags: Sequence[Tensor], pad: int):
        self._collater, self._side, self._tags, self._pad = collater, side, list(tags), pad

    def __call__(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        sample: Dict[str, Any] = self._collater(*args, **kwargs)
        if sample:
            tokens = sample["target"] if self._side == "target" else sample["net_input"]["src_tokens"]
            sample[WAYS] = self.of(tokens)
        return sample

    def of(self, tokens: Tensor) -> List[int]:
        """The way of each of (sentences, length) tokens, padded on either side."""
        first = tokens.ne(self._pad).long().argmax(dim=1, keepdim=True)
        found = torch.full((tokens.size(0),), -1)
        for number, tag in reversed(list(enumerate(self._tags))):
            at = first + torch.arange(len(tag))
            # a sentence that is too short for the tag ends in padding or in end of sentence, which is in no tag
            begins = tokens.gather(1, at.clamp(max=tokens.size(1) - 1)).eq(tag).all(dim=1)
            found[begins & at[:, -1].lt(tokens.size(1))] = number
        return found.tolist()


class Numbered(BaseWrapperDataset):
    """One pair's dataset of a multilingual one; the ids of its sentences say which way they go."""

    def __init__(self, dataset: Any, way: int):
        super().__init__(dataset)
        self._way = way

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        return {**item, "id": item["id"] + (self._way << SHIFT)}

    def collater(self, samples: Any, **options: Any) -> Any:
        """As the data set's own, which may take options that fairseq's wrapper does not pass on."""
        return self.dataset.collater(samples, **options)


class MarkByNumber:
    """Wraps a multilingual dataset's collater: gives the ids of `Numbered` back their meaning."""

    def __init__(self, collater: Any):
        self._collater = collater

    def __call__(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        sample: Dict[str, Any] = self._collater(*args, **kwargs)
        if sample:
            sample[WAYS] = (sample["id"] >> SHIFT).tolist()
            sample["id"] = sample["id"] & ((1 << SHIFT) - 1)
        return sample
