"""Whether the gradient may overwrite the student's logits."""

from typing import Any, Optional

import torch
from torch import Tensor

# autograd's names, from torch 1.13 on, for the views through which a decoder's projection reaches us
VIEWS = ("View", "UnsafeView", "ReshapeAlias", "Alias", "Transpose", "T", "Permute", "Unsqueeze", "Squeeze", "ToCopy")
# each creates a new tensor, and its backward does not read that tensor
PRODUCERS = ("Mm", "Addmm", "Bmm", "Linear", "MkldnnLinear", "Clone")


def may_overwrite(logits: Tensor, model: Optional[torch.nn.Module] = None) -> bool:
    """True only if nothing else needs the values: the logits come straight from a projection, whose backward does not
    read them, and the model has no forward hook that could have kept them.

    If another backward needs them after all, autograd raises an error there, because the write bumps the tensor's
    version counter.
    """
    if model is not None and any(module._forward_hooks for module in model.modules()):
        return False
    node: Any = logits.grad_fn
    while node is not None:
        name = type(node).__name__.split("Backward")[0]
        if name in PRODUCERS:
            return logits.is_contiguous()
        if name not in VIEWS:
            return False
        node = node.next_functions[0][0]
    return False
