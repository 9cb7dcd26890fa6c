"""The student's forward pass where it labels sentences or words, and a batch's loss."""

import contextlib
from typing import Any, Callable, Dict, FrozenSet, Tuple

import torch
from torch import Tensor

from kd_plugin.corpus.labelled_folder import IGNORE, UNLABELLED
from kd_plugin.distill.distiller import Distiller
from kd_plugin.distill.student import Student, StudentAnswer
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.engine.dispatch import StudentLogits
from kd_plugin.models.hooks import hooked
from kd_plugin.models.packed import unwrapped
from kd_plugin.models.states import Inner, Recorder, StateKey

Logs = Dict[str, Any]


class LabelStudent(Student):
    """Runs a model with fairseq's classification heads.

    Args:
        head: the name of the head
        numbers: whether it predicts numbers rather than labels
    """

    def __init__(self, head: str, numbers: bool):
        self._head, self._numbers = head, numbers

    def __call__(self, model: Any, sample: Dict[str, Any], keys: FrozenSet[StateKey] = frozenset()) -> StudentAnswer:
        """Calls the model once, through its wrappers; a row per sentence, or per word.

        Raises:
            KDPluginError: the model has no such head
        """
        if self._head not in getattr(model, "classification_heads", {}):
            raise KDPluginError(
                f"{type(model).__name__} has no classification head {self._head}. Remedy: --arch roberta, one of its "
                "sizes, or another architecture with classification heads"
            )
        target = sample["target"]
        counted = target.ne(IGNORE)
        if self._numbers:
            counted, target = counted.all(dim=1), target.reshape(len(target), -1)
            known = torch.isfinite(target).all(dim=1)
        else:
            counted, target = counted.reshape(-1), target.reshape(-1)
            known = target.ne(UNLABELLED)
        rows = counted.nonzero(as_tuple=True)[0]
        others = (~counted).nonzero(as_tuple=True)[0]
        bare = unwrapped(model)
        recorder = Recorder(bare, sample["net_input"], Inner(keys, rows)) if keys else None
        with contextlib.nullcontext() if recorder is None else hooked(recorder, bare):
            output = model(**sample["net_input"], features_only=True, classification_head_name=self._head)
        logits = output[0].reshape(-1, output[0].size(-1))
        unlabelled = ~known[rows]
        answer = StudentAnswer(
            rows,
            target[rows] if self._numbers else target[rows].clamp(min=0),
            StudentLogits(logits, rows, others),
            logits.dtype,
            output,
            unlabelled=unlabelled if bool(unlabelled.any()) else None,
        )
        if recorder is None:
            return answer
        return answer._replace(states=recorder.states(), source_rows=recorder.rows["encoder"])


class LabelStep:
    """Computes the loss of a batch. Args: the criterion's student and distiller"""

    def __init__(self, student: LabelStudent, distiller: Distiller):
        self._student, self._distiller = student, distiller

    def __call__(
        self, model: Any, sample: Dict[str, Any], stock_loss: Callable[[Any, Any], Tuple[Tensor, Logs]], training: bool
    ) -> Tuple[Tensor, Logs, Logs]:
        """The loss; sums for the log; what the criterion without a teacher logs.

        Args:
            stock_loss: computes its (loss, logs) of the model's output and a batch, all of which has labels
        """
        number = self._distiller.passes if training else 1
        passes = self._student.passes(model, sample, number, self._distiller.student_states)

        def stock(net_output: Any) -> Tuple[Tensor, Tensor]:
            loss, _ = stock_loss(*with_labels(net_output, sample))
            return loss, loss

        with torch.no_grad():
            own = stock_loss(*with_labels(passes[0].net_output, sample))[1]
        loss, logs = self._distiller(passes, sample, stock, training)
        labelled: Any = passes[0].rows.numel()
        if passes[0].unlabelled is not None:
            labelled = labelled - passes[0].unlabelled.sum()
        if "n_distilled" in logs:
            logs.setdefault("n_referred", logs["n_distilled"])
        return loss, {**logs, "n_labelled": labelled}, own


def with_labels(net_output: Any, sample: Dict[str, Any]) -> Tuple[Any, Dict[str, Any]]:
    """The part of a model's output and of a batch that has labels: whole sentences, or words of all sentences."""
    target = sample["target"]
    if target.is_floating_point():
        labelled = torch.isfinite(target).reshape(len(target), -1).all(dim=1)
    elif target.size(1) == 1:
        labelled = target.ne(UNLABELLED).reshape(-1)
    else:
        return net_output, sample
    if bool(labelled.all()):
        return net_output, sample
    logits, *more = net_output
    return (logits[labelled], *more), {**sample, "target": target[labelled]}
