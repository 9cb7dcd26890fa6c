"""The student's single forward pass and its results; hides whether it is packed or has a fused head."""

import contextlib
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Tuple, Union

import torch
from fairseq.models.transformer import TransformerDecoderBase, TransformerModelBase
from torch import Tensor

from kd_plugin.errors import KDPluginError
from kd_plugin.losses.engine.dispatch import StudentLogits
from kd_plugin.losses.engine.fused_head import StudentFeatures
from kd_plugin.losses.engine.inplace import may_overwrite
from kd_plugin.models import packed
from kd_plugin.models.hooks import hooked
from kd_plugin.models.inspect import gives_features, has_adaptive_softmax
from kd_plugin.models.states import Inner, Recorder, StateKey, States


class StudentAnswer(NamedTuple):
    """The student's results for a batch.

    rows:       (tokens,) positions in the flattened (batch * length) target that count
    target:     (tokens,) int64, the symbols there
    tokens:     the logits, or features and projection, of those rows; computing a loss with gradient may overwrite the
                logits
    dtype:      in which the student computes
    net_output: fairseq's own output; None if the student has computed the rows alone
    states:     the inner states that the terms have asked for
    source_rows: (source tokens,) where the encoder's are in the flattened (batch * source length); None: none are asked
    unlabelled: (tokens,) bool, the rows whose target is unknown; None: none
    """

    rows: Tensor
    target: Tensor
    tokens: Union[StudentLogits, StudentFeatures]
    dtype: torch.dtype
    net_output: Any = None
    states: States = {}
    source_rows: Optional[Tensor] = None
    unlabelled: Optional[Tensor] = None

    def logits(self) -> Tensor:
        """(tokens, vocab) logits of the rows, with gradient; for terms that set `reads_logits`.

        Raises:
            KDPluginError: with --kd-fused-head, which never computes them
        """
        if not isinstance(self.tokens, StudentLogits):
            raise KDPluginError(
                "--kd-fused-head never computes logits, but a term needs them. Remedy: train without it"
            )
        return self.tokens.logits.index_select(0, self.tokens.rows)

    def places(self, side: str, sample: Dict[str, Any]) -> Tuple[Tensor, Tuple[int, int]]:
        """(positions,) of a side's inner states in its flattened rectangle, and the rectangle's (batch, length)."""
        if side == "decoder":
            return self.rows, tuple(sample["target"].shape)
        assert self.source_rows is not None
        return self.source_rows, tuple(sample["net_input"]["src_tokens"].shape)

    def accuracy(self) -> Tuple[Tensor, int]:
        """The number of correct tokens (target ranked first), 0-dim, and the number of all tokens."""
        assert isinstance(self.tokens, StudentLogits)
        best = self.tokens.logits.detach().argmax(dim=-1)[self.tokens.rows]
        return best.eq(self.target).sum(), self.target.numel()


class Student:
    """Runs a model on batches as the criterion's flags demand.

    Args:
        cfg: the criterion's flags
        padding_idx: of the target
        keeps_logits: another term reads the logits, so the loss on tokens must not overwrite them
    """

    def __init__(self, cfg: Any, padding_idx: int, keeps_logits: bool = False):
        self.inplace = "off" if keeps_logits else str(cfg.kd_inplace)
        self.fused_head, self.packed = bool(cfg.kd_fused_head), bool(cfg.kd_packed_student)
        self._prefix, self._padding_idx = int(cfg.ignore_prefix_size), padding_idx

    def passes(
        self, model: Any, sample: Dict[str, Any], number: int, keys: FrozenSet[StateKey] = frozenset()
    ) -> List[StudentAnswer]:
        """Calls the model `number` times on the same batch; in training, each pass draws its own dropout.

        Args:
            keys: inner states to answer with

        Raises:
            KDPluginError: as `__call__`
        """
        if number > 1 and getattr(model, "find_unused_parameters", False):
            raise KDPluginError(
                "--kd-rdrop: with --find-unused-parameters, PyTorch would look for unused parameters in one of the two "
                "passes only. Remedy: --ddp-backend legacy_ddp, or train without --kd-rdrop"
            )
        return [self(model, sample, keys) for _ in range(number)]

    def __call__(self, model: Any, sample: Dict[str, Any], keys: FrozenSet[StateKey] = frozenset()) -> StudentAnswer:
        """Calls the model once, through its wrappers.

        Raises:
            KDPluginError: the flags do not work with this model
        """
        if has_adaptive_softmax(model):
            raise KDPluginError(
                "distillation needs logits over the whole vocabulary, which an adaptive softmax does not give. Remedy: "
                "train the student without --adaptive-softmax-cutoff"
            )
        rows, _, target = self._counted_rows(sample["target"])
        recorder = None
        if keys:
            recorder = Recorder(packed.unwrapped(model), sample["net_input"], Inner(keys, rows))
        answer = self._answer(model, sample, recorder, rows, target)
        return (
            answer
            if recorder is None
            else answer._replace(states=recorder.states(), source_rows=recorder.rows["encoder"])
        )

    def _answer(
        self,
        model: Any,
        sample: Dict[str, Any],
        recorder: Optional[Recorder],
        rows: Tensor,
        target: Tensor,
    ) -> StudentAnswer:
        if not (self.fused_head or self.packed):
            with _recording(recorder, model):
                net_output = model(**sample["net_input"])
            return self.of_output(model, net_output, sample)

        output = self._output_of(model, sample, recorder, rows)
        if self.fused_head:
            projection = model.decoder.output_projection
            return StudentAnswer(
                rows, target, StudentFeatures(output, projection.weight, projection.bias), output.dtype
            )
        every = torch.arange(rows.numel(), device=rows.device)
        return StudentAnswer(
            rows, target, StudentLogits(output, every, rows[:0], self._in_place(model, output)), output.dtype
        )

    def of_output(self, model: Any, net_output: Any, sample: Dict[str, Any]) -> StudentAnswer:
        """The results from fairseq's own output for a batch."""
        rows, other_rows, target = self._counted_rows(sample["target"])
        logits = net_output[0].reshape(-1, net_output[0].size(-1))
        tokens = StudentLogits(logits, rows, other_rows, self._in_place(model, logits))
        return StudentAnswer(rows, target, tokens, logits.dtype, net_output)

    def _output_of(self, model: Any, sample: Dict[str, Any], recorder: Optional[Recorder], rows: Tensor) -> Tensor:
        """(tokens, vocab) logits, or (tokens, dimension) features, of the rows."""
        packing: Any = _recording(recorder, model)
        if self.fused_head:
            _check_fused_head(model)
        if self.packed:
            _check_packed(model, sample)
            packing = packed.packed_forward(packed.unwrapped(model), rows, recorder)
        with packing:
            output: Tensor = model(**sample["net_input"], **({"features_only": True} if self.fused_head else {}))[0]
        return output if self.packed else output.reshape(-1, output.size(-1)).index_select(0, rows)

    def _in_place(self, model: Any, logits: Tensor) -> bool:
        """Whether the gradient may overwrite the logits."""
        if not logits.requires_grad or self.inplace == "off":
            return False
        return self.inplace == "on" or may_overwrite(logits, model)

    def _counted_rows(self, target: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Positions in the flattened target that count, all other positions, and the targets at those that count."""
        if self._prefix > 0:
            target = target.clone()
            target[:, : self._prefix] = self._padding_idx
        target = target.reshape(-1)
        counted = target.ne(self._padding_idx)
        rows = counted.nonzero(as_tuple=True)[0]
        return rows, (~counted).nonzero(as_tuple=True)[0], target[rows]


def _recording(recorder: Optional[Recorder], model: Any) -> Any:
    """A context in which fairseq's own forward fills the recorder."""
    return contextlib.nullcontext() if recorder is None else hooked(recorder, packed.unwrapped(model))


def _check_fused_head(model: Any) -> None:
    """Refuses --kd-fused-head if the model cannot compute features without the projection."""
    decoder: Any = getattr(model, "decoder", None)
    projection = getattr(decoder, "output_projection", None)
    reason = None
    if not gives_features(packed.unwrapped(model)):
        reason = "the student's architecture cannot compute features without logits, as fairseq's transformers can"
    elif (
        type(decoder).output_layer is not TransformerDecoderBase.output_layer or type(projection) is not torch.nn.Linear
    ):
        reason = "the student's output projection is not a plain linear layer"
    elif getattr(model, "find_unused_parameters", False):
        reason = "--find-unused-parameters would consider the projection unused"
    elif projection.weight.dim() != 2:
        reason = "--ddp-backend fully_sharded keeps the projection in pieces"
    if reason is not None:
        raise KDPluginError(f"--kd-fused-head: {reason}. Remedy: train without --kd-fused-head")


def _check_packed(model: Any, sample: Dict[str, Any]) -> None:
    """Refuses --kd-packed-student if models/packed.py would not compute the same as the student's own forward."""
    student = packed.unwrapped(model)
    reason, others = None, sorted(sample["net_input"].keys() - packed.INPUTS)
    if not packed.AVAILABLE:
        reason = f"it needs the attention of torch 2.2 or later, but this is {torch.__version__}"
    elif isinstance(student, TransformerModelBase) and student.training and packed.has_hooks(student):
        reason = (
            "the student has hooks, which it would bypass: from --quant-noise-pq, or from fairseq's search for the "
        )
        reason += "cause of a FloatingPointError (then fix that error, above)"
    elif not packed.can_pack(student):
        reason = "the student is not an unmodified fairseq encoder-decoder transformer, or something is in or around "
        reason += "its layers (--checkpoint-activations, adapters)"
    elif others:
        reason = f"the batches have additional inputs ({', '.join(others)})"
    if reason is not None:
        raise KDPluginError(f"--kd-packed-student: {reason}. Remedy: train without --kd-packed-student")
