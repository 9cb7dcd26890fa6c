"""One model of a teacher, from any toolkit, and the mapping between its symbols and the student's."""

import abc
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from kd_plugin.checkpoints.finite import check_range
from kd_plugin.files.atomic import digest_of
from kd_plugin.losses.answer import Allocate, LinearHead, Project
from kd_plugin.models.states import Inner, Shape, States
from kd_plugin.teachers.vocabulary import Symbols


class Member(abc.ABC):
    """A frozen model that answers about a batch's target tokens.

    Args:
        model: an nn.Module in eval mode, without gradient
        path: as the user gave it
        sha256: of its file or files
        parameters: their number, counting tied ones once
        source, target: the student's symbols as the model has them
    """

    def __init__(self, model: Any, path: str, sha256: str, parameters: int, source: Symbols, target: Symbols):
        self.model, self.path, self.sha256, self.parameters = model, path, sha256, parameters
        self.source, self.target = source, target
        self._restricted: Optional[LinearHead] = None

    @property
    def source_indices(self) -> Optional[Tensor]:
        """(source vocab,) the teacher's index of each of the student's symbols; None: the same."""
        return self.source.indices

    @property
    def target_indices(self) -> Optional[Tensor]:
        """(target vocab,) the same for the target side."""
        return self.target.indices

    @abc.abstractmethod
    def max_positions(self) -> Any:
        """The longest (source, target) that it accepts, including end of sentence."""

    @property
    def shape(self) -> Optional[Shape]:
        """Its sizes; None: its inner states cannot be read."""
        return None

    @abc.abstractmethod
    def features(
        self, batch: Dict[str, Any], rows: Tensor, inner: Optional[Inner] = None
    ) -> Tuple[Tensor, Project, States]:
        """(tokens, dimension) features at a batch's rows, their projection to logits in the model's own order of
        symbols, and the inner states. The model is already on the batch's device."""

    def answer(
        self, batch: Dict[str, Any], rows: Tensor, inner: Optional[Inner] = None
    ) -> Tuple[Tensor, Project, Project, States]:
        """As `features`, plus a second projection, to logits in the student's order of symbols.

        These are -inf for symbols that the model lacks, and omit symbols that only the model has, so a softmax
        renormalises over the rest.
        """
        values, whole, states = self.features(batch, rows, inner)
        target = self.target
        if target.indices is None:
            return values, whole, whole, states
        if isinstance(whole, LinearHead):
            return values, whole, self._restrict(whole), states
        return values, whole, lambda features, allocate: target.of_student(whole(features, allocate)), states

    def _restrict(self, whole: LinearHead) -> LinearHead:
        """The projection to the student's symbols, in the student's order; its rows are copied once."""
        kept = self._restricted
        if kept is None or (kept.weight.device, kept.weight.dtype) != (whole.weight.device, whole.weight.dtype):
            indices, missing = self.target.indices, self.target.missing
            assert indices is not None
            bias = None if whole.bias is None else whole.bias.index_select(0, indices)
            if missing is not None:
                bias = whole.weight.new_zeros(len(indices)) if bias is None else bias
                bias[missing] = -torch.inf
            kept = self._restricted = LinearHead(whole.weight.index_select(0, indices), bias)
        return kept

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves the model to a batch's device and dtype, because fairseq moves only the student."""
        parameter = next(self.model.parameters())
        if parameter.dtype != dtype:
            self.check_range(dtype)
        if parameter.device != device or parameter.dtype != dtype:
            self.model.to(device=device, dtype=dtype)
        self.source, self.target = self.source.to(device), self.target.to(device)

    def check_range(self, dtype: torch.dtype) -> None:
        """
        Raises:
            KDPluginError: a weight is not finite in that dtype
        """
        if dtype != torch.float32:
            check_range(self.model, dtype, self.path, "--teacher-dtype fp32, or bf16 on a GPU that supports it")

    def identity(self) -> Dict[str, Any]:
        """Everything that determines its answers, for a cache's manifest."""
        return {
            "sha256": self.sha256,
            "parameters": self.parameters,
            "maps": [
                None if indices is None else digest_of(indices.tolist())
                for indices in (self.source_indices, self.target_indices)
            ],
        }


def at_rows(rows: Tensor, values: Tensor) -> Tensor:
    """(tokens, dimension) values at the rows. Two dimensions, because fairseq's projection of a frozen
    (batch, length, dimension) tensor takes 1.8 times as long."""
    return values.reshape(-1, values.size(-1)).index_select(0, rows)


def as_it_is(logits: Tensor, allocate: Allocate) -> Tensor:
    """The identity, for a model whose features are already logits."""
    return logits
