"""From terms to a loss that autograd knows: which rows, which kernel, where the gradient goes."""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from kd_plugin.losses.definition import N_TERMS, Objective, accumulation_dtype
from kd_plugin.losses.one_pass import gradient_scale, one_pass, rows_per_chunk


def row_losses(
    student_logits: Tensor,
    teacher_logits: Optional[Tensor],
    target: Tensor,
    objective: Objective,
    *,
    rows: Optional[Tensor] = None,
    teacher_rows: Optional[Tensor] = None,
    gradient: Optional[Tensor] = None,
) -> Tensor:
    """`one_pass` by the fastest means for the device: the same arguments, the same results."""
    kernels = triton_kernels(student_logits, teacher_logits, objective)
    run = kernels.one_pass if kernels is not None else one_pass
    with torch.no_grad(), torch.autocast(device_type=student_logits.device.type, enabled=False):
        return run(
            student_logits, teacher_logits, target, objective, rows=rows, teacher_rows=teacher_rows, gradient=gradient
        )


def triton_kernels(student_logits: Tensor, teacher_logits: Optional[Tensor], objective: Objective) -> Any:
    """The module of GPU kernels where CUDA and Triton are there and it knows the objective, else None."""
    if not student_logits.is_cuda:
        return None
    try:
        from kd_plugin.losses import kernels_triton
    except ImportError:
        return None
    return kernels_triton if kernels_triton.supports(student_logits, teacher_logits, objective) else None


def loss_over_rows(
    student_logits: Tensor,
    teacher_logits: Optional[Tensor],
    target: Tensor,
    objective: Objective,
    *,
    rows: Tensor,
    other_rows: Tensor,
    teacher_rows: Optional[Tensor] = None,
    distilled: Optional[Tensor] = None,
    inplace: bool = False,
) -> Tuple[Tensor, Tensor]:
    """The loss summed over some rows of a batch of logits.

    Args:
        student_logits: (all, vocab)
        teacher_logits: (any, vocab), the teacher's answer for each row to distil; None: cross-entropy alone
        target: (tokens,) for each of `rows`
        rows: (tokens,) ascending positions in student_logits
        other_rows: the positions left out, whose gradient is 0
        teacher_rows: positions in teacher_logits for the rows to distil; None: all of them in order
        distilled: (tokens,) bool, the rows to distil; None: all. The others keep their cross-entropy
        inplace: write the gradient over student_logits

    Returns:
        (loss, 0-dim, with gradient; (N_TERMS,) sums of the terms)
    """
    gradient = None
    if torch.is_grad_enabled() and student_logits.requires_grad:
        # detached, not .data: whoever else has kept the logits for its own backward then gets autograd's error
        gradient = student_logits.detach() if inplace else torch.empty_like(student_logits)
    parts = []
    if distilled is None:
        groups = [(rows, target, teacher_logits)]
    else:
        groups = [
            (rows[distilled], target[distilled], teacher_logits),
            (rows[~distilled], target[~distilled], None),
        ]
    for group_rows, group_target, group_teacher in groups:
        whole = group_rows.numel() == student_logits.size(0)
        parts.append(
            row_losses(
                student_logits,
                group_teacher,
                group_target,
                objective,
                rows=None if whole else group_rows,
                teacher_rows=teacher_rows if group_teacher is not None else None,
                gradient=gradient,
            )
        )
    dtype = accumulation_dtype(student_logits, teacher_logits)
    sums = sum((part.to(dtype).sum(dim=0) for part in parts), start=student_logits.new_zeros(N_TERMS, dtype=dtype))
    loss = objective.total(sums)
    if gradient is not None:
        if other_rows.numel() > 0:
            gradient.index_fill_(0, other_rows, 0)
        loss = GradientInHand.apply(loss, 1.0 / gradient_scale(gradient.dtype), student_logits, gradient)
    return loss, sums


class GradientInHand(torch.autograd.Function):
    """A loss whose gradients were computed with it: backward only scales them."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, factor: float, *inputs_and_gradients: Tensor) -> Tensor:
        """factor * gradients[i] is d loss / d inputs[i]; the inputs come first, then as many gradients."""
        half = len(inputs_and_gradients) // 2
        ctx.gradients, ctx.factor = inputs_and_gradients[half:], factor
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        if ctx.gradients is None:
            raise RuntimeError("backward a second time through a distillation loss whose gradient was given away")
        factor = grad_outputs[0] * ctx.factor
        gradients = ctx.gradients
        if _graph_is_kept():
            gradients = [gradient.clone() for gradient in gradients]
        else:
            ctx.gradients = None
        for gradient in gradients:
            scale_(gradient, factor)
        return (None, None, *gradients, *[None] * len(gradients))


def _graph_is_kept() -> bool:
    """Whether backward may come again (retain_graph=True)."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if asked is None else bool(asked())


def scale_(gradient: Tensor, factor: Tensor) -> None:
    """gradient *= factor, a 0-dim tensor on its device, in fp32 and without waiting for that device."""
    if gradient.is_cuda:
        try:
            from kd_plugin.losses import kernels_triton
        except ImportError:
            pass
        else:
            kernels_triton.scale_(gradient, factor)
            return
    elif factor.item() == 1.0:  # the usual case, and on a CPU nothing waits
        return
    if gradient.dtype in (torch.float32, torch.float64):
        gradient.mul_(factor)
        return
    step = rows_per_chunk(gradient.size(-1), torch.float32, gradient.device)
    for rows in gradient.split(step):  # a factor rounded to bf16 would be off by up to 0.4 %
        rows.copy_(rows.float() * factor)
