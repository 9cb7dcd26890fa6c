"""transformers' activations as fairseq's, and an approximation of the one that fairseq lacks."""

import contextlib
from typing import Any, Dict, Iterator, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

# transformers' names of activations that fairseq has
EXACT = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_accurate",
    "gelu_pytorch_tanh": "gelu_accurate",
    "tanh": "tanh",
    "linear": "linear",
}
SWISH = ("swish", "silu")
# gelu(x) is near x · sigmoid(1.702 x) (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415), so swish(x), which
# is x · sigmoid(x), is near 1.702 gelu(x / 1.702)
FACTOR = 1.702


class ApproximateSwish(torch.nn.Module):
    """x -> 1.702 gelu(x / 1.702)"""

    def forward(self, x: Tensor) -> Tensor:
        return FACTOR * F.gelu(x / FACTOR)


def fairseq_activation(name: str, approximate: bool) -> Optional[str]:
    """fairseq's name of an activation; None: it has none.

    Args:
        approximate: whether `swish` may become a scaled gelu, see `scale`
    """
    return "gelu" if approximate and name in SWISH else EXACT.get(name)


def scale(weights: Dict[str, Tensor]) -> None:
    """Changes, in place, feed-forward layers with swish into layers with gelu."""
    for name in weights:
        if name.endswith((".fc1.weight", ".fc1.bias")):
            weights[name] = weights[name] / FACTOR
        elif name.endswith(".fc2.weight"):
            weights[name] = weights[name] * FACTOR


@contextlib.contextmanager
def approximated(model: Any) -> Iterator[None]:
    """Within this context, a transformers model computes the approximation too, so that all else can be compared."""
    layers = [module for module in model.modules() if hasattr(module, "activation_fn") and hasattr(module, "fc1")]
    own = [layer.activation_fn for layer in layers]
    for layer in layers:
        layer.activation_fn = ApproximateSwish()
    try:
        yield
    finally:
        for layer, function in zip(layers, own):
            layer.activation_fn = function


def change_of(before: Tensor, after: Tensor) -> str:
    """How far (…, vocabulary) logits are from others, for a note."""
    difference = float((after - before).abs().max() / before.abs().max())
    same = float(after.argmax(-1).eq(before.argmax(-1)).to(torch.float32).mean())
    change = f"logits of random sentences change by {difference:.1%} of the largest"
    return f"{change}, and {same:.0%} of the likeliest symbols stay"
