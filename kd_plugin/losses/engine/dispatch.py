"""Turns terms into a loss for autograd: which rows, which kernel, where the gradient goes."""

import logging
from functools import lru_cache
from importlib import import_module
from typing import Any, Callable, List, Optional, Tuple

import torch
from torch import Tensor

from kd_plugin.errors import KDPluginError
from kd_plugin.losses.answer import TeacherAnswer
from kd_plugin.losses.definition import CE, N_TERMS, NLL, TEACHER_NLL, Objective
from kd_plugin.losses.engine.memory import new_buffer
from kd_plugin.losses.engine.one_pass import one_pass, rows_per_chunk
from kd_plugin.losses.engine.ranked import ranking
from kd_plugin.losses.engine.storage import new_scales
from kd_plugin.losses.sparse import Knowledge

logger = logging.getLogger(__name__)


def row_losses(
    student_logits: Tensor,
    teacher_logits: Knowledge,
    target: Tensor,
    objective: Objective,
    *,
    rows: Optional[Tensor] = None,
    teacher_rows: Optional[Tensor] = None,
    gradient: Optional[Tensor] = None,
    scales: Optional[Tensor] = None,
) -> Tensor:
    """`one_pass` by the fastest implementation for the device: same arguments, same results."""
    vocab = student_logits.size(-1)
    # compiled code would read and write out of bounds; on a GPU this check would make the host wait
    if not target.is_cuda and target.numel() > 0 and not 0 <= int(target.min()) <= int(target.max()) < vocab:
        raise KDPluginError(
            f"targets {int(target.min())} … {int(target.max())} are outside the vocabulary, 0 … {vocab - 1}. Remedy: "
            "padding_idx for rows to ignore"
        )
    kernels = compiled_kernels(student_logits, teacher_logits, objective)
    which = dict(rows=rows, teacher_rows=teacher_rows, gradient=gradient, scales=scales)
    with torch.no_grad(), torch.autocast(device_type=student_logits.device.type, enabled=False):
        if kernels is None:
            return one_pass(student_logits, teacher_logits, target, objective, **which)
        if objective.top1_rank == 0 or not isinstance(teacher_logits, Tensor):
            return kernels.one_pass(student_logits, teacher_logits, target, objective, **which)
        ranked = ranking(student_logits, teacher_logits, rows, teacher_rows, target.numel(), objective)
        return kernels.one_pass(student_logits, teacher_logits, target, objective, ranked=ranked, **which)


def compiled_kernels(student_logits: Tensor, teacher_logits: Knowledge, objective: Objective) -> Any:
    """The kernel module for the device if its compiler is installed and it supports the objective, else None."""
    kernels = kernels_for("cuda" if student_logits.is_cuda else "cpu")
    return kernels if kernels is not None and kernels.supports(student_logits, teacher_logits, objective) else None


@lru_cache(maxsize=None)
def kernels_for(device_type: str) -> Any:
    """triton.kernels for "cuda", kernels_numba for "cpu", None if Triton or Numba is not installed."""
    name = {"cuda": "triton.kernels", "cpu": "kernels_numba"}[device_type]
    try:
        return import_module(f"kd_plugin.losses.engine.{name}")
    except ImportError:
        return None
    except RuntimeError as error:  # Numba finds no folder for its cache
        logger.warning(f"{name}: {error}; using slower PyTorch code. Remedy: set NUMBA_CACHE_DIR to a writable folder")
        return None


class StudentLogits:
    """A student's logits for a batch, and the rows of them that count.

    Args:
        logits: (all, vocab)
        rows: (tokens,) ascending positions of the rows that count
        other_rows: the positions of the other rows, whose gradient is 0
        inplace: overwrite the logits with the gradient
    """

    def __init__(self, logits: Tensor, rows: Tensor, other_rows: Tensor, inplace: bool = False):
        self.logits, self.rows, self.other_rows, self.inplace = logits, rows, other_rows, inplace

    def detached(self) -> "StudentLogits":
        """The same logits without gradient, never overwritten."""
        return StudentLogits(self.logits.detach(), self.rows, self.other_rows)

    def token_nll(self, target: Tensor) -> Tensor:
        """(tokens,) cross-entropy of each row that counts, without gradient."""
        return row_losses(self.logits, None, target, Objective(alpha=1.0), rows=self.rows)[:, NLL]

    def loss(
        self,
        answer: Optional[TeacherAnswer],
        target: Tensor,
        objective: Objective,
        *,
        distilled: Optional[Tensor] = None,
        alone: Optional[Tensor] = None,
        alone_weight: float = 1.0,
        unlabelled: Optional[Tensor] = None,
        teacher_rows: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Tensor]:
        """The loss summed over the rows that count.

        Args:
            answer: the teacher's, for each row to distil; None: cross-entropy alone
            target: (tokens,)
            distilled: (tokens,) bool, the rows to distil; None: all. Other rows get alpha times their cross-entropy
            alone: (tokens,) bool, those of the other rows that get alone_weight times it instead; None: none
            unlabelled: (tokens,) bool, the rows whose target is unknown: alpha is 0 for them; None: none
            teacher_rows: ascending positions of the distilled rows in the answer's logits; None: all of them, in order

        Returns:
            (0-dim loss, with a gradient if the logits require one; (tokens, N_TERMS) terms)
        """
        logits, gradient, scales = self.logits, None, None
        if torch.is_grad_enabled() and logits.requires_grad:
            # detach(), not .data: autograd then raises an error if another backward needs the overwritten logits
            gradient = logits.detach() if self.inplace else new_buffer(logits.shape, logits.dtype, logits.device)
            scales = new_scales(gradient)

        def terms_of(chosen: Any, answer: Optional[TeacherAnswer], objective: Objective) -> Tensor:
            rows, wanted = (self.rows, target) if chosen is None else (self.rows[chosen], target[chosen])
            everything = slice(0, rows.numel())
            terms = []
            for part, teacher in (
                [(everything, None)] if answer is None else answer.pieces(rows.numel(), logits.size(1))
            ):
                terms.append(
                    row_losses(
                        logits,
                        teacher,
                        wanted[part],
                        objective,
                        rows=None if wanted[part].numel() == logits.size(0) else rows[part],
                        teacher_rows=None if teacher is None else teacher_rows,
                        gradient=gradient,
                        scales=scales,
                    )
                )
                del teacher  # free it before the next piece is computed
            return terms[0] if len(terms) == 1 else torch.cat(terms)

        if unlabelled is None:
            loss, terms = in_groups(terms_of, answer, objective, distilled, alone, alone_weight)
        else:
            loss, terms = with_unlabelled(terms_of, answer, objective, distilled, alone, alone_weight, unlabelled)
        if gradient is not None:
            gradient.index_fill_(0, self.other_rows, 0)
            loss = GradientInHand.apply(loss, scales, logits, gradient)
        return loss, terms


def in_groups(
    terms_of: Callable[[Any, Any, Objective], Tensor],
    teacher: Any,
    objective: Objective,
    distilled: Optional[Tensor],
    alone: Optional[Tensor],
    alone_weight: float,
) -> Tuple[Tensor, Tensor]:
    """The loss and (tokens, N_TERMS) terms by calling terms_of(mask, teacher, objective) for each group of tokens.

    Args:
        distilled, alone, alone_weight: as for `StudentLogits.loss`. A mask of None means all tokens; tokens that are
            not distilled get no teacher, None
    """
    if distilled is None:
        terms = terms_of(None, teacher, objective)
        return objective.total(terms.sum(dim=0)), terms
    groups = [(distilled, teacher, objective), (~distilled, None, objective)]
    if alone is not None:
        groups = [
            groups[0],
            (~distilled & ~alone, None, objective),
            (alone, None, objective._replace(alpha=alone_weight)),
        ]
    parts = [terms_of(*group) for group in groups]
    terms = parts[0].new_empty(distilled.numel(), N_TERMS)
    for (mask, _, _), part in zip(groups, parts):
        terms[mask] = part.to(terms.dtype)
    if alone is None:
        return objective.total(terms.sum(dim=0)), terms
    return objective.total(terms[~alone].sum(dim=0)) + alone_weight * terms[alone, CE].sum(), terms


def with_unlabelled(
    terms_of: Callable[[Any, Any, Objective], Tensor],
    teacher: Optional[TeacherAnswer],
    objective: Objective,
    distilled: Optional[Tensor],
    alone: Optional[Tensor],
    alone_weight: float,
    unlabelled: Tensor,
) -> Tuple[Tensor, Tensor]:
    """As `in_groups`, where some targets are unknown: alpha is 0 for them, and their terms have no cross-entropy.

    Args:
        unlabelled: (tokens,) bool, these rows
    """
    every = torch.ones_like(unlabelled)
    taught = (every if distilled is None else distilled) if teacher is not None else ~every
    free = objective._replace(alpha=0.0)
    groups: List[Tuple[Tensor, Optional[TeacherAnswer], Objective]] = [
        (~taught & ~unlabelled, None, objective),
        (~taught & unlabelled, None, free),
    ]
    if alone is not None:
        lonely = alone & ~taught & ~unlabelled
        groups[0] = (groups[0][0] & ~lonely, None, objective)
        groups.append((lonely, None, objective._replace(alpha=alone_weight)))
    if teacher is not None:
        known = ~unlabelled[taught]
        groups.append((taught & ~unlabelled, teacher.take(known), objective))
        groups.append((taught & unlabelled, teacher.take(~known), free))
    terms: Optional[Tensor] = None
    total: Any = 0.0
    for mask, its_teacher, its_objective in groups:
        part = terms_of(mask, its_teacher, its_objective)
        terms = part.new_zeros(len(mask), N_TERMS) if terms is None else terms
        terms[mask] = part.to(terms.dtype)
        total = total + its_objective.total(part.sum(dim=0))
    assert terms is not None
    for column in (CE, NLL, TEACHER_NLL):
        terms[unlabelled, column] = 0.0
    return total, terms


class GradientInHand(torch.autograd.Function):
    """A loss whose gradients are already computed: backward only scales them."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, scales: Optional[Tensor], *inputs_and_gradients: Tensor) -> Tensor:
        """The arguments are the inputs, then as many gradients: gradients[i] is d loss / d inputs[i].

        scales: None, or the factors by which the rows of every gradient have been multiplied
        """
        half = len(inputs_and_gradients) // 2
        ctx.gradients, ctx.scales = inputs_and_gradients[half:], scales
        ctx.dtypes = [tensor.dtype for tensor in inputs_and_gradients[:half]]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        if (
            torch.is_grad_enabled()
        ):  # create_graph=True; once_differentiable would miss it, because grad_outputs are constant
            raise KDPluginError(
                "the distillation loss has no second derivatives. Remedy: the definitions in divergences.py"
            )
        if ctx.gradients is None:
            raise RuntimeError("second backward through a distillation loss whose gradient has been handed over")
        gradients = ctx.gradients
        if _graph_is_kept():
            gradients = [gradient.clone() for gradient in gradients]
        else:
            ctx.gradients = None
        for gradient in gradients:
            scale_(gradient, grad_outputs[0], ctx.scales)
        gradients = [gradient.to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes)]
        return (None, None, *gradients, *[None] * len(gradients))


def _graph_is_kept() -> bool:
    """Whether backward may run again (retain_graph=True)."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if asked is None else bool(asked())


def scale_(gradient: Tensor, factor: Tensor, scales: Optional[Tensor] = None) -> None:
    """gradient *= factor, a 0-dim tensor on the same device, in fp32 and without waiting for that device.

    scales: (rows,) fp32 by which to divide each row of the gradient
    """
    if gradient.is_cuda:
        kernels = kernels_for("cuda")
        if kernels is not None:
            kernels.scale_(gradient, factor, scales)
            return
    elif scales is None and factor.item() == 1.0:  # the usual case; on a CPU .item() waits for nothing
        return
    if gradient.dtype in (torch.float32, torch.float64):
        gradient.mul_(factor)
        return
    step = rows_per_chunk(gradient.size(-1), torch.float32, gradient.device)
    factors = factor if scales is None else (factor / scales).unsqueeze(-1)
    for start in range(0, gradient.size(0), step):  # a factor rounded to bf16 would be off by up to 0.4 %
        rows = gradient[start : start + step]
        rows.copy_(rows.float() * (factors if scales is None else factors[start : start + step]))
