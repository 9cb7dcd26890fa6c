"""One batch of a training or validation: the student's passes, on references or on its own words, and the loss."""

import functools
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor

from kd_plugin.distill.distiller import Distiller, Weights
from kd_plugin.distill.on_policy.parallel import Encoded, own_words
from kd_plugin.distill.on_policy.policy import OnPolicy
from kd_plugin.distill.student import Student, StudentAnswer
from kd_plugin.distill.terms.tokens import TokensTerm
from kd_plugin.models.packed import unwrapped

Logs = Dict[str, Any]
StockLoss = Callable[..., Tuple[Tensor, Tensor]]
# what is logged of tokens; it would mean something else for the student's own
ABOUT_REFERENCES = {key for log in TokensTerm.logs for key in (log.key, log.over)} | {"nll_loss"}


class Step:
    """Computes the loss of a batch.

    Args:
        student, distiller, on_policy: the criterion's
        pad: padding of targets
        reports_accuracy: --report-accuracy
    """

    def __init__(self, student: Student, distiller: Distiller, on_policy: OnPolicy, pad: int, reports_accuracy: bool):
        self._student, self._distiller, self._on_policy = student, distiller, on_policy
        self._pad, self._reports_accuracy = pad, reports_accuracy

    def __call__(
        self, model: Any, sample: Dict[str, Any], stock_loss: StockLoss, training: bool
    ) -> Tuple[Tensor, Dict[str, Any], Logs]:
        """The loss; the batch that it was computed on; sums for the log.

        Args:
            stock_loss: computes fairseq's own (loss, nll_loss) of a model, its output and a batch
        """
        update, (alpha, _) = self._distiller.update, self._distiller.alpha_and_temperature()
        asked = training and self._on_policy.asked
        now = asked and alpha < 1.0 and self._on_policy.decides(update)
        decided: Logs = {"n_on_policy": int(now), "n_decided": 1} if asked else {}
        stock_loss = functools.partial(stock_loss, model)
        drawn = self._on_policy.own_batch(model, sample, update) if now else None
        if drawn is not None:
            sample, counts = drawn
            passes = self._passes(model, sample, training)
            weights = Weights(0.0, 1.0 - alpha, own=True)
            loss, logs = self._distiller(passes, sample, functools.partial(stock_loss, sample=sample), True, weights)
            others = {key: value for key, value in logs.items() if key not in ABOUT_REFERENCES}
            return loss, sample, {**others, "on_policy_kd_loss": logs["kd_loss"], **counts, **decided}
        stock_loss = functools.partial(stock_loss, sample=sample)
        if now:
            loss, logs = self._in_parallel(model, sample, stock_loss, alpha)
            return loss, sample, {**logs, **decided}
        passes = self._passes(model, sample, training)
        accuracy = self._accuracy(passes)
        loss, logs = self._distiller(passes, sample, stock_loss, training)
        return loss, sample, {**logs, **accuracy, **decided}

    def _in_parallel(
        self, model: Any, sample: Dict[str, Any], stock_loss: StockLoss, alpha: float
    ) -> Tuple[Tensor, Logs]:
        """A pass that reads the references, then passes that read the student's words; the divergence is their mean."""
        number = self._on_policy.passes
        share = (1.0 - alpha) / number
        with Encoded(unwrapped(model)) as encoded:
            (answer,) = self._passes(model, sample, True)
        best = self._best(answer, sample)
        logs = self._accuracy([answer])
        loss, more = self._distiller([answer], sample, stock_loss, True, Weights(alpha, share))
        logs.update(more)
        own: List[Tensor] = []
        for last in [False] * (number - 2) + [True]:
            batch = own_words(sample, best, self._pad)
            answer = self._student.of_output(model, encoded.decode(batch["net_input"]), batch)
            best = best if last else self._best(answer, batch)
            value, more = self._distiller(
                [answer], batch, stock_loss, True, Weights(0.0, share, own=True, others=False)
            )
            loss = loss + value
            own.append(more["kd_loss"])
        logs["on_policy_kd_loss"] = torch.stack(own).mean()
        return loss, {**logs, "n_own_tokens": answer.rows.numel()}

    def _passes(self, model: Any, sample: Dict[str, Any], training: bool) -> List[StudentAnswer]:
        number = self._distiller.passes if training else 1
        return self._student.passes(model, sample, number, self._distiller.student_states)

    def _accuracy(self, passes: List[StudentAnswer]) -> Logs:
        """Before the gradient overwrites the logits."""
        if not self._reports_accuracy:
            return {}
        n_correct, total = passes[0].accuracy()
        return {"n_correct": n_correct.item(), "total": total}

    def _best(self, answer: StudentAnswer, sample: Dict[str, Any]) -> Tensor:
        """(sentences, length), what the student ranks first, likewise."""
        return answer.net_output[0].detach().argmax(dim=-1).view(sample["target"].shape)
