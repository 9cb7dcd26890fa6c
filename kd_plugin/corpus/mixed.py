"""Labelled and unlabelled sentences in one data set."""

from typing import Any, Dict, List, Optional

import numpy as np
import torch
from fairseq.data import FairseqDataset

from kd_plugin.corpus.labelled_folder import UNLABELLED

TARGET = "target"


class MixedDataset(FairseqDataset):
    """Labelled sentences, followed by unlabelled ones, whose target is UNLABELLED (NaN where numbers are predicted).

    Args:
        labelled: fairseq's NestedDictionaryDataset with a target; None: there is none
        unlabelled: the same without a target
        numbers: of targets per sentence if numbers are predicted; None: labels
    """

    def __init__(self, labelled: Optional[Any], unlabelled: Any, numbers: Optional[int] = None):
        super().__init__()
        self._parts: List[Any] = [unlabelled] if labelled is None else [labelled, unlabelled]
        self._first = 0 if labelled is None else len(labelled)  # unlabelled sentence
        self._unknown: Any = torch.tensor([UNLABELLED]) if numbers is None else [float("nan")] * numbers
        self.sizes = np.concatenate([np.asarray(part.sizes[0]) for part in self._parts])

    def __getitem__(self, index: int) -> Dict[str, Any]:
        if index < self._first:
            item: Dict[str, Any] = self._parts[0][index]
            return item
        return {**self._parts[-1][index - self._first], "id": index, TARGET: self._unknown}

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def collater(self, samples: List[Dict[str, Any]]) -> Dict[str, Any]:
        """As fairseq's."""
        sample: Dict[str, Any] = self._parts[0].collater(samples)
        if samples and TARGET not in sample:
            sample[TARGET] = torch.as_tensor(np.stack([np.asarray(one[TARGET]) for one in samples]))
        return sample

    def num_tokens(self, index: int) -> int:
        """As fairseq's."""
        return int(self.sizes[index])

    def size(self, index: int) -> int:
        """As fairseq's."""
        return int(self.sizes[index])

    def num_tokens_vec(self, indices: Any) -> Any:
        """As fairseq's."""
        return self.sizes[indices]

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:  # type: ignore[override]
        """As fairseq's."""
        return all(part.can_reuse_epoch_itr_across_epochs for part in self._parts)

    def set_epoch(self, epoch: int) -> None:
        """As fairseq's."""
        super().set_epoch(epoch)
        for part in self._parts:
            part.set_epoch(epoch)
