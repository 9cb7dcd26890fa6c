"""`distillation_loss`: label-smoothed cross-entropy and a teacher-student divergence over the same target tokens."""

import math
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from kd_plugin.errors import KDPluginError
from kd_plugin.losses.divergences import DIVERGENCES


class DistillationLoss(NamedTuple):
    """Four 0-dim tensors in nats, each a SUM over the target tokens that are not padding.

    loss:     alpha * ce_loss + (1 - alpha) * temperature**2 * kd_loss; the only one that carries a gradient
    ce_loss:  cross-entropy with label smoothing, as fairseq defines it
    nll_loss: cross-entropy without label smoothing
    kd_loss:  divergence of the tempered distributions, before alpha and temperature**2
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
) -> DistillationLoss:
    """alpha * CE(label-smoothed) + (1 - alpha) * temperature**2 * D(teacher || student).

    alpha weighs the cross-entropy: 1 is plain fairseq training, 0 listens to the teacher alone. temperature**2 keeps
    the size of the gradient when the temperature changes (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    Args:
        student_logits: (tokens, vocab), unnormalised, any float dtype
        teacher_logits: (tokens, vocab), unnormalised, any float dtype; -inf masks a vocabulary entry
        target: (tokens,) int64 indices of the reference tokens
        alpha: weight of the cross-entropy, in [0, 1]
        temperature: > 0; divides both sides' logits in the divergence only
        label_smoothing: epsilon in [0, 1), spread as fairseq's label_smoothed_cross_entropy spreads it
        divergence: a name in `kd_plugin.losses.DIVERGENCES`
        padding_idx: rows with this target are dropped before any softmax; None keeps every row

    Returns:
        DistillationLoss of fp32 scalars (float64 where an input is float64). With no row left they are 0 and the
        gradient is a finite zero.

    Raises:
        KDPluginError: shapes that do not fit, a parameter out of range, an unknown divergence
    """
    _check(student_logits, teacher_logits, target, alpha, temperature, label_smoothing, divergence)
    if padding_idx is not None:
        # dropped first: a padded row may hold anything, and NaN times 0 is NaN
        kept = target.ne(padding_idx).nonzero(as_tuple=True)[0]
        student_logits, teacher_logits, target = student_logits[kept], teacher_logits[kept], target[kept]

    # statistics in fp32 always: a KL in bf16 came out negative, in fp16 twice too large
    dtype = torch.float64 if torch.float64 in (student_logits.dtype, teacher_logits.dtype) else torch.float32
    student_logits, teacher_logits = student_logits.to(dtype), teacher_logits.detach().to(dtype)

    student_lprobs = torch.log_softmax(student_logits, dim=-1)
    nll_loss = -student_lprobs.gather(dim=-1, index=target.unsqueeze(-1)).sum()
    ce_loss = nll_loss
    if label_smoothing > 0:
        eps_i = label_smoothing / (student_lprobs.size(-1) - 1)
        ce_loss = (1.0 - label_smoothing - eps_i) * nll_loss - eps_i * student_lprobs.sum()

    if temperature != 1.0:
        student_lprobs = torch.log_softmax(student_logits / temperature, dim=-1)
    teacher_lprobs = torch.log_softmax(teacher_logits / temperature, dim=-1)
    kd_loss = DIVERGENCES[divergence](student_lprobs, teacher_lprobs).sum()

    loss = alpha * ce_loss + (1.0 - alpha) * temperature**2 * kd_loss
    return DistillationLoss(loss, ce_loss.detach(), nll_loss.detach(), kd_loss.detach())


def _check(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float,
    temperature: float,
    label_smoothing: float,
    divergence: str,
) -> None:
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise KDPluginError(
            "student_logits and teacher_logits must both be (tokens, vocab); got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    if target.shape != student_logits.shape[:1]:
        raise KDPluginError(
            f"target must be (tokens,) = ({student_logits.size(0)},) to fit the logits; got {tuple(target.shape)}"
        )
    if not 0.0 <= alpha <= 1.0:
        raise KDPluginError(f"alpha must lie in [0, 1]: 1 is cross-entropy alone, 0 the teacher alone; got {alpha}")
    if not (temperature > 0.0 and math.isfinite(temperature)):
        raise KDPluginError(f"temperature must be a finite number above 0; got {temperature}")
    if not 0.0 <= label_smoothing < 1.0:
        raise KDPluginError(f"label_smoothing must lie in [0, 1); got {label_smoothing}")
    if divergence not in DIVERGENCES:
        raise KDPluginError(f"divergence {divergence!r} is not one of {', '.join(DIVERGENCES)}")
