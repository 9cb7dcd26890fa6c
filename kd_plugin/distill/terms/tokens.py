"""The term of every training: cross-entropy, divergence and ranking over the same target tokens, in one pass.

    alpha * CE(label-smoothed) + (1 - alpha) * temperature**2 * D(teacher || student)

Word-level knowledge distillation, Kim & Rush 2016 (https://aclanthology.org/D16-1139).
"""

from typing import Any, Dict, List, Optional

import torch
from torch import Tensor

from kd_plugin.distill.logs import PERCENT, Log, LogOfEach
from kd_plugin.distill.student import StudentAnswer
from kd_plugin.distill.terms.base import Batch, Term, TermResult, sentences
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.definition import AGREE, CE, KD, NLL, RANK, TEACHER_NLL, Objective
from kd_plugin.losses.engine.dispatch import StudentLogits
from kd_plugin.teachers.base import DISTRIBUTION, NLL_OF, TEACHER_NLL_OF, TOKENS_OF, Answer, Languages


class TokensTerm(Term):
    """alpha * CE + (1 - alpha) * temperature**2 * D; for rows without a teacher, the cross-entropy with weight 1."""

    name, flag = "tokens", "--kd-alpha"
    uses = DISTRIBUTION
    logs = (
        Log("ce_loss"),
        Log("kd_loss"),
        Log("rank_loss", shown=lambda total, over: total > 0),
        Log("kd_alpha", "n_batches", unit=1.0, round=4),
        Log("kd_temperature", "n_batches", unit=1.0, round=4),
        Log("teacher_nll_loss", "n_distilled"),
        Log("teacher_dropped", "n_dropped_of", unit=1.0, round=5),
        Log("n_truncated", "n_read", PERCENT, 2, "teacher_truncated"),
        Log("n_agree", "n_distilled", PERCENT, 2, "agreement"),
        Log("n_distilled", "n_counted", PERCENT, 2, "kd_selected", shown=lambda total, over: total < over),
        Log("n_untaught", "n_tokens", PERCENT, 2, "kd_untaught"),
        LogOfEach(NLL_OF, TOKENS_OF, "nll_loss"),
        LogOfEach(TEACHER_NLL_OF, TOKENS_OF, "teacher_nll_loss"),
    )

    def __init__(self, cfg: Any):
        self._smoothing, self._divergence = float(getattr(cfg, "label_smoothing", 0.0)), str(cfg.kd_divergence)
        self._parameters = {
            name: float(getattr(cfg, f"kd_{name}")) for name in ("js_beta", "skew_lambda", "adaptive_mu")
        }
        self._top1_rank = int(cfg.kd_top1_rank)
        if {cfg.kd_alpha, cfg.kd_alpha_end} - {1.0, None}:
            self.needs = DISTRIBUTION

    def signature(self) -> str:
        return ""  # the signature's fields alpha, T, div and ls describe this term

    def objective(self, alpha: float, temperature: float) -> Objective:
        """The loss to compute for each row."""
        return Objective(
            alpha, temperature, self._smoothing, self._divergence, self._parameters, top1_rank=self._top1_rank
        )

    def __call__(self, student: StudentAnswer, answer: Optional[Answer], batch: Batch) -> TermResult:
        teacher = None if answer is None else answer.distribution
        if teacher is None and batch.stock_loss is not None:
            loss, nll_loss = batch.stock_loss()
            return TermResult(loss, {"nll_loss": nll_loss.data, "ce_loss": loss.data})

        objective = self.objective(1.0 if teacher is None else batch.alpha, batch.temperature)
        tokens, stock_loss = student.tokens, None
        whole = batch.unlabelled is None
        if objective.alpha == 1.0 and whole and batch.stock_loss is not None and isinstance(tokens, StudentLogits):
            # the terms are only for the log; the gradient is stock fairseq's, bit for bit
            stock_loss, _ = batch.stock_loss()
            tokens = tokens.detached()
        alone = None if teacher is None or batch.covered is None else ~batch.covered
        unknown = {} if batch.unlabelled is None else {"unlabelled": batch.unlabelled}
        loss, terms = tokens.loss(
            teacher,
            student.target,
            objective,
            distilled=batch.distilled,
            alone=alone,
            alone_weight=batch.alone_weight,
            **unknown,
        )
        _check_finite(loss, terms, student, batch)
        sums = terms.sum(dim=0)
        logs: Dict[str, Any] = {"nll_loss": sums[NLL], "ce_loss": sums[CE]}
        if teacher is not None:
            logs["kd_loss"], logs["rank_loss"] = sums[KD] + sums[RANK], sums[RANK]
            if teacher.knows_target:
                logs["teacher_nll_loss"] = sums[TEACHER_NLL]
            if teacher.knows_best:
                logs["n_agree"] = sums[AGREE]
            if answer is not None:
                logs.update(answer.counts)
            if answer is not None and answer.dropped is not None:
                logs.update(teacher_dropped=answer.dropped.mass, n_dropped_of=answer.dropped.tokens)
            tokens_in_all, distilled, covered = student.rows.numel(), batch.distilled, batch.covered
            counted = tokens_in_all if covered is None else covered.sum()
            n_distilled = counted if distilled is None else distilled.sum()
            logs.update(n_counted=counted, n_distilled=n_distilled)
            if batch.unlabelled is not None:
                taught = batch.unlabelled if distilled is None else batch.unlabelled & distilled
                logs["n_referred"] = n_distilled - taught.sum()
            if covered is not None:
                logs.update(n_untaught=tokens_in_all - counted, n_tokens=tokens_in_all)
            if answer is not None and answer.languages is not None:
                logs.update(_by_language(terms if distilled is None else terms[distilled], answer.languages))
            # fairseq sums the logs of all ranks and batches, so a mean needs its own count
            logs.update(kd_alpha=batch.alpha, kd_temperature=batch.temperature, n_batches=1)
        return TermResult(loss if stock_loss is None else stock_loss, logs)


def _by_language(terms: Tensor, languages: Languages) -> Dict[str, Tensor]:
    """The student's and the teacher's sums over each language's tokens; without tokens that the teacher cannot say."""
    known = torch.isfinite(terms[:, TEACHER_NLL])
    values = torch.stack([terms[:, NLL], terms[:, TEACHER_NLL], torch.ones_like(terms[:, NLL])], dim=1)[known]
    sums = values.new_zeros(len(languages.names), 3).index_add_(0, languages.of_row[known], values)
    keys = (f"{key}:{name}" for name in languages.names for key in (NLL_OF, TEACHER_NLL_OF, TOKENS_OF))
    return dict(zip(keys, sums.reshape(-1)))


def _check_finite(loss: Tensor, terms: Tensor, student: StudentAnswer, batch: Batch) -> None:
    """Stops before the update if a term is NaN or infinite; the error names term, side, update and sentences.

    terms: (tokens, N_TERMS); the logits may already be overwritten
    """
    if torch.isfinite(loss.detach() + terms[:, :TEACHER_NLL].sum()):
        return
    sums = terms.sum(dim=0)
    values = {"ce_loss": sums[CE], "kd_loss": sums[KD] + sums[RANK], "loss": loss}
    ids = sentences(~torch.isfinite(terms[:, :TEACHER_NLL]).all(dim=-1), student, batch)
    bad_terms = [name for name, value in values.items() if not torch.isfinite(value)]
    raise KDPluginError(
        f"{' and '.join(bad_terms) or 'the sum of the terms'} not finite at update {batch.update + 1}: NaN or infinite "
        f"{' and '.join(_bad_sides(terms))} logits, sample ids {ids}. This update "
        "changed no weights. Remedy: a lower --lr or --clip-norm for the student; --teacher-dtype fp32 for the "
        "teacher; fp32 training to find the cause"
    )


def _bad_sides(terms: Tensor) -> List[str]:
    # a teacher may mask the target with -inf, so its nll may be infinite; NaN is always an error
    of_teacher, of_student = torch.isnan(terms[:, TEACHER_NLL]), ~torch.isfinite(terms[:, CE])
    bad = {"student": of_student, "teacher": of_teacher}
    return [name for name, rows_of_side in bad.items() if rows_of_side.any()] or ["student"]
