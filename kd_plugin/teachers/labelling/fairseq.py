"""A fairseq checkpoint as a labelling teacher."""

import contextlib
import logging
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor

from kd_plugin.checkpoints.classifier import Classifier
from kd_plugin.corpus.labelled_folder import Reading
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.answer import Project
from kd_plugin.models.hooks import hooked
from kd_plugin.models.states import Inner, Recorder, Shape, States, shape_of
from kd_plugin.teachers.labelling.base import Labelling, LabelMember, label_symbols
from kd_plugin.teachers.member import as_it_is, at_rows
from kd_plugin.teachers.vocabulary import REFUSE, teacher_symbols

logger = logging.getLogger(__name__)

UNLIMITED = 2**31 - 1  # symbols; longer than any sentence


class FairseqLabelMember(LabelMember):
    """A model with fairseq's classification heads, which reads the student's tokens.

    Args:
        opened: the checkpoint
        labelling: what the student labels
    """

    truncates = True

    def __init__(self, opened: Classifier, labelling: Labelling, source: Any, target: Any):
        super().__init__(opened.model, opened.path, opened.sha256, opened.parameters, source, target)
        self._head, self._pad, self._tokens = opened.head, labelling.dictionary.pad(), labelling.tokens
        positions = opened.model.max_positions()
        limit = positions[0] if isinstance(positions, (tuple, list)) else positions
        self._limit = UNLIMITED if limit is None else int(limit)  # None: a recurrent or convolutional model's
        # the same for every batch, because every rank has to log the same values
        self._cuts_words = labelling.tokens and self._limit < labelling.limit

    @property
    def shape(self) -> Optional[Shape]:
        """As Member's."""
        return shape_of(self.model)

    def truncated(self, batch: Dict[str, Any]) -> Tensor:
        """As LabelMember's."""
        lengths: Tensor = batch["net_input"]["src_tokens"].ne(self._pad).sum(dim=1)
        return lengths > self._limit

    def covered(self, batch: Dict[str, Any], rows: Tensor) -> Optional[Tensor]:
        """As LabelMember's: not the words beyond its limit."""
        length = batch["net_input"]["src_tokens"].size(1)
        if not self._cuts_words:
            return None
        return rows % length < self._limit

    def features(
        self, batch: Dict[str, Any], rows: Tensor, inner: Optional[Inner] = None
    ) -> Tuple[Tensor, Project, States]:
        """As Member's: the logits at the rows."""
        tokens = batch["net_input"]["src_tokens"]
        if inner is not None and tokens.size(1) > self._limit:
            raise KDPluginError(
                f"{self.path}: reads only {self._limit} symbols of a sentence, so its layers do not match the student's"
                f" there (sample ids {batch['id'].tolist()[:10]}). Remedy: --max-positions {self._limit} and "
                "--shorten-method truncate, or train without comparing layers"
            )
        length = tokens.size(1)
        if self.source_indices is not None:
            tokens = self.source_indices[tokens]
        net_input = {**batch["net_input"], "src_tokens": tokens}
        if length > self._limit:
            net_input["src_tokens"] = tokens[:, : self._limit]
            net_input["src_lengths"] = net_input["src_lengths"].clamp(max=self._limit)
            if self._tokens:
                sentence = torch.div(rows, length, rounding_mode="floor")
                rows = sentence * self._limit + (rows % length).clamp(max=self._limit - 1)
        recorder = None if inner is None else Recorder(self.model, net_input, inner)
        with contextlib.nullcontext() if recorder is None else hooked(recorder, self.model):
            logits = self.model(**net_input, features_only=True, classification_head_name=self._head)[0]
        return at_rows(rows, logits), as_it_is, {} if recorder is None else recorder.states()


def fit_classifier(
    opened: Classifier,
    labelling: Labelling,
    missing_symbols: str = REFUSE,
    given_labels: Optional[Sequence[str]] = None,
) -> FairseqLabelMember:
    """A checkpoint as a teacher for this student.

    Raises:
        KDPluginError: its dictionary lacks some of the student's symbols, it begins sentences differently, or its
            labels are others
    """
    _check_reading(opened, labelling.reading)
    name = f"input ({opened.dictionary_path})"
    source = teacher_symbols(labelling.dictionary, opened.dictionary, opened.path, name, missing_symbols)
    target = label_symbols(labelling, opened.names, opened.outputs, opened.path, given_labels)
    return FairseqLabelMember(opened, labelling, source, target)


def _check_reading(opened: Classifier, reading: Reading) -> None:
    """Refuses a teacher that reads other symbols around sentences, such as the <s> whose state it classifies."""
    ours = reading.init_token, reading.separator_token
    for flag, mine, theirs in zip(("--init-token", "--separator-token"), ours, opened.tokens):
        if mine != theirs:
            raise KDPluginError(
                f"{opened.path}: was trained with {_said(flag, theirs)}, but the student has {_said(flag, mine)}. "
                f"Remedy: {_said(flag, theirs)} for the student as well"
            )


def _said(flag: str, value: Optional[int]) -> str:
    return f"no {flag}" if value is None else f"{flag} {value}"
