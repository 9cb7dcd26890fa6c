"""Records which weights CTranslate2's converter reads, because it silently ignores layers that it does not know."""

import re
from typing import Any, List

import torch
from torch.overrides import TorchFunctionMode

from kd_plugin.compat import BETTER_TRANSFORMER_COPY

NO_WEIGHTS = re.compile(r"(^|\.)(version|_float_tensor|num_updates)$")


class Reads(TorchFunctionMode):
    """A context in which tensors that are converted to arrays are recorded.

    The arrays are copies, because CTranslate2 rounds in place and would otherwise change the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: List[torch.Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is not torch.Tensor.numpy:
            return result
        self.tensors.append(args[0])
        return result.copy()

    def left_out(self, model: torch.nn.Module) -> List[str]:
        """Names of the weights that were not read. Tied weights share memory, so reading one covers all."""
        read = {tensor.data_ptr() for tensor in self.tensors}
        return [
            name
            for name, weight in model.state_dict().items()
            if weight.numel() and weight.data_ptr() not in read
            if not NO_WEIGHTS.search(name) and not BETTER_TRANSFORMER_COPY.search(name)
        ]
