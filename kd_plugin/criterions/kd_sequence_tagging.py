"""The criterion of sequence tagging: a label per word, with a teacher beside the labels.

loss = alpha * CE + (1 - alpha) * temperature**2 * D(teacher || student)  [+ further terms], summed over words
"""

from dataclasses import dataclass, field
from typing import Any, Dict, Sequence, Tuple

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor
from torch.nn import functional as F

from kd_plugin.checkpoints.classifier import TOKEN_HEAD
from kd_plugin.corpus.labelled_folder import IGNORE
from kd_plugin.criterions.flags import DistillationFlags
from kd_plugin.criterions.labelling import LabellingCriterion
from kd_plugin.criterions.with_terms import check_free
from kd_plugin.distill.labelling import Logs
from kd_plugin.distill.logs import PERCENT, Log

CRITERION_NAME = "kd_sequence_tagging"

check_free(CRITERION_NAME)


@dataclass
class KDSequenceTaggingConfig(DistillationFlags, FairseqDataclass):
    classification_head_name: str = field(
        default=TOKEN_HEAD, metadata={"help": "name of the classification head that labels tokens"}
    )


@register_criterion(CRITERION_NAME, dataclass=KDSequenceTaggingConfig)
class KDSequenceTaggingCriterion(LabellingCriterion, FairseqCriterion):
    """Runs the student, then its distiller.

    Args:
        cfg: the flags; fairseq passes the whole config
        task: its `teacher` is used; without a teacher it can only train with --kd-alpha 1
    """

    name = CRITERION_NAME

    def __init__(self, cfg: Any, task: Any):
        super().__init__(task)
        self.set_up(cfg, task, numbers=False)

    def stock_loss(self, model: Any, net_output: Any, sample: Dict[str, Any]) -> Tuple[Tensor, Logs]:
        """As LabellingCriterion's: the cross-entropy of the words that have a label."""
        logits = net_output[0]
        targets = sample["target"]
        targets = targets.masked_fill(targets < 0, IGNORE).reshape(-1)
        lprobs = F.log_softmax(logits, dim=-1, dtype=torch.float32 if logits.dtype != torch.float64 else None)
        loss = F.nll_loss(lprobs.reshape(-1, lprobs.size(-1)), targets, ignore_index=IGNORE, reduction="sum")
        labelled = targets.ne(IGNORE)
        correct = (logits.reshape(-1, logits.size(-1)).argmax(dim=-1).eq(targets) & labelled).sum()
        return loss, {"ncorrect": correct, "sample_size": labelled.sum()}

    def sample_size(self, sample: Dict[str, Any], logs: Logs) -> int:
        """As LabellingCriterion's: words."""
        return int(sample["target"].ne(IGNORE).sum())

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[Dict[str, Any]]) -> None:
        """Aggregate logging outputs from data parallel training; losses in bits, as fairseq logs them."""
        Log("loss").reduce(logging_outputs)
        Log("nll_loss", "n_own").reduce(logging_outputs)
        Log("ncorrect", "n_own", PERCENT, 1, "accuracy").reduce(logging_outputs)
        cls.reduce_terms(logging_outputs)
