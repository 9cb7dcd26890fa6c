"""The task of sentence classification and regression: fairseq's sentence_prediction with a frozen teacher."""

import os
from dataclasses import dataclass
from typing import Any, List

from fairseq.criterions.sentence_prediction import SentencePredictionConfig as StockCriterionConfig
from fairseq.models import ARCH_MODEL_REGISTRY, FairseqEncoderDecoderModel
from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

from kd_plugin.checkpoints.student import SENTENCES
from kd_plugin.corpus.binarised import dataset_format, open_indexed
from kd_plugin.corpus.labelled_folder import LabelledSplit
from kd_plugin.corpus.mixed import MixedDataset
from kd_plugin.corpus.words_of_sentences import Part
from kd_plugin.criterions.kd_sentence_prediction import CRITERION_NAME, KDSentencePredictionConfig
from kd_plugin.errors import KDPluginError
from kd_plugin.tasks.distillation import check_registered_here, private_fields
from kd_plugin.tasks.labelling import LabellingMixin
from kd_plugin.tasks.teacher_flags import LabelTeacherFlags

TASK_NAME = "distillation_sentence_prediction"


@dataclass
class DistillationSentencePredictionConfig(LabelTeacherFlags, SentencePredictionConfig):
    pass


@register_task(TASK_NAME, dataclass=DistillationSentencePredictionConfig)
class DistillationSentencePredictionTask(LabellingMixin, SentencePredictionTask):
    """Classification of sentences or pairs of sentences, or regression, whose criterion may ask `task.teacher`."""

    stock = SENTENCES
    private_fields = private_fields(
        DistillationSentencePredictionConfig, SentencePredictionConfig, KDSentencePredictionConfig, StockCriterionConfig
    )
    criterion = CRITERION_NAME
    task_name = TASK_NAME
    labels_tokens = False

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """As fairseq's, after a check of the architecture.

        Raises:
            KDPluginError: it has no classification heads, or it reads prev_output_tokens, which the batches lack
        """
        name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
        architecture = ARCH_MODEL_REGISTRY.get(name)
        if architecture is not None and not hasattr(architecture, "register_classification_head"):
            raise KDPluginError(
                f"--arch {name}: has no classification heads, so it cannot label. Remedy: --arch roberta or one of its "
                "sizes, text_cnn, bilstm or bag_of_embeddings"
            )
        if issubclass(architecture or object, FairseqEncoderDecoderModel) and not self.cfg.add_prev_output_tokens:
            raise KDPluginError(
                f"--arch {name}: its decoder reads the sentence as well. Remedy: --add-prev-output-tokens, or an "
                "encoder such as --arch roberta"
            )
        return super().build_model(cfg, from_checkpoint)

    @classmethod
    def predicts_numbers(cls, cfg: Any) -> bool:
        """As LabellingMixin's."""
        return bool(cfg.regression_target)

    def has_labels(self, split: LabelledSplit) -> bool:
        """As LabellingMixin's; numbers are in a text file."""
        return (
            os.path.isfile(split.prefix("label") + ".label") if self.predicts_numbers(self.cfg) else split.has("label")
        )

    def dataset_of(self, parts: List[Part], more: List[Part], combine: bool) -> Any:
        """As LabellingMixin's; exactly fairseq's own where every sentence has a label."""
        first = parts[0]
        labelled = self.has_labels(first.split)
        if labelled and not self.predicts_numbers(self.cfg):
            for part in parts:
                self._check_labels(part)
        stock = self._stock(first, combine)
        if labelled and not more:
            return stock
        numbers = int(self.cfg.num_classes) if self.predicts_numbers(self.cfg) else None
        nested = _unsorted(stock)
        if not labelled:
            if more:
                raise KDPluginError(
                    f"{first.split.data}: has no labels, so --kd-unlabelled adds nothing of another kind. Remedy: one "
                    "folder with all sentences"
                )
            return self.shuffled(MixedDataset(None, nested, numbers))
        unlabelled = _unsorted(self._stock(more[0], combine))
        unlabelled.defn.pop("target", None)  # a folder that was labelled after all
        return self.shuffled(MixedDataset(nested, unlabelled, numbers))

    def _stock(self, part: Part, combine: bool) -> Any:
        """What fairseq's task makes of a split."""
        folder, name = self.cfg.data, part.split.name
        before = self.datasets.get(name)
        try:
            self.cfg.data = part.split.data
            SentencePredictionTask.load_dataset(self, name, combine=combine)
            return self.datasets[name]
        finally:
            self.cfg.data = folder
            if before is not None:
                self.datasets[name] = before

    def _check_labels(self, part: Part) -> None:
        prefix = part.split.prefix("label")
        dataset_format(prefix)
        labels = open_indexed(prefix, self.label_dictionary)
        if len(labels) != part.sentences:
            raise KDPluginError(
                f"{prefix}: has {len(labels):,} labels for {part.sentences:,} sentences. Remedy: binarise text and "
                "labels from files with as many lines"
            )
        last = self.label_dictionary.nspecial + int(self.cfg.num_classes)
        for index in range(len(labels)):
            label = labels[index]
            if len(label) != 2 or not self.label_dictionary.nspecial <= int(label[0]) < last:
                raise KDPluginError(
                    f"{prefix}: sentence {index + 1} has {self.label_dictionary.string(label) or 'no label'!r} instead "
                    "of one label of label/dict.txt. Remedy: one label per line, without spaces, binarised with this "
                    "dictionary"
                )


def _unsorted(dataset: Any) -> Any:
    """fairseq's NestedDictionaryDataset inside a SortDataset."""
    return dataset.dataset if hasattr(dataset, "sort_order") else dataset


check_registered_here(TASK_NAME, __name__)
