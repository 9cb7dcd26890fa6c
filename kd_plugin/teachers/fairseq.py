"""A fairseq checkpoint as a teacher."""

import contextlib
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from fairseq.models.transformer import TransformerDecoderBase
from fairseq.tasks.translation import TranslationTask
from torch import Tensor

from kd_plugin.checkpoints.open import Checkpoint, open_beside
from kd_plugin.losses.answer import LinearHead, Project
from kd_plugin.models.hooks import hooked
from kd_plugin.models.inspect import gives_features, has_adaptive_softmax
from kd_plugin.models.packed import INPUTS, can_pack, packed_features
from kd_plugin.models.states import Inner, Recorder, Shape, States, shape_of
from kd_plugin.teachers.member import Member, as_it_is, at_rows
from kd_plugin.teachers.vocabulary import REFUSE, teacher_symbols


class FairseqMember(Member):
    """A BaseFairseqModel of any architecture."""

    def max_positions(self) -> Any:
        """As Member's."""
        return self.model.max_positions()

    @property
    def shape(self) -> Optional[Shape]:
        """As Member's; only of models that give their features."""
        return shape_of(self.model) if gives_features(self.model) else None

    def features(
        self, batch: Dict[str, Any], rows: Tensor, inner: Optional[Inner] = None
    ) -> Tuple[Tensor, Project, States]:
        """As Member's."""
        model, net_input = self.model, dict(batch["net_input"])
        if self.source_indices is not None:
            net_input["src_tokens"] = self.source_indices[net_input["src_tokens"]]
        if self.target_indices is not None:
            net_input["prev_output_tokens"] = self.target_indices[net_input["prev_output_tokens"]]
        if gives_features(model):
            project = _projection(model.decoder)
            recorder = None if inner is None else Recorder(model, net_input, inner)
            if can_pack(model) and net_input.keys() <= INPUTS:
                values = packed_features(model, net_input, rows, recorder)
            else:
                with contextlib.nullcontext() if recorder is None else hooked(recorder, model):
                    # alignment_layer -1 matches no layer, so no attention weights are computed
                    net_output = model(**net_input, features_only=True, alignment_layer=-1, return_all_hiddens=False)
                values = at_rows(rows, net_output[0])
            return values, project, {} if recorder is None else recorder.states()
        if has_adaptive_softmax(model):
            return at_rows(rows, model.get_normalized_probs(model(**net_input), log_probs=True)), as_it_is, {}
        return at_rows(rows, model(**net_input)[0]), as_it_is, {}


def fit(
    checkpoint: Checkpoint, student_task: TranslationTask, missing_symbols: str = REFUSE, unsaid: Sequence[str] = ()
) -> FairseqMember:
    """A checkpoint as a teacher for this student.

    Args:
        unsaid: the student's symbols that it neither reads nor predicts, and may lack

    Raises:
        KDPluginError: its dictionaries lack some of the student's symbols, or as `Checkpoint.model`
    """
    students = student_task.source_dictionary, student_task.target_dictionary
    names = [f"{side} ({path})" for side, path in zip(("source", "target"), checkpoint.dictionary_paths)]
    source, target = (
        teacher_symbols(mine, theirs, checkpoint.path, name, missing_symbols, unsaid)
        for mine, theirs, name in zip(students, checkpoint.dictionaries, names)
    )
    return FairseqMember(checkpoint.model, checkpoint.path, checkpoint.sha256, checkpoint.parameters, source, target)


def load_teacher(
    path: str,
    student_task: TranslationTask,
    expected_sha256: Optional[str] = None,
    overrides: Optional[Dict[str, Any]] = None,
) -> FairseqMember:
    """Loads a checkpoint of any architecture as a teacher for this student.

    Raises:
        KDPluginError: as `open_beside` and `fit`
    """
    languages = [student_task.cfg.source_lang, student_task.cfg.target_lang]
    (checkpoint,) = open_beside([path], languages, overrides or {}, [expected_sha256])
    return fit(checkpoint, student_task)


def _projection(decoder: Any) -> Project:
    """The decoder's projection from features to logits."""
    layer = getattr(decoder, "output_projection", None)
    if type(decoder).output_layer is not TransformerDecoderBase.output_layer or type(layer) is not torch.nn.Linear:
        return lambda features, allocate: decoder.output_layer(features)
    return LinearHead(layer.weight, layer.bias)
