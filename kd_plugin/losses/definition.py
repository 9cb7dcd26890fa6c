"""The reference definition of the loss, differentiated by autograd. Tests check the engine against it, and the engine
falls back to it for rows with infinite logits."""

from typing import Any, Dict, NamedTuple, Tuple

import torch
from torch import Tensor

from kd_plugin.losses.divergences import DIVERGENCES
from kd_plugin.losses.ranking import top1_rank
from kd_plugin.losses.sparse import Knowledge, SparseAnswer, sparse_divergence

# columns of a row's terms: sums over the vocabulary in nats, except AGREE, which is 0 or 1
CE, NLL, KD, RANK, TEACHER_NLL, AGREE = range(6)
N_TERMS = 6


class Objective(NamedTuple):
    """The loss to compute for each row: alpha CE + (1 - alpha) temperature**2 (KD + RANK).

    parameters: of the divergence, where they differ from the defaults
    top1_rank:  the k of the ranking term; 0: off
    """

    alpha: float
    temperature: float = 1.0
    label_smoothing: float = 0.0
    divergence: str = "forward_kl"
    parameters: Dict[str, float] = {}
    top1_rank: int = 0

    def total(self, terms: Tensor) -> Tensor:
        """The loss of (..., N_TERMS) terms. A term with weight 0 is ignored, even if it is infinite."""
        teacher_weight = (1.0 - self.alpha) * self.temperature**2
        if self.alpha == 0.0:
            return teacher_weight * (terms[..., KD] + terms[..., RANK])
        if self.alpha == 1.0:
            return terms[..., CE] * 1.0
        return self.alpha * terms[..., CE] + teacher_weight * (terms[..., KD] + terms[..., RANK])

    def divergence_parameters(self) -> Dict[str, float]:
        """The parameters that the divergence takes, with its defaults filled in."""
        defaults = DIVERGENCES[self.divergence].parameters
        return {name: self.parameters.get(name, default) for name, default in defaults.items()}


def accumulation_dtype(student_logits: Tensor, teacher_logits: Any) -> torch.dtype:
    """float64 if an input is float64, else fp32: a KL summed in bf16 came out negative, in fp16 twice too large."""
    dtypes = (student_logits.dtype, None if teacher_logits is None else teacher_logits.dtype)
    return torch.float64 if torch.float64 in dtypes else torch.float32


def row_terms(student_logits: Tensor, teacher_logits: Knowledge, target: Tensor, objective: Objective) -> Tensor:
    """(tokens, N_TERMS) of (tokens, vocab) logits, differentiable in the student's.

    teacher_logits: (tokens, vocab); a SparseAnswer, for which RANK and TEACHER_NLL are unknown and set to 0; or None
        for rows that are not distilled, whose KD and RANK are 0
    """
    dtype = accumulation_dtype(student_logits, teacher_logits)
    student_logits = student_logits.to(dtype)
    lprobs = torch.log_softmax(student_logits, dim=-1)
    index = target.unsqueeze(-1)
    nll = ce = -lprobs.gather(-1, index).squeeze(-1)
    if objective.label_smoothing > 0:
        eps_i = objective.label_smoothing / (lprobs.size(-1) - 1)
        ce = (1.0 - objective.label_smoothing - eps_i) * nll - eps_i * lprobs.sum(dim=-1)
    zero = torch.zeros_like(nll)
    if teacher_logits is None:
        return torch.stack([ce, nll, zero, zero, zero, zero], dim=-1)

    best, parameters = student_logits.argmax(-1), objective.divergence_parameters()
    student_lprobs = torch.log_softmax(student_logits / objective.temperature, dim=-1)
    if isinstance(teacher_logits, SparseAnswer):
        kd = sparse_divergence(student_lprobs, teacher_logits, objective.divergence, **parameters)
        return torch.stack([ce, nll, kd, zero, zero, (best == teacher_logits.ids[:, 0]).to(dtype)], dim=-1)
    teacher_logits = teacher_logits.detach().to(dtype)
    teacher_nll = -torch.log_softmax(teacher_logits, dim=-1).gather(-1, index).squeeze(-1)
    agree = (best == teacher_logits.argmax(-1)).to(dtype)
    teacher_lprobs = torch.log_softmax(teacher_logits / objective.temperature, dim=-1)
    kd = DIVERGENCES[objective.divergence](student_lprobs, teacher_lprobs, **parameters)
    rank = zero
    if objective.top1_rank > 0:
        rank = top1_rank(student_lprobs, teacher_lprobs, objective.top1_rank)
    return torch.stack([ce, nll, kd, rank, teacher_nll, agree], dim=-1)


def terms_by_definition(
    student_logits: Tensor, teacher_logits: Knowledge, target: Tensor, objective: Objective
) -> Tuple[Tensor, Tensor]:
    """(tokens, N_TERMS) and d loss / d student_logits, in the accumulation dtype."""
    dtype = accumulation_dtype(student_logits, teacher_logits)
    with torch.enable_grad():
        leaf = student_logits.detach().to(dtype).requires_grad_()
        terms = row_terms(leaf, teacher_logits, target, objective)
        (gradient,) = torch.autograd.grad(objective.total(terms).sum(), leaf)
    return terms.detach(), gradient
