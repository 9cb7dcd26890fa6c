"""The modules that bring student's and teacher's states together: trained with the student, thrown away with the run.

They are parameters of the criterion, so fairseq's trainer optimises, synchronises, saves and restores them.
"""

from typing import Any, Dict, List

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_plugin.losses.representations import normalised, squared_distance, wide

SLOPE = 0.1  # of the leaky ReLU in factor transfer


class OwnRate(nn.Module):
    """A module whose parameters learn `rate` times as fast as the student.

    fairseq has a single learning rate for all parameters. So the optimiser moves p / rate, which is what is stored,
    while the module computes with p; the gradient is the one of p. A step of any optimiser then moves p by `rate`
    times the step.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def store(self, name: str, value: Tensor) -> None:
        """Makes a parameter with this effective value."""
        setattr(self, name, nn.Parameter(value / self.rate))

    def effective(self, name: str) -> Tensor:
        """The parameter as the module computes with it."""
        stored: Tensor = getattr(self, name)
        if self.rate == 1.0:
            return stored
        # the difference is 0, and carries the gradient
        return stored.detach() * self.rate + (stored - stored.detach())

    def get_extra_state(self) -> Dict[str, Any]:
        """The rate with which the parameters were stored."""
        return {"rate": self.rate}

    def set_extra_state(self, state: Dict[str, Any]) -> None:
        """Called after the parameters were loaded: a run may go on with another rate."""
        for parameter in self.parameters(recurse=False):
            parameter.data.mul_(state["rate"] / self.rate)


class Projection(OwnRate):
    """A linear map from the student's width to the teacher's; the identity at first if they are equal."""

    def __init__(self, student_width: int, teacher_width: int, rate: float):
        super().__init__(rate)
        weight = torch.empty(teacher_width, student_width)
        nn.init.eye_(weight) if student_width == teacher_width else nn.init.xavier_uniform_(weight)
        self.store("weight", weight)

    def forward(self, states: Tensor) -> Tensor:
        """(N, student_width) to (N, teacher_width)."""
        weight = self.effective("weight")
        return F.linear(states.to(weight.dtype), weight)


class HeadMixing(OwnRate):
    """For each of the teacher's heads a convex combination of the student's: the softmax of its parameters. At first
    mostly the head of the same number."""

    def __init__(self, student_heads: int, teacher_heads: int, rate: float):
        super().__init__(rate)
        start = torch.zeros(teacher_heads, student_heads)
        for head in range(teacher_heads):
            start[head, head * student_heads // teacher_heads] = 2.0
        self.store("scores", start)

    def forward(self) -> Tensor:
        """(teacher_heads, student_heads), rows that sum to 1."""
        return torch.softmax(wide(self.effective("scores")), dim=-1)


class Factor(OwnRate):
    """An auto-encoder of the teacher's states, and the student's map into its code (factor transfer, Kim et al. 2018).

    Both are linear maps with a layer norm and a leaky ReLU, per position. Once frozen, the auto-encoder computes with
    copies: an optimiser goes on moving parameters that it has a momentum of.
    """

    OF_AUTO_ENCODER = ("encode", "decode")

    def __init__(self, student_width: int, teacher_width: int, code_width: int, rate: float):
        super().__init__(rate)
        self.frozen = False
        shapes = {
            "encode": (code_width, teacher_width),
            "decode": (teacher_width, code_width),
            "translate": (code_width, student_width),
        }
        for name, shape in shapes.items():
            self.store(name, nn.init.xavier_uniform_(torch.empty(shape)))
        for name in self.OF_AUTO_ENCODER:
            self.register_buffer(f"frozen_{name}", torch.zeros(shapes[name]))

    def freeze(self) -> None:
        """From now on, the auto-encoder stays as it is."""
        if not self.frozen:
            self.frozen = True
            for name in self.OF_AUTO_ENCODER:
                getattr(self, f"frozen_{name}").copy_(self.effective(name).detach())

    def code(self, teacher: Tensor) -> Tensor:
        """(N, code_width) of (N, teacher_width)."""
        return self._mapped(normalised(teacher), self._weight("encode"))

    def translated(self, student: Tensor) -> Tensor:
        """(N, code_width) of (N, student_width)."""
        return self._mapped(normalised(student), self.effective("translate"))

    def reconstruction_error(self, teacher: Tensor) -> Tensor:
        """(N,) the mean squared error of the normalised states, whose variance is 1: a fraction."""
        weight = self._weight("decode")
        decoded = F.linear(self.code(teacher).to(weight.dtype), weight)
        return squared_distance(decoded, normalised(teacher))

    def _weight(self, name: str) -> Tensor:
        weight: Tensor = getattr(self, f"frozen_{name}") if self.frozen else self.effective(name)
        return weight

    @staticmethod
    def _mapped(states: Tensor, weight: Tensor) -> Tensor:
        return F.leaky_relu(normalised(F.linear(states.to(weight.dtype), weight)), SLOPE)

    def get_extra_state(self) -> Dict[str, Any]:
        """As OwnRate's, and whether the auto-encoder is frozen."""
        return {**super().get_extra_state(), "frozen": self.frozen}

    def set_extra_state(self, state: Dict[str, Any]) -> None:
        """As OwnRate's."""
        super().set_extra_state(state)
        self.frozen = bool(state["frozen"])


def untouched(modules: List[nn.Module]) -> Tensor:
    """0, with a gradient of 0 for every parameter: with DistributedDataParallel each must have one in each update."""
    return 0.0 * torch.stack([wide(p).sum() for module in modules for p in module.parameters()]).sum()
