"""One chunk of rows in the PyTorch form of the one-pass engine: its terms and, in place, its gradient."""

import math
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from kd_plugin.losses.definition import KD, RANK, TEACHER_NLL, Objective, terms_by_definition
from kd_plugin.losses.divergences import DIVERGENCES, Slope
from kd_plugin.losses.engine.memory import ChunkBuffers
from kd_plugin.losses.engine.rows import Rows, Side
from kd_plugin.losses.ranking import top1_rank_slope
from kd_plugin.losses.sparse import SMALL_MASS, Knowledge, SparseAnswer, sparse_slope


class Student(NamedTuple):
    """A chunk's results for the cross-entropy, (rows, 1) each."""

    total: Tensor  # sum_v exp(centred)
    centred_at_target: Tensor
    centred_sum: Tensor  # for label smoothing


class Distilled(NamedTuple):
    """A chunk's results for the teacher's terms, (rows, 1) each."""

    kd: Tensor
    rank: Tensor
    teacher_nll: Tensor
    agree: Tensor


Chunk = Tuple[Student, Optional[Distilled]]


def one_chunk(
    student_logits: Tensor,
    teacher_logits: Knowledge,
    target: Tensor,
    objective: Objective,
    work: Tensor,
    want_gradient: bool,
    memory: ChunkBuffers,
) -> Chunk:
    """Computes one chunk of rows. `work` (rows, vocab) may be student_logits itself, and ends up with the gradient."""
    alpha, temperature, eps = objective.alpha, objective.temperature, objective.label_smoothing
    index = target.unsqueeze(-1)
    plain, best = _side(student_logits, work, memory.take())
    at_target = work.gather(-1, index)
    sums = Student(plain.total, at_target, work.sum(dim=-1, keepdim=True) if eps > 0 else at_target)
    gradient = work
    if teacher_logits is None:
        distilled = None
        if want_gradient:
            torch.mul(plain.exp, alpha / plain.total, out=gradient)
    elif isinstance(teacher_logits, SparseAnswer):
        student = plain
        if temperature != 1.0:
            spare = memory.take() if want_gradient and alpha > 0 else plain.exp
            student = _temper(plain, best, temperature, spare)
        distilled = _sparse(student, plain, best, teacher_logits, objective, gradient if want_gradient else None)
    else:
        teacher, teacher_best = _side(teacher_logits, memory.take(), memory.take())
        teacher_nll = teacher.total.log() - teacher.centred.gather(-1, index)
        student = plain
        if temperature != 1.0:
            spare = memory.take() if want_gradient and alpha > 0 else plain.exp
            student = _temper(plain, best, temperature, spare)
            teacher = _temper(teacher, teacher_best, temperature, teacher.exp)
        rows = Rows(student, teacher, memory.take)
        rank, rank_slope = _rank(rows, objective)
        kd, slope = _divergence(rows, objective)
        distilled = Distilled(kd.unsqueeze(-1), rank, teacher_nll, best == teacher_best)
        if not math.isfinite(kd.sum().item()):
            # -inf or NaN among the logits: too rare to be worth a where() in every pass; the definition handles them
            terms, exact = terms_by_definition(student.centred * temperature, teacher_logits, target, objective)
            gradient.copy_(exact)
            kd, rank, teacher_nll = (terms[:, column : column + 1] for column in (KD, RANK, TEACHER_NLL))
            return sums, Distilled(kd, rank, teacher_nll, best == teacher_best)
        if want_gradient:
            _teachers_gradient(student, plain, slope, rank_slope, objective, gradient)
    if want_gradient and alpha > 0:
        # minus the smoothed one-hot target
        eps_i = eps / (work.size(-1) - 1)
        if eps > 0:
            gradient.sub_(alpha * eps_i)
        gradient.scatter_add_(-1, index, torch.full_like(at_target, -alpha * (1.0 - eps - eps_i)))
    return sums, distilled


def _side(logits: Tensor, centred: Tensor, exp: Tensor) -> Tuple[Side, Tensor]:
    """The softmax's parts, in the two buffers, and the index of the best entry, (rows, 1)."""
    if logits.dtype != centred.dtype:
        logits = centred.copy_(logits)
    if logits.is_cuda:
        best = logits.argmax(dim=-1, keepdim=True)
    else:  # torch's argmax takes ten times as long as numpy's, which is as fast as a maximum
        best = torch.from_numpy(logits.numpy().argmax(axis=-1)).unsqueeze(-1)
    torch.sub(logits, logits.gather(-1, best), out=centred)
    return Side(centred, exp, _exp_and_total(centred, best, exp)), best


def _temper(side: Side, best: Tensor, temperature: float, exp: Tensor) -> Side:
    """The same side at another temperature: centred in place, the exponentials in `exp`."""
    centred = side.centred.div_(temperature)
    return Side(centred, exp, _exp_and_total(centred, best, exp))


def _exp_and_total(centred: Tensor, best: Tensor, exp: Tensor) -> Tensor:
    """(rows, 1) sum_v exp(centred); writes the terms to `exp`.

    Adds the best entry's term, 1, last: beside it, tens of thousands of small terms would lose their last bits.
    """
    total = torch.exp(centred, out=exp).scatter_(-1, best, 0.0).sum(dim=-1, keepdim=True).add_(1.0)
    exp.scatter_(-1, best, 1.0)
    return total


def _sparse(
    student: Side, plain: Side, best: Tensor, answer: SparseAnswer, objective: Objective, gradient: Optional[Tensor]
) -> Distilled:
    """The terms of a sparse answer; writes the same share of the gradient as `_teachers_gradient`.

    With h the slope, d/d(logits / temperature) is h - p sum h for an entry and p / p_rest h_rest - p sum h for a symbol
    in the bucket.
    """
    ids, log_total = answer.ids, student.total.log()
    of_entries = student.exp.gather(-1, ids)
    lprobs = student.centred.gather(-1, ids) - log_total
    rest, origin = torch.zeros_like(student.total), torch.zeros_like(student.total)
    if not answer.sampled:
        again = ids[:, 1:] == ids[:, :1]  # cache.compress.unknown repeats one symbol k times
        of_entries[:, 1:].masked_fill_(again, 0.0)
        lprobs[:, 1:].masked_fill_(again, -math.inf)
        rest, origin = _rest(student, ids)
    kd, slope = sparse_slope(
        lprobs, origin + rest.log() - log_total, answer, objective.divergence, **objective.divergence_parameters()
    )
    if gradient is not None:
        weight, ce_weight = (1.0 - objective.alpha) * objective.temperature, objective.alpha
        shrink = origin.exp()
        norm = -slope.total * shrink / student.total
        at_entries = weight * slope.entries
        if not answer.sampled:  # student.exp is 0 there
            norm = norm + torch.where(rest > 0, slope.rest / rest, torch.zeros_like(rest))
            at_entries = at_entries - weight * slope.total * of_entries / student.total
        if student is plain:
            torch.mul(student.exp, weight * norm + ce_weight * shrink / plain.total, out=gradient)
            if not answer.sampled:
                at_entries = at_entries + ce_weight * of_entries / plain.total
        else:
            torch.mul(student.exp, weight * norm, out=gradient)
            if ce_weight > 0:
                gradient.addcmul_(plain.exp, ce_weight / plain.total)
        gradient.scatter_add_(-1, ids, at_entries)
    kd = kd if answer.sampled else kd.clamp_(min=0)
    zero = torch.zeros_like(student.total)
    return Distilled(kd.unsqueeze(-1), zero, zero, best == ids[:, :1])


def _rest(student: Side, ids: Tensor) -> Tuple[Tensor, Tensor]:
    """The mass of all symbols but ids, as rest * exp(origin), both (rows, 1).

    Leaves the terms of rest in student.exp: 0 at ids, exp(centred - origin) elsewhere. origin is usually 0, the best
    entry's centred value. If the other symbols are so far below that they underflow, origin is their own maximum.
    """
    # summed without ids: a small rest computed as a difference would be inexact
    rest = student.exp.scatter_(-1, ids, 0.0).sum(dim=-1, keepdim=True)
    origin = torch.zeros_like(rest)
    small = (rest < SMALL_MASS).squeeze(-1)
    if bool(small.any()):
        centred = student.centred[small].scatter_(-1, ids[small], -math.inf)
        own = centred.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(rest.dtype).min)  # -inf: no other symbols
        exps = centred.sub_(own).exp_()
        student.exp[small], rest[small], origin[small] = exps, exps.sum(dim=-1, keepdim=True), own
    return rest, origin


def _rank(rows: Rows, objective: Objective) -> Tuple[Tensor, Optional[Tuple[Tensor, Tensor]]]:
    """(rows, 1) the ranking term, and (indices, slope) of its non-zero derivatives with respect to log p."""
    if objective.top1_rank == 0:
        return torch.zeros_like(rows.student.total), None
    values, indices, slope = top1_rank_slope(rows.student.probs(), rows.teacher.probs(), objective.top1_rank)
    return values.unsqueeze(-1), (indices, slope)


def _divergence(rows: Rows, objective: Objective) -> Tuple[Tensor, Slope]:
    """(rows,) the divergence, and its slope with respect to log p."""
    divergence = DIVERGENCES[objective.divergence]
    parameters = objective.divergence_parameters()
    if divergence.one_pass is not None:
        value, slope = divergence.one_pass(rows, **parameters)
        return value.clamp_(min=0), slope  # a hair below 0 is rounding; NaN stays NaN
    student_lprobs, teacher_lprobs = (
        torch.sub(side.centred, side.total.log(), out=rows.buffer()) for side in (rows.student, rows.teacher)
    )
    with torch.enable_grad():
        student_lprobs.requires_grad_()
        value = divergence.definition(student_lprobs, teacher_lprobs, **parameters)
        (values,) = torch.autograd.grad(value.sum(), student_lprobs)
    return value.detach().clamp_(min=0), Slope(values, values.sum(dim=-1, keepdim=True))


def _teachers_gradient(
    student: Side,
    plain: Side,
    slope: Slope,
    rank_slope: Optional[Tuple[Tensor, Tensor]],
    objective: Objective,
    gradient: Tensor,
) -> None:
    """Writes (1 - alpha) temperature**2 d(KD + RANK)/d logits + alpha p, with p at temperature 1.

    With h the slope with respect to log p, d/d(logits / temperature) = h - p sum_v h. Only the target's share of the
    cross-entropy is missing.
    """
    alpha, temperature = objective.alpha, objective.temperature
    weight = (1.0 - alpha) * temperature
    torch.mul(slope.values, slope.scale * weight, out=gradient)
    total = slope.total
    if rank_slope is not None:
        indices, values = rank_slope
        gradient.scatter_add_(-1, indices, values * weight)
        total = total + values.sum(dim=-1, keepdim=True)
    probs, norm = student.unscaled_probs()
    if temperature == 1.0:
        gradient.addcmul_(probs, norm * (alpha - weight * total))
        return
    gradient.addcmul_(probs, norm * (-weight * total))
    if alpha > 0:
        gradient.addcmul_(plain.exp, alpha / plain.total)
