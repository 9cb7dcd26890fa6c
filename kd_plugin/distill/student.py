"""The student's one forward pass, and what can be asked of it; the packed and the fused way hide here."""

import contextlib
from typing import Any, Dict, NamedTuple, Tuple, Union

import torch
from fairseq.models.transformer import TransformerDecoderBase, TransformerModelBase
from torch import Tensor

from kd_plugin.errors import KDPluginError
from kd_plugin.losses.engine.dispatch import StudentLogits
from kd_plugin.losses.engine.fused_head import StudentFeatures
from kd_plugin.losses.engine.inplace import may_overwrite
from kd_plugin.models import packed
from kd_plugin.models.inspect import gives_features, has_adaptive_softmax


class StudentAnswer(NamedTuple):
    """What the student says about a batch.

    rows:       (tokens,) positions in the flattened (batch * length) target that count
    target:     (tokens,) int64, the symbols there
    tokens:     its logits, or features and projection, of those rows; once they were asked for a loss with gradient,
                the logits may be overwritten
    dtype:      in which it computes
    net_output: fairseq's own output; None where it was asked for the rows alone
    """

    rows: Tensor
    target: Tensor
    tokens: Union[StudentLogits, StudentFeatures]
    dtype: torch.dtype
    net_output: Any = None

    def logits(self) -> Tensor:
        """(tokens, vocab) of the rows, with gradient; for terms that say `reads_logits`.

        Raises:
            KDPluginError: with --kd-fused-head, which never makes them
        """
        if not isinstance(self.tokens, StudentLogits):
            raise KDPluginError("--kd-fused-head never makes logits, which a term needs. Remedy: train without it")
        return self.tokens.logits.index_select(0, self.tokens.rows)

    def accuracy(self) -> Tuple[Tensor, int]:
        """How many tokens it ranks first, 0-dim, and of how many."""
        assert isinstance(self.tokens, StudentLogits)
        best = self.tokens.logits.detach().argmax(dim=-1)[self.tokens.rows]
        return best.eq(self.target).sum(), self.target.numel()


class Student:
    """Asks a model about batches in the way that the criterion's flags say.

    Args:
        cfg: the criterion's flags
        padding_idx: of the target
        keeps_logits: somebody reads them beside the loss on tokens, which must not overwrite them then
    """

    def __init__(self, cfg: Any, padding_idx: int, keeps_logits: bool = False):
        self.inplace = "off" if keeps_logits else str(cfg.kd_inplace)
        self.fused_head, self.packed = bool(cfg.kd_fused_head), bool(cfg.kd_packed_student)
        self._prefix, self._padding_idx = int(cfg.ignore_prefix_size), padding_idx

    def __call__(self, model: Any, sample: Dict[str, Any]) -> StudentAnswer:
        """One call of the model, through whatever wraps it.

        Raises:
            KDPluginError: the model cannot be asked in this way
        """
        if has_adaptive_softmax(model):
            raise KDPluginError(
                "distillation needs logits over the whole vocabulary, an adaptive softmax gives none. Remedy: "
                "train the student without --adaptive-softmax-cutoff"
            )
        rows, other_rows, target = self._counted_rows(sample["target"])
        if not (self.fused_head or self.packed):
            net_output = model(**sample["net_input"])
            logits = net_output[0].reshape(-1, net_output[0].size(-1))
            tokens = StudentLogits(logits, rows, other_rows, self._in_place(model, logits))
            return StudentAnswer(rows, target, tokens, logits.dtype, net_output)

        output = self._output_of(model, sample, rows)
        if self.fused_head:
            projection = model.decoder.output_projection
            return StudentAnswer(
                rows, target, StudentFeatures(output, projection.weight, projection.bias), output.dtype
            )
        every = torch.arange(rows.numel(), device=rows.device)
        return StudentAnswer(
            rows, target, StudentLogits(output, every, rows[:0], self._in_place(model, output)), output.dtype
        )

    def _output_of(self, model: Any, sample: Dict[str, Any], rows: Tensor) -> Tensor:
        """(tokens, vocab) logits, or (tokens, dimension) features, of the rows."""
        packing: Any = contextlib.nullcontext()
        if self.fused_head:
            _check_fused_head(model)
        if self.packed:
            _check_packed(model, sample)
            packing = packed.packed_forward(packed.unwrapped(model), rows)
        with packing:
            output: Tensor = model(**sample["net_input"], **({"features_only": True} if self.fused_head else {}))[0]
        return output if self.packed else output.reshape(-1, output.size(-1)).index_select(0, rows)

    def _in_place(self, model: Any, logits: Tensor) -> bool:
        """Whether the gradient goes over the logits."""
        if not logits.requires_grad or self.inplace == "off":
            return False
        return self.inplace == "on" or may_overwrite(logits, model)

    def _counted_rows(self, target: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Positions in the flattened target that are no padding, the others, and the targets at the first."""
        if self._prefix > 0:
            target = target.clone()
            target[:, : self._prefix] = self._padding_idx
        target = target.reshape(-1)
        counted = target.ne(self._padding_idx)
        rows = counted.nonzero(as_tuple=True)[0]
        return rows, (~counted).nonzero(as_tuple=True)[0], target[rows]


def _check_fused_head(model: Any) -> None:
    """Refuse --kd-fused-head where features and projection cannot be had one after the other."""
    decoder: Any = getattr(model, "decoder", None)
    projection = getattr(decoder, "output_projection", None)
    reason = None
    if not gives_features(packed.unwrapped(model)):
        reason = "the student's architecture does not give features and logits one after the other, as fairseq's "
        reason += "transformers do"
    elif (
        type(decoder).output_layer is not TransformerDecoderBase.output_layer or type(projection) is not torch.nn.Linear
    ):
        reason = "the student's output projection is not a plain linear layer"
    elif getattr(model, "find_unused_parameters", False):
        reason = "--find-unused-parameters would take the projection for unused"
    elif projection.weight.dim() != 2:
        reason = "--ddp-backend fully_sharded keeps the projection in pieces"
    if reason is not None:
        raise KDPluginError(f"--kd-fused-head: {reason}. Remedy: train without --kd-fused-head")


def _check_packed(model: Any, sample: Dict[str, Any]) -> None:
    """Refuse --kd-packed-student where models/packed.py does not compute what the student's own forward does."""
    student = packed.unwrapped(model)
    reason, others = None, sorted(sample["net_input"].keys() - packed.INPUTS)
    if not packed.AVAILABLE:
        reason = f"torch {torch.__version__} is older than 2.2, whose attention it needs"
    elif isinstance(student, TransformerModelBase) and student.training and packed.has_hooks(student):
        reason = "the student has hooks, which must not miss the padding: of --quant-noise-pq, or those with which "
        reason += "fairseq looks for the cause of a FloatingPointError (then that error, above, is the one to mend)"
    elif not packed.can_pack(student):
        reason = "the student is not fairseq's transformer as it is, with encoder and decoder and nothing in or "
        reason += "around its layers (--checkpoint-activations, adapters)"
    elif others:
        reason = f"the batches have further inputs ({', '.join(others)})"
    if reason is not None:
        raise KDPluginError(f"--kd-packed-student: {reason}. Remedy: train without --kd-packed-student")
