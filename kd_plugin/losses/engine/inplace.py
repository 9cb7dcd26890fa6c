"""Whether the gradient may be written over the student's logits."""

from typing import Any, Optional

import torch
from torch import Tensor

# what autograd calls the nodes through which a decoder's projection reaches us, on torch 1.13 to today's
VIEWS = ("View", "UnsafeView", "ReshapeAlias", "Alias", "Transpose", "T", "Permute", "Unsqueeze", "Squeeze", "ToCopy")
# each makes a tensor of its own, and its backward does not read that tensor
PRODUCERS = ("Mm", "Addmm", "Bmm", "Linear", "MkldnnLinear", "Clone")


def may_overwrite(logits: Tensor, model: Optional[torch.nn.Module] = None) -> bool:
    """True only where nobody else can miss the values: the logits come straight from a projection, whose backward does
    not need them, and no forward hook of the model can have kept them.

    Should somebody have kept them after all for a backward of his own, autograd stops there with an error, because
    writing raises the tensor's version.
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
