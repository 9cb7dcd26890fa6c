"""The student's output projection fused with the loss: it never holds all (tokens, vocab) logits.

Chunk by chunk it computes the student's logits, compares them with the teacher's, turns them into their gradient in
place, and multiplies that back into the gradients of features and projection. Memory: one chunk of logits per side, and
the gradients.
"""

import functools
from typing import Any, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from kd_plugin.losses.answer import TeacherAnswer
from kd_plugin.losses.definition import N_TERMS, NLL, Objective, accumulation_dtype
from kd_plugin.losses.engine.dispatch import GradientInHand, in_groups, row_losses
from kd_plugin.losses.engine.memory import Allocate, LinearHead, aligned, new_buffer, projected_rows, scratch
from kd_plugin.losses.engine.storage import STEP, new_scales


class StudentFeatures:
    """A decoder's features for the target tokens that count, and its output projection.

    Args:
        features: (tokens, dimension)
        weight: (vocab, dimension) of the output projection; may be tied to an embedding
        bias: (vocab,) or None
    """

    def __init__(self, features: Tensor, weight: Tensor, bias: Optional[Tensor] = None):
        self.features, self.weight, self.bias = features, weight, bias

    def token_nll(self, target: Tensor) -> Tensor:
        """(tokens,) cross-entropy of each token, without gradient. This costs an extra projection."""
        return self._terms(None, target, None, Objective(alpha=1.0), None)[:, NLL]

    def loss(
        self,
        answer: Optional[TeacherAnswer],
        target: Tensor,
        objective: Objective,
        *,
        distilled: Optional[Tensor] = None,
        alone: Optional[Tensor] = None,
        alone_weight: float = 1.0,
    ) -> Tuple[Tensor, Tensor]:
        """The loss summed over the tokens, with gradients for features, weight and bias.

        Args and returns as `StudentLogits.loss`. The gradient is correct with tied embeddings,
        DistributedDataParallel and gradient accumulation, because autograd knows the parameters as inputs.
        """
        inputs = [x for x in (self.features, self.weight, self.bias) if x is not None]
        gradients = None
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            # sums over many tokens need at least fp32
            dtype = accumulation_dtype(self.features, None)
            gradients = Gradients(inputs, dtype)
        loss, terms = in_groups(
            lambda chosen, teacher, weights: self._terms(chosen, target, teacher, weights, gradients),
            answer,
            objective,
            distilled,
            alone,
            alone_weight,
        )
        if gradients is not None:
            loss = GradientInHand.apply(loss, None, *inputs, *gradients.finish())
        return loss, terms

    @torch.no_grad()
    def _terms(
        self,
        chosen: Any,
        target: Tensor,
        answer: Optional[TeacherAnswer],
        objective: Objective,
        gradients: Optional["Gradients"],
    ) -> Tensor:
        """(chosen tokens, N_TERMS); adds to the gradients."""
        positions = torch.arange(target.numel(), device=target.device)
        if chosen is not None:
            positions = positions[chosen]
        dtype = self.product_dtype()
        weight = self.weight.detach().to(dtype)
        head = LinearHead(weight, None if self.bias is None else self.bias.detach().to(dtype))
        terms = []
        step = projected_rows(weight.size(0), self.features.element_size(), weight.device)
        allocate: Allocate = functools.partial(scratch, "student")
        apart = self.bias is None  # cuBLAS fuses the addition of a bias only for rows that lie back to back
        if apart:
            allocate = aligned(allocate)
        for start in range(0, positions.numel(), step):
            at = positions[start : start + step]
            features = self.features.detach()
            features = (features[start : start + at.numel()] if chosen is None else features[at]).to(dtype)
            with torch.autocast(device_type=features.device.type, enabled=False):
                logits = head(features, allocate)
                teacher_logits = None if answer is None else answer.chunk(start, start + at.numel(), True, apart)
                in_place = logits if gradients is not None else None
                scales = None if in_place is None else new_scales(in_place)
                terms.append(
                    row_losses(logits, teacher_logits, target[at], objective, gradient=in_place, scales=scales)
                )
                if gradients is not None:
                    gradients.add(at, logits, scales, features, weight)
            del teacher_logits  # free them before the next chunk is computed
        empty = torch.zeros(0, N_TERMS, dtype=accumulation_dtype(self.features, None), device=target.device)
        return torch.cat(terms) if terms else empty

    def product_dtype(self) -> torch.dtype:
        """The dtype in which PyTorch would compute the projection here."""
        if self.features.is_cuda and torch.is_autocast_enabled():
            return torch.get_autocast_gpu_dtype()
        return self.features.dtype


class Gradients:
    """The gradients of features, weight and bias, accumulated chunk by chunk.

    Args:
        inputs: features, weight and, if there is one, bias
    """

    def __init__(self, inputs: Sequence[Tensor], dtype: torch.dtype):
        self.features, self.weight, *self.bias = (new_buffer(x.shape, dtype, x.device) for x in inputs)
        for small in (self.features, *self.bias):
            small.zero_()
        self._weight_is_empty = True

    def add(self, at: Tensor, slope: Tensor, scales: Optional[Tensor], features: Tensor, weight: Tensor) -> None:
        """Propagates d loss / d logits, (rows, vocab), to features (rows `at`), weight and bias.

        scales: in fp16, the (rows,) factors by which the rows of slope have been multiplied
        """
        if scales is not None:
            self._add_in_fp16(at, slope, scales, features, weight)
        else:
            self.features[at] = torch.mm(slope, weight).to(self.features.dtype)
            if slope.dtype == self.weight.dtype:
                if self._weight_is_empty:  # saves zeroing and reading it
                    torch.mm(slope.t(), features, out=self.weight)
                else:
                    self.weight.addmm_(slope.t(), features)
            else:
                self._emptied_weight().add_(torch.mm(slope.t(), features))
            for bias in self.bias:
                bias.add_(slope.sum(dim=0, dtype=bias.dtype))
        self._weight_is_empty = False

    def _add_in_fp16(self, at: Tensor, slope: Tensor, scales: Tensor, features: Tensor, weight: Tensor) -> None:
        """Rescales, because at the scale of single entries sums over the vocabulary or over many tokens overflow."""
        nothing = slope.new_zeros(1)
        products = torch.addmm(nothing, slope, weight, beta=0, alpha=1 / 16)  # in fp32 until it is scaled
        self.features[at] = products.to(self.features.dtype) * (16 / scales).unsqueeze(-1)
        shares = STEP / 16 / scales.unsqueeze(-1)  # every row at the same scale
        scaled = features.float() * shares
        largest = torch.maximum(scaled.abs().amax(), shares.amax())
        most = torch.linalg.vector_norm(slope, ord=1, dim=0, dtype=torch.float32).amax() * largest
        _, exponent = torch.frexp(most / 2**15)  # no sum exceeds `most`
        shrink = torch.ldexp(torch.ones_like(most), -exponent.clamp(min=0))
        part = torch.mm(slope.t(), (scaled * shrink).to(slope.dtype))
        back = 16 / STEP / shrink
        self._emptied_weight().addcmul_(part, back)
        for bias in self.bias:
            bias.addcmul_(torch.mv(slope.t(), (shares * shrink).to(slope.dtype).squeeze(-1)), back)

    def _emptied_weight(self) -> Tensor:
        return self.weight.zero_() if self._weight_is_empty else self.weight

    def finish(self) -> List[Tensor]:
        """The gradients of features, weight and bias."""
        if self._weight_is_empty:
            self.weight.zero_()
        return [self.features, self.weight, *self.bias]
