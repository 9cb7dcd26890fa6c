"""What the criterions of students that label share: sentences, or words."""

from typing import Any, Dict, List, Sequence, Tuple, Type

from torch import Tensor

from kd_plugin.criterions.flags import check_distillation
from kd_plugin.criterions.with_terms import WithTerms
from kd_plugin.distill.distiller import Distiller
from kd_plugin.distill.labelling import LabelStep, LabelStudent, Logs
from kd_plugin.distill.logs import Log
from kd_plugin.distill.terms import TERMS
from kd_plugin.distill.terms.tokens import TokensTerm
from kd_plugin.errors import KDPluginError

# means over the rows that have a label
OF_LABELLED = {
    "ce_loss": Log("ce_loss", "n_labelled"),
    "teacher_nll_loss": Log("teacher_nll_loss", "n_referred"),
}


class LabellingCriterion(WithTerms):
    """Use as `class X(LabellingCriterion, Y)`; call `set_up` in __init__, and define `stock_loss`."""

    name: str
    of_labelled: Dict[str, Log] = OF_LABELLED

    def set_up(self, cfg: Any, task: Any, numbers: bool, main: Type[TokensTerm] = TokensTerm) -> None:
        """Reads the flags and makes the distiller.

        Args:
            numbers: whether the student predicts numbers rather than labels
            main: the term of cross-entropy and divergence

        Raises:
            KDPluginError: a flag is out of range, or the teacher cannot provide what a term needs
        """
        teacher = getattr(task, "teacher", None)
        check_distillation(cfg, teacher is not None, getattr(task, "task_name", "distillation_sentence_prediction"))
        check_labels_known(cfg, task, teacher)
        self.use(Distiller(cfg, task, main=main))
        self.step = LabelStep(LabelStudent(str(cfg.classification_head_name), numbers), self.distiller)

    def stock_loss(self, model: Any, net_output: Any, sample: Dict[str, Any]) -> Tuple[Tensor, Logs]:
        """The loss and logs of the criterion without a teacher, a sum over rows, all of which have a label."""
        raise NotImplementedError

    def forward(self, model: Any, sample: Dict[str, Any], reduce: bool = True) -> Tuple[Tensor, Any, Dict[str, Any]]:
        """Compute the loss for the given sample.

        Returns a tuple with three elements:
        1) the loss, a sum over sentences, or over words where words are labelled
        2) the sample size, which is used as the denominator for the gradient: their number
        3) logging outputs: sums in nats, the same keys on every rank and batch
        """
        if not reduce:
            raise KDPluginError(f"{self.name} returns only sums, but got reduce=False")
        loss, logs, own = self.step(
            model,
            sample,
            lambda net_output, labelled: self.stock_loss(model, net_output, labelled),
            self.training,  # type: ignore[attr-defined]
        )
        size = self.sample_size(sample, logs)
        counts = {"ntokens": sample["ntokens"], "nsentences": len(sample["target"]), "sample_size": size}
        return loss, size, {**own, **logs, "loss": loss.data, **counts, "n_own": own["sample_size"]}

    def sample_size(self, sample: Dict[str, Any], logs: Logs) -> Any:
        """The number of rows."""
        raise NotImplementedError

    @classmethod
    def reduce_terms(cls, logging_outputs: Sequence[Dict[str, Any]]) -> None:
        """Passes the values of all terms to fairseq's meters."""
        logs: List[Any] = [log for kind in TERMS.values() for log in kind.term.logs]
        for log in logs:
            cls.of_labelled.get(log.key, log).reduce(logging_outputs)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """As fairseq's."""
        return True


def check_labels_known(cfg: Any, task: Any, teacher: Any) -> None:
    """Refuses unlabelled text that would teach nothing.

    Raises:
        KDPluginError: there is no teacher, or the training has no labels at all but alpha is not 0
    """
    alphas = {cfg.kd_alpha, cfg.kd_alpha_end} - {None}
    folder = getattr(task, "unlabelled_folder", None)
    if folder and (teacher is None or alphas == {1.0}):
        why = "there is no teacher" if teacher is None else "with --kd-alpha 1 nothing is learned from the teacher"
        raise KDPluginError(
            f"--kd-unlabelled {folder}: only a teacher can tell what its sentences are, but {why}. Remedy: "
            "--teacher-path and --kd-alpha below 1, or leave it out"
        )
    without = getattr(task, "training_without_labels", "")
    if without and (teacher is None or alphas != {0.0}):
        raise KDPluginError(
            f"{without}: the training data have no labels, so there is no cross-entropy to give the weight --kd-alpha "
            f"{cfg.kd_alpha}. Remedy: --kd-alpha 0 and a teacher, or labels"
        )
