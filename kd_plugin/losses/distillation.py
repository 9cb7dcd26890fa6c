"""`distillation_loss`: label-smoothed cross-entropy and a teacher-student divergence over the same target tokens."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from kd_plugin.losses.answer import TeacherAnswer
from kd_plugin.losses.checks import check_inplace, check_tensors, checked_objective
from kd_plugin.losses.definition import CE, KD, NLL, RANK, Objective
from kd_plugin.losses.engine.dispatch import StudentLogits


class DistillationLoss(NamedTuple):
    """Four 0-dim tensors in nats, each a SUM over the non-padding target tokens.

    loss:     alpha * ce_loss + (1 - alpha) * temperature**2 * kd_loss; the only one that carries a gradient
    ce_loss:  cross-entropy with label smoothing, as fairseq defines it
    nll_loss: cross-entropy without label smoothing
    kd_loss:  divergence of the tempered distributions (plus the ranking term, if requested), before weighting by
              alpha and temperature**2
    """

    loss: Tensor
    ce_loss: Tensor
    nll_loss: Tensor
    kd_loss: Tensor


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    alpha: float,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    divergence: str = "forward_kl",
    padding_idx: Optional[int] = None,
    js_beta: float = 0.5,
    skew_lambda: float = 0.1,
    adaptive_mu: float = 0.5,
    top1_rank: int = 0,
    inplace: bool = False,
) -> DistillationLoss:
    """alpha * CE(label-smoothed) + (1 - alpha) * temperature**2 * D(teacher || student).

    alpha weights the cross-entropy: 1 is plain fairseq training, 0 uses the teacher alone. temperature**2 keeps the
    size of the gradient when the temperature changes (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    This call computes both loss and gradient in one pass over the rows, with O(tokens) memory beyond the gradient. It
    works under autocast and loss scaling, and has no second derivatives.

    Args:
        student_logits: (tokens, vocab), vocab >= 2, unnormalised; fp16, bf16, fp32 or float64
        teacher_logits: (tokens, vocab), unnormalised, of any of these dtypes; -inf masks a vocabulary entry
        target: (tokens,) int64 indices of the reference tokens
        alpha: weight of the cross-entropy, in [0, 1]
        temperature: from 1e-6 to 1e6; divides both sides' logits, in the divergence only
        label_smoothing: epsilon in [0, 1), distributed as in fairseq's label_smoothed_cross_entropy
        divergence: a name in `kd_plugin.losses.DIVERGENCES`
        padding_idx: rows with this target are dropped before any softmax; None keeps every row
        js_beta: for js, in (0, 1): the teacher's weight; 0.5 is the symmetric divergence
        skew_lambda: for skew_forward_kl and skew_reverse_kl, in (0, 1)
        adaptive_mu: for adaptive_kl, in (0, 1): the probability mass of the teacher's head
        top1_rank: k > 0 adds TIE-KD's ranking term over the k best entries of both sides to the divergence
        inplace: overwrite student_logits with the gradient; nothing else may need their values. Otherwise the
            gradient takes a buffer of the same size

    Returns:
        DistillationLoss of fp32 scalars (float64 if an input is float64). If every row is padding, the scalars and
        the gradient are 0.

    Raises:
        KDPluginError: mismatched shapes, dtypes or devices, a parameter out of range, an unknown divergence, tensors
            without values or inside a torch.func transform
    """
    parameters = {"js_beta": js_beta, "skew_lambda": skew_lambda, "adaptive_mu": adaptive_mu}
    objective = checked_objective(Objective(alpha, temperature, label_smoothing, divergence, parameters, top1_rank))
    check_tensors(student_logits, teacher_logits, target, objective.top1_rank)
    if inplace and student_logits.requires_grad and torch.is_grad_enabled():
        check_inplace(student_logits, teacher_logits)
    # dropped, not multiplied by 0: a padded row may hold anything, and NaN times 0 is NaN
    kept = torch.ones_like(target, dtype=torch.bool) if padding_idx is None else target.ne(padding_idx)
    rows, other_rows = (mask.nonzero(as_tuple=True)[0] for mask in (kept, ~kept))
    loss, terms = StudentLogits(student_logits, rows, other_rows, inplace).loss(
        TeacherAnswer(teacher_logits.detach()),
        target[rows],
        objective,
        teacher_rows=rows if other_rows.numel() > 0 else None,
    )
    sums = terms.sum(dim=0)
    return DistillationLoss(loss, sums[CE], sums[NLL], sums[KD] + sums[RANK])
