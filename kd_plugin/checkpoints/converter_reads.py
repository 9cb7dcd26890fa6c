"""Which weights of a model CTranslate2's converter has looked at: it says nothing of layers that it does not know."""

import contextlib
import re
from typing import Any, Iterator, List
from unittest import mock

import fairseq.models
import torch

from kd_plugin.compat import BETTER_TRANSFORMER_COPY

NO_WEIGHTS = re.compile(r"(^|\.)(version|_float_tensor|num_updates)$")


class Reads:
    """The model that the converter has built, and the tensors that it has turned into arrays."""

    def __init__(self) -> None:
        self.models: List[Any] = []
        self.tensors: List[torch.Tensor] = []

    def left_out(self) -> List[str]:
        """Names of the weights that were not read. Tied ones lie in the same place, and are read together."""
        read = {tensor.data_ptr() for tensor in self.tensors}
        return [
            name
            for model in self.models
            for name, weight in model.state_dict().items()
            if weight.numel() and weight.data_ptr() not in read
            if not NO_WEIGHTS.search(name) and not BETTER_TRANSFORMER_COPY.search(name)
        ]


@contextlib.contextmanager
def recorded_reads() -> Iterator[Reads]:
    """Record while CTranslate2's FairseqConverter loads a model."""
    reads = Reads()
    build_model, numpy = fairseq.models.build_model, torch.Tensor.numpy

    def building(*args: Any, **kwargs: Any) -> Any:
        reads.models.append(build_model(*args, **kwargs))
        return reads.models[-1]

    def reading(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        reads.tensors.append(tensor)
        return numpy(tensor, *args, **kwargs)

    with mock.patch.object(fairseq.models, "build_model", building), mock.patch.object(torch.Tensor, "numpy", reading):
        yield reads
