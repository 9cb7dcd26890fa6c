"""What the tasks of students that label share: the folder's checks, unlabelled sentences, what a teacher reads."""

import logging
import os
from typing import Any, ClassVar, Dict, List, Optional

import numpy as np
from fairseq.data import Dictionary, SortDataset, data_utils

from kd_plugin.corpus.binarised import dataset_format
from kd_plugin.corpus.labelled_folder import LabelledSplit, Reading, check_reading, load_input_dictionary, same_symbols
from kd_plugin.corpus.labels import check_number, label_names, load_labels
from kd_plugin.corpus.words import rule_of
from kd_plugin.corpus.words_of_sentences import Part
from kd_plugin.errors import KDPluginError
from kd_plugin.tasks.distillation import DistillationMixin
from kd_plugin.teachers.kinds import LABELLERS, TeacherKind
from kd_plugin.teachers.labelling.base import Labelling

logger = logging.getLogger(__name__)


class LabellingMixin(DistillationMixin):
    """Use as `class X(LabellingMixin, SentencePredictionTask)`."""

    kinds: ClassVar[Dict[str, TeacherKind]] = LABELLERS
    task_name: ClassVar[str]
    labels_tokens: ClassVar[bool]
    dictionary: Dictionary
    label_dictionary: Dictionary

    @classmethod
    def setup_task(cls, cfg: Any, **_: Any) -> Any:
        """Loads and checks the dictionaries; the number of labels is that of label/dict.txt unless given.

        Raises:
            KDPluginError: there is no such folder, or its labels are not as many as --num-classes
        """
        dictionary = load_input_dictionary(cfg.data)
        logger.info(f"[input] dictionary: {len(dictionary)} types")
        if cls.predicts_numbers(cfg):
            if cfg.num_classes < 1:
                raise KDPluginError(
                    "--regression-target needs the number of values per sentence. Remedy: --num-classes 1"
                )
            return cls(cfg, dictionary, dictionary)
        path = os.path.join(cfg.data, "label", "dict.txt")
        if not os.path.isfile(path):
            raise KDPluginError(
                f"{path}: no such file, so the labels have no names. Remedy: a folder with label/dict.txt; where no "
                "sentence has a label, that of the teacher's training data"
            )
        labels = load_labels(path)
        names = label_names(labels)
        if cfg.num_classes < 1:
            cfg.num_classes = len(names)
        check_number(names, cfg.num_classes, path)
        logger.info(f"[label] {len(names)} labels: {', '.join(names[:20])}")
        return cls(cfg, dictionary, labels)

    @classmethod
    def predicts_numbers(cls, cfg: Any) -> bool:
        """--regression-target."""
        return False

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """As DistillationMixin's; checkpoints say the number of labels, which stock fairseq needs to open them."""
        root = self._root()
        for part in (root.get("task"), root.get("model")):
            if hasattr(part, "num_classes"):
                part.num_classes = self.cfg.num_classes
        super().begin_epoch(epoch, model)

    @property
    def counted_dictionary(self) -> Optional[Dictionary]:
        """The dictionary whose counts tell what guessing a label costs; None: there are no labels."""
        return None if self.predicts_numbers(self.cfg) else self.label_dictionary

    @property
    def labelling(self) -> Labelling:
        """What the student labels."""
        cfg = self.cfg
        numbers = self.predicts_numbers(cfg)
        return Labelling(
            self.labels_tokens,
            None if numbers else label_names(self.label_dictionary),
            int(cfg.num_classes),
            self.dictionary,
            self.reading,
            str(cfg.classification_head_name),
            int(cfg.max_positions),
        )

    @property
    def reading(self) -> Reading:
        """How the text is read."""
        cfg = self.cfg
        rule = rule_of(str(cfg.word_start), self.dictionary.symbols)
        reading = Reading(rule, cfg.init_token, getattr(cfg, "separator_token", None))
        check_reading(reading, self.dictionary, str(cfg.data))
        return reading

    @property
    def unlabelled_folder(self) -> Optional[str]:
        """--kd-unlabelled."""
        folder: Optional[str] = self.cfg.kd_unlabelled
        return folder

    @property
    def training_without_labels(self) -> str:
        """The folder, if its training data have no labels at all; else empty."""
        root = self._root().get("dataset") or {}
        split = LabelledSplit(self.cfg.data, str(root.get("train_subset", "train")))
        return self.cfg.data if split.has("input0") and not self.has_labels(split) else ""

    def has_labels(self, split: LabelledSplit) -> bool:
        """Whether a split has labels."""
        return split.has("label")

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> Any:
        """As fairseq's, with unlabelled sentences, and what the teacher needs."""
        labelled = LabelledSplit(self.cfg.data, split)
        training = split == str((self._root().get("dataset") or {}).get("train_subset", "train"))
        if not labelled.has("input0"):
            raise KDPluginError(
                f"{labelled.prefix('input0')}.bin: no such file. Remedy: the folder's splits are named by the files in "
                "input0/ (--train-subset, --valid-subset)"
            )
        parts, more = self._parts(labelled, combine), []
        if training and self.unlabelled_folder:
            more = self._parts(self._unlabelled_split(split), combine)
        self.datasets[split] = self.dataset_of(parts, more, combine)  # type: ignore[attr-defined]
        self._count_cut(split, [*parts, *more])
        if self.teacher is not None:
            self.teacher.attach_labelled(self.datasets[split], [*parts, *more], training)  # type: ignore[attr-defined]
        return self.datasets[split]  # type: ignore[attr-defined]

    def _count_cut(self, split: str, parts: List[Part]) -> None:
        """Says of how many sentences the student reads only a part."""
        cfg = self.cfg
        listed, limit = str(getattr(cfg, "shorten_data_split_list", "")), int(cfg.max_positions)
        if str(cfg.shorten_method) == "none" or (listed and split not in listed.split(",")):
            return
        cut = 0
        for part in parts:
            added = [cfg.init_token, getattr(cfg, "separator_token", None)][: len(part.inputs)]
            lengths = np.sum([np.asarray(texts.sizes) for texts in part.inputs], axis=0)
            cut += int(np.sum(lengths + sum(one is not None for one in added) > limit))
        if cut:
            logger.warning(
                f"{split}: of {cut:,} of {sum(part.sentences for part in parts):,} sentences the student reads only "
                f"{limit} symbols (--max-positions, --shorten-method {cfg.shorten_method}). So does a fairseq teacher; "
                "a Hugging Face teacher and a cache answer for the whole sentence"
            )

    def _parts(self, split: LabelledSplit, combine: bool) -> List[Part]:
        """A split and, if fairseq combines them, those that continue it: train1, train2, …"""
        found = [split]
        while combine and split._replace(name=f"{split.name}{len(found)}").has("input0"):
            found.append(split._replace(name=f"{split.name}{len(found)}"))
        return [self.part(one) for one in found]

    def part(self, split: LabelledSplit) -> Part:
        """Opens a split, after checks whose messages are clearer than fairseq's; counts empty sentences."""
        for name in split.inputs:
            dataset_format(split.prefix(name))
        part = Part(split, split.open(self.dictionary))
        for name, texts in zip(split.inputs, part.inputs):
            if len(texts) != part.sentences:
                raise KDPluginError(
                    f"{split.prefix(name)}: has {len(texts):,} sentences, but input0 {part.sentences:,}. Remedy: "
                    "binarise both sides of the pairs from files with as many lines"
                )
            empty = int((np.asarray(texts.sizes) <= 1).sum())
            if empty:
                logger.warning(f"{split.prefix(name)}: {empty:,} of {part.sentences:,} sentences are empty")
        return part

    def _unlabelled_split(self, name: str) -> LabelledSplit:
        folder = self.unlabelled_folder
        assert folder is not None
        split = LabelledSplit(folder, name)
        if os.path.realpath(folder) == os.path.realpath(self.cfg.data):
            raise KDPluginError(
                f"--kd-unlabelled {folder}: is the folder of the labelled text, whose sentences learn from the teacher "
                "already. Remedy: another folder, or leave it out"
            )
        if not split.has("input0"):
            raise KDPluginError(
                f"--kd-unlabelled {folder}: has no {split.prefix('input0')}.bin. Remedy: text binarised with "
                f"--srcdict {os.path.join(self.cfg.data, 'input0', 'dict.txt')}"
            )
        if not same_symbols(load_input_dictionary(folder), self.dictionary):
            raise KDPluginError(
                f"--kd-unlabelled {folder}: its input0/dict.txt differs from that of {self.cfg.data}. Remedy: binarise "
                f"its text with --srcdict {os.path.join(self.cfg.data, 'input0', 'dict.txt')}"
            )
        if len(split.inputs) != len(LabelledSplit(self.cfg.data, name).inputs):
            raise KDPluginError(
                f"--kd-unlabelled {folder}: has {len(split.inputs)} texts per sentence, but {self.cfg.data} has "
                f"{len(LabelledSplit(self.cfg.data, name).inputs)}. Remedy: pairs of sentences in both, or in neither"
            )
        return split

    def dataset_of(self, parts: List[Part], more: List[Part], combine: bool) -> Any:
        """fairseq's dataset of the parts' sentences, in their order by id.

        Args:
            more: the parts of --kd-unlabelled
            combine: as for load_dataset
        """
        raise NotImplementedError

    def shuffled(self, dataset: Any) -> Any:
        """In an order drawn from --seed, as fairseq's task has it; ids stay those of the data."""
        if self.cfg.no_shuffle:
            return dataset
        with data_utils.numpy_seed(self.cfg.seed):
            order = np.random.permutation(len(dataset))
        return SortDataset(dataset, sort_order=[order])
