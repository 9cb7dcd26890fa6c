"""A frozen teacher, or a weighted ensemble of them, run beside the student on every batch."""

import logging
import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from fairseq.models.transformer import TransformerDecoderBase
from torch import Tensor

from kd_plugin.checkpoints.finite import check_range
from kd_plugin.compat import cpu_computes
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.answer import Allocate, LinearHead, Project, ProjectedAnswer
from kd_plugin.models.inspect import gives_features, has_adaptive_softmax
from kd_plugin.models.packed import INPUTS, can_pack, packed_features
from kd_plugin.teachers.base import Answer, Request, Teacher, short_name
from kd_plugin.teachers.member import LoadedTeacher

logger = logging.getLogger(__name__)

TEACHER_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class OnlineTeacher(Teacher):
    """Runs the teachers in eval, without gradient, in their own dtype, on the device of the batch.

    Args:
        members: the loaded teachers
        weights: one weight >= 0 a teacher, scaled to sum 1; None weighs them equally. The answer is the mixture of
            their probabilities; a teacher of weight 0 is dropped.
        dtype: `fp32`, `fp16`, `bf16`, or `auto`: the dtype in which the student computes on a GPU, fp32 on a CPU
    """

    def __init__(
        self, members: Sequence[LoadedTeacher], weights: Optional[Sequence[float]] = None, dtype: str = "auto"
    ):
        weights = [1.0] * len(members) if weights is None else list(weights)
        if len(weights) != len(members):
            raise KDPluginError(f"--teacher-weights names {len(weights)} weights for {len(members)} teachers")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
            raise KDPluginError(f"--teacher-weights {weights}: weights must be >= 0 and not all 0")
        self.dtype = dtype
        self._warned = False
        if dtype in TEACHER_DTYPES:  # else where it is known: on the first batch
            for member in members:
                _check_range(member, TEACHER_DTYPES[dtype])
        kept = [(member, weight / sum(weights)) for member, weight in zip(members, weights) if weight > 0]
        self.members = [member for member, _ in kept]
        self.log_weights = [math.log(weight) for _, weight in kept]

    def weights(self) -> List[float]:
        """The weight of each member, summing to 1."""
        return [math.exp(log_weight) for log_weight in self.log_weights]

    def max_positions(self) -> List[Any]:
        """The longest (source, target) that each teacher can read, for fairseq's own length filter."""
        return [member.model.max_positions() for member in self.members]

    def signature_fields(self) -> List[str]:
        """Who they are and whether they were remapped, for the line that identifies a run."""
        weights = self.weights() if len(self.members) > 1 else [1.0]
        shares = [f"*{weight:g}" if weight != 1.0 else "" for weight in weights]
        remapped = any(m.source_indices is not None or m.target_indices is not None for m in self.members)
        return [
            *(f"teacher:{short_name(m.sha256, m.parameters)}{share}" for m, share in zip(self.members, shares)),
            "vocab:remapped" if remapped else "vocab:ok",
        ]

    @torch.no_grad()
    def answer(self, batch: Dict[str, Any], request: Request) -> Answer:
        """As Teacher's; `auto` follows the request's dtype on a GPU."""
        rows, dtype = request.rows, request.dtype
        return Answer(ProjectedAnswer([self._features(m, batch, rows, dtype) for m in self.members], self.log_weights))

    def _features(
        self, member: LoadedTeacher, sample: Dict[str, Any], rows: Tensor, student_dtype: torch.dtype
    ) -> Tuple[Tensor, Project]:
        """One teacher's features at the rows, and what turns them into logits in the student's order of symbols."""
        device = rows.device
        model = self._placed(member, device, student_dtype)
        net_input = dict(sample["net_input"])
        if member.source_indices is not None:
            net_input["src_tokens"] = member.source_indices[net_input["src_tokens"]]
        if member.target_indices is not None:
            net_input["prev_output_tokens"] = member.target_indices[net_input["prev_output_tokens"]]
        # the teacher has a dtype of its own: the student's autocast must not reach it
        with torch.autocast(device_type=device.type, enabled=False):
            in_two_steps = gives_features(model)
            project = _projection(model.decoder) if in_two_steps else _as_it_is
            if in_two_steps and can_pack(model) and net_input.keys() <= INPUTS:
                values = packed_features(model, net_input, rows)
            elif in_two_steps:
                # no layer has this index, so that no attention weights are computed, and no hidden states are kept
                net_output = model(**net_input, features_only=True, alignment_layer=-1, return_all_hiddens=False)
                values = _at(rows, net_output[0])
            elif has_adaptive_softmax(model):
                values = _at(rows, model.get_normalized_probs(model(**net_input), log_probs=True))
            else:
                values = _at(rows, model(**net_input)[0])
        target_indices = member.target_indices
        if target_indices is None:
            return values, project
        return values, lambda features, allocate: project(features, allocate).index_select(1, target_indices)

    def _placed(self, member: LoadedTeacher, device: torch.device, student_dtype: torch.dtype) -> Any:
        """The model on the batch's device: fairseq moves the student, nobody moves the teacher."""
        if self.dtype == "auto":
            dtype = student_dtype if device.type == "cuda" else torch.float32
        else:
            dtype = TEACHER_DTYPES[self.dtype]
            if device.type == "cpu" and dtype != torch.float32 and not self._warned and not cpu_computes(self.dtype):
                self._warned = True
                logger.warning(
                    f"--teacher-dtype {self.dtype}: this CPU has no {self.dtype} units, the teacher will be about ten "
                    "times as slow. Remedy: --teacher-dtype auto"
                )
        parameter = next(member.model.parameters())
        if parameter.dtype != dtype:
            _check_range(member, dtype)
        if parameter.device != device or parameter.dtype != dtype:
            member.model.to(device=device, dtype=dtype)
        for name in ("source_indices", "target_indices"):
            indices = getattr(member, name)
            if indices is not None and indices.device != device:
                setattr(member, name, indices.to(device))
        return member.model


def _check_range(member: LoadedTeacher, dtype: torch.dtype) -> None:
    if dtype != torch.float32:
        check_range(member.model, dtype, member.path, "--teacher-dtype fp32, or bf16 on a GPU that has it")


def _projection(decoder: Any) -> Project:
    """From features to logits."""
    layer = getattr(decoder, "output_projection", None)
    if type(decoder).output_layer is not TransformerDecoderBase.output_layer or type(layer) is not torch.nn.Linear:
        return lambda features, allocate: decoder.output_layer(features)
    return LinearHead(layer.weight, layer.bias)


def _at(rows: Tensor, values: Tensor) -> Tensor:
    """Those that count, in two dimensions: fairseq's projection of a frozen (batch, length, dimension) takes 1.8 times
    as long."""
    return values.reshape(-1, values.size(-1)).index_select(0, rows)


def _as_it_is(logits: Tensor, allocate: Allocate) -> Tensor:
    return logits
