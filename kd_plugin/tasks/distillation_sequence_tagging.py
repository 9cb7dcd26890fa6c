"""The task of sequence tagging: a label per word, with a frozen teacher. fairseq has no such task."""

import contextlib
from dataclasses import dataclass, field
from typing import Any, List, Optional

from fairseq import models
from fairseq.criterions.sentence_prediction import SentencePredictionConfig as StockCriterionConfig
from fairseq.data import (
    ConcatDataset,
    IdDataset,
    NestedDictionaryDataset,
    NumelDataset,
    NumSamplesDataset,
    PrependTokenDataset,
    RightPadDataset,
    TruncateDataset,
)
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from omegaconf import II, MISSING, OmegaConf, open_dict

from kd_plugin.checkpoints.student import SENTENCES
from kd_plugin.corpus.binarised import dataset_format, open_indexed
from kd_plugin.corpus.word_targets import WordTargets, check_words
from kd_plugin.corpus.words_of_sentences import Part
from kd_plugin.criterions.kd_sequence_tagging import CRITERION_NAME, KDSequenceTaggingConfig
from kd_plugin.errors import KDPluginError
from kd_plugin.models.states import shape_of
from kd_plugin.models.token_head import register_token_head
from kd_plugin.tasks.distillation import check_registered_here, private_fields
from kd_plugin.tasks.labelling import LabellingMixin
from kd_plugin.tasks.teacher_flags import LabelTeacherFlags

TASK_NAME = "distillation_sequence_tagging"


@dataclass
class DistillationSequenceTaggingConfig(LabelTeacherFlags, FairseqDataclass):
    data: str = field(default=MISSING, metadata={"help": "folder of kd-plugin prepare-tagging: input0/ and label/"})
    num_classes: int = field(default=-1, metadata={"help": "number of labels; default: those in label/dict.txt"})
    init_token: Optional[int] = field(
        default=None, metadata={"help": "index of a symbol to add at the beginning of each sentence, such as 0 for <s>"}
    )
    no_shuffle: bool = field(default=False, metadata={"help": "keep the order of the data"})
    shorten_method: ChoiceEnum(["none", "truncate"]) = field(  # type: ignore[valid-type]
        default="none",
        metadata={"help": "truncate: cut sentences after --max-positions symbols; labels beyond teach nothing"},
    )
    max_positions: int = field(default=512, metadata={"help": "most symbols per sentence"})
    classification_head_name: str = II("criterion.classification_head_name")
    seed: int = II("common.seed")


@register_task(TASK_NAME, dataclass=DistillationSequenceTaggingConfig)
class DistillationSequenceTaggingTask(LabellingMixin, SentencePredictionTask):
    """A label per word, learned at the word's first symbol, with a criterion that may ask `task.teacher`."""

    stock = SENTENCES
    private_fields = private_fields(
        DistillationSequenceTaggingConfig, SentencePredictionConfig, KDSequenceTaggingConfig, StockCriterionConfig
    )
    criterion = CRITERION_NAME
    task_name = TASK_NAME
    labels_tokens = True

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """A model with a head for tokens."""
        with open_dict(cfg) if OmegaConf.is_config(cfg) else contextlib.nullcontext():
            cfg.max_positions = self.cfg.max_positions
        model = models.build_model(cfg, self, from_checkpoint)
        register_token_head(model, self.cfg.classification_head_name, int(self.cfg.num_classes))
        self.student_shape = shape_of(model)
        return model

    def dataset_of(self, parts: List[Part], more: List[Part], combine: bool) -> Any:
        """As LabellingMixin's."""
        words, offset = self.labelling.words(), self.label_dictionary.nspecial
        tokens, targets = [], []
        for number, part in enumerate([*parts, *more]):
            if len(part.inputs) != 1:
                raise KDPluginError(
                    f"{part.split.data}: has input1, but tagging reads one sentence at a time. Remedy: input0 alone"
                )
            labels, path = None, part.split.prefix("label")
            if part.split.has("label") and number < len(parts):
                dataset_format(path)
                labels = open_indexed(path, self.label_dictionary)
            check_words(part.inputs[0], labels, words, path, words.word_start)
            read = part.inputs[0]
            if self.cfg.init_token is not None:
                read = PrependTokenDataset(read, self.cfg.init_token)
            if str(self.cfg.shorten_method) == "truncate":
                read = TruncateDataset(read, self.cfg.max_positions)
            tokens.append(read)
            targets.append(WordTargets(read, labels, words, offset, path))
        read, target = (one[0] if len(one) == 1 else ConcatDataset(one) for one in (tokens, targets))
        dataset = NestedDictionaryDataset(
            {
                "id": IdDataset(),
                "net_input": {
                    "src_tokens": RightPadDataset(read, pad_idx=self.dictionary.pad()),
                    "src_lengths": NumelDataset(read, reduce=False),
                },
                "nsentences": NumSamplesDataset(),
                "ntokens": NumelDataset(read, reduce=True),
                "target": target,
            },
            sizes=[read.sizes],
        )
        return self.shuffled(dataset)


check_registered_here(TASK_NAME, __name__)
