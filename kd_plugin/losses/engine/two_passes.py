"""The symmetric KL between two dropout passes of one student, with both gradients from a single visit to each row.

    1/2 [KL(p1 || p2) + KL(p2 || p1)] = 1/2 sum_v (p1 - p2) (log p1 - log p2)

R-Drop, Liang et al. 2021 (https://arxiv.org/abs/2106.14448). The gradient is computed in the forward pass, chunk by
chunk, into its own buffers: the passes' logits keep their values, and the loss on tokens may overwrite them next.
"""

import functools
from typing import List, Optional, Tuple, Union

import torch
from torch import Tensor

from kd_plugin.losses.definition import accumulation_dtype
from kd_plugin.losses.engine.dispatch import GradientInHand, StudentLogits
from kd_plugin.losses.engine.fused_head import Gradients, StudentFeatures
from kd_plugin.losses.engine.memory import LinearHead, new_buffer, projected_rows, scratch
from kd_plugin.losses.engine.one_pass import rows_per_chunk
from kd_plugin.losses.engine.storage import new_scales, scale_for

Pass = Union[StudentLogits, StudentFeatures]


def symmetric_kl(first: Pass, second: Pass) -> Tuple[Tensor, Tensor]:
    """The divergence between two passes over the same rows.

    Returns:
        (0-dim sum over the rows, with a gradient for both passes; (rows,) values without one), fp32, or float64 if the
        logits are
    """
    if isinstance(first, StudentFeatures):
        assert isinstance(second, StudentFeatures)
        return _between_features(first, second)
    assert isinstance(second, StudentLogits)
    return _between_logits(first, second)


def _between_logits(first: StudentLogits, second: StudentLogits) -> Tuple[Tensor, Tensor]:
    passes = [first.logits, second.logits]
    gradients: List[Tensor] = []
    if torch.is_grad_enabled() and any(logits.requires_grad for logits in passes):
        gradients = [new_buffer(logits.shape, logits.dtype, logits.device) for logits in passes]
    scales = new_scales(gradients[0]) if gradients else None
    dtype = accumulation_dtype(first.logits, second.logits)
    step = rows_per_chunk(first.logits.size(1), dtype, first.logits.device)
    values = []
    with torch.no_grad():
        for at in first.rows.split(step):
            chunk = [logits.detach().index_select(0, at).to(dtype) for logits in passes]
            value, slopes = _value_and_slopes(chunk[0], chunk[1])
            values.append(value)
            if scales is not None:
                scales[at] = _rescale(slopes)
            for gradient, slope in zip(gradients, slopes):
                gradient.index_copy_(0, at, slope.to(gradient.dtype))
        for gradient in gradients:
            gradient.index_fill_(0, first.other_rows, 0)
    every = torch.cat(values) if values else first.logits.new_zeros(0, dtype=dtype)
    total = every.sum()
    return (GradientInHand.apply(total, scales, *passes, *gradients) if gradients else total), every


def _between_features(first: StudentFeatures, second: StudentFeatures) -> Tuple[Tensor, Tensor]:
    head_inputs = [x for x in (first.weight, first.bias) if x is not None]
    features = [first.features, second.features]
    dtype = accumulation_dtype(first.features, None)
    gradients: List[Gradients] = []
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*features, *head_inputs)):
        gradients = [Gradients([own, *head_inputs], dtype) for own in features]
    product = first.product_dtype()
    weight = first.weight.detach().to(product)
    head = LinearHead(weight, None if first.bias is None else first.bias.detach().to(product))
    step = projected_rows(weight.size(0), first.features.element_size(), weight.device)
    values = []
    with torch.no_grad(), torch.autocast(device_type=weight.device.type, enabled=False):
        for at in torch.arange(first.features.size(0), device=weight.device).split(step):
            chunk = [own.detach().index_select(0, at).to(product) for own in features]
            logits = [head(own, functools.partial(scratch, name)) for own, name in zip(chunk, ("student", "teacher"))]
            value = _in_place(logits, dtype)
            values.append(value[0])
            for gradient, slope, own in zip(gradients, logits, chunk):
                gradient.add(at, slope, value[1], own, weight)
    every = torch.cat(values) if values else first.features.new_zeros(0, dtype=dtype)
    total = every.sum()
    if not gradients:
        return total, every
    (of_first, *of_head), (of_second, *more) = (gradient.finish() for gradient in gradients)
    for one, other in zip(of_head, more):
        one.add_(other)
    inputs = [*features, *head_inputs]
    return GradientInHand.apply(total, None, *inputs, of_first, of_second, *of_head), every


def _in_place(logits: List[Tensor], dtype: torch.dtype) -> Tuple[Tensor, Optional[Tensor]]:
    """(rows,) values and, in fp16, (rows,) factors of the gradients, which replace both passes' logits."""
    step = rows_per_chunk(logits[0].size(1), dtype, logits[0].device)
    scales = new_scales(logits[0])
    values = []
    for start in range(0, logits[0].size(0), step):
        part = slice(start, start + step)
        value, slopes = _value_and_slopes(logits[0][part].to(dtype), logits[1][part].to(dtype))
        values.append(value)
        if scales is not None:
            scales[part] = _rescale(slopes)
        for side, slope in zip(logits, slopes):
            side[part] = slope
    return torch.cat(values), scales


def _rescale(slopes: Tuple[Tensor, Tensor]) -> Tensor:
    """(rows,) the factors by which both gradients have been multiplied, in place, to be stored in fp16."""
    scale = scale_for(torch.maximum(*(slope.abs().amax(dim=-1) for slope in slopes)))
    for slope in slopes:
        slope.mul_(scale.unsqueeze(-1))
    return scale


def _value_and_slopes(first: Tensor, second: Tensor) -> Tuple[Tensor, Tuple[Tensor, Tensor]]:
    """(rows,) values of (rows, vocab) logits, and the derivatives with respect to both.

    With r = log p1 - log p2: d/dz1 = 1/2 [p1 - p2 + p1 (r - sum p1 r)], and the same with the sides exchanged.
    """
    lprobs = torch.log_softmax(first, dim=-1), torch.log_softmax(second, dim=-1)
    p1, p2 = lprobs[0].exp(), lprobs[1].exp()
    ratio = lprobs[0] - lprobs[1]
    gap = p1 - p2
    value = torch.einsum("nv,nv->n", gap, ratio)  # no summand is negative
    if not torch.isfinite(value.sum()):  # symbols that the student itself masks have -inf on both sides
        ratio.masked_fill_(torch.isneginf(lprobs[0]) & torch.isneginf(lprobs[1]), 0.0)
        value = torch.einsum("nv,nv->n", gap, ratio)
    of_first = torch.einsum("nv,nv->n", p1, ratio).unsqueeze(-1)
    of_second = torch.einsum("nv,nv->n", p2, ratio).unsqueeze(-1)
    slope_1 = p1.mul_(ratio - of_first).add_(gap).mul_(0.5)
    slope_2 = p2.mul_(of_second - ratio).sub_(gap).mul_(0.5)
    return 0.5 * value, (slope_1, slope_2)
