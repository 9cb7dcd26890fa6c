"""The task: fairseq's translation with a frozen teacher beside the student."""

import logging
from argparse import ArgumentParser
from dataclasses import dataclass, field, fields
from typing import Any, Optional, Set, Union

from fairseq import utils
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import TASK_REGISTRY, register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import DictConfig

from kd_plugin.checkpoints import carry_state, describe_as_stock, refuse_to_replace
from kd_plugin.compat import refuse_idle_ranks
from kd_plugin.criterions.flags import KDLabelSmoothedCrossEntropyCriterionConfig
from kd_plugin.criterions.kd_label_smoothed_cross_entropy import (
    KDLabelSmoothedCrossEntropyCriterion,
)
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.selection import SelectAll
from kd_plugin.signature import run_signature
from kd_plugin.teachers.cached import CachedTeacher
from kd_plugin.teachers.finite import check_finite
from kd_plugin.teachers.flags import open_teacher, parse_hashes
from kd_plugin.teachers.online import TEACHER_DTYPES, OnlineTeacher
from kd_plugin.teachers.paths import split_model_paths

logger = logging.getLogger(__name__)

TASK_NAME = "distillation_translation"


@dataclass
class DistillationTranslationConfig(TranslationConfig):
    teacher_path: Optional[str] = field(
        default=None,
        metadata={
            "help": "checkpoint of the teacher; several, separated by colons, make an ensemble (a colon in a path: \\: "
            "or a JSON list). The architecture is read from the checkpoint itself"
        },
    )
    teacher_cache: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder with a teacher's answers to the training data, as kd-plugin cache writes it, instead of "
            "--teacher-path"
        },
    )
    # Any: a string on the command line, a list or mapping in YAML
    teacher_weights: Any = field(
        default=None,
        metadata={
            "help": "one weight per teacher of an ensemble, separated by commas, scaled to sum 1: the mixture of the "
            "teachers' probabilities is distilled. Default: equal weights"
        },
    )
    teacher_overrides: Any = field(
        default="{}",
        metadata={
            "help": "JSON dictionary of fields to replace in the teacher's own configuration, e.g. '{\"data\": "
            '"DATA_BIN"}\' for the folder of its dictionaries'
        },
    )
    teacher_dtype: ChoiceEnum(["auto", *TEACHER_DTYPES]) = field(  # type: ignore[valid-type]
        default="auto",
        metadata={"help": "dtype of the teacher; auto: as the student computes on a GPU, fp32 on a CPU"},
    )
    teacher_sha256: Optional[str] = field(
        default=None,
        metadata={
            "help": "refuse any other file as teacher, or answers by any other: sha256, separated by colons "
            "(kd-plugin doctor --teacher PATH prints it)"
        },
    )


def _own_fields(config: type, stock_config: type) -> Set[str]:
    return {field.name for field in fields(config)} - {field.name for field in fields(stock_config)}


PRIVATE_FIELDS = _own_fields(DistillationTranslationConfig, TranslationConfig) | _own_fields(
    KDLabelSmoothedCrossEntropyCriterionConfig, LabelSmoothedCrossEntropyCriterionConfig
)


@register_task(TASK_NAME, dataclass=DistillationTranslationConfig)
class DistillationTranslationTask(TranslationTask):
    """Translation whose criterion may ask `task.teacher` about the target tokens of a batch.

    Without training (fairseq-generate, fairseq-interactive) it is plain translation and no teacher is loaded.
    """

    cfg: DistillationTranslationConfig

    def __init__(self, cfg: DistillationTranslationConfig, src_dict, tgt_dict):
        super().__init__(cfg, src_dict, tgt_dict)
        self.teacher: Union[OnlineTeacher, CachedTeacher, None] = None
        self.num_updates = 0
        self.is_dummy_batch = False
        self.selection: SelectAll = SelectAll()
        self._signature = ""
        self._student_checked = False

    @classmethod
    def add_args(cls, parser):
        super().add_args(parser)
        # at import, fairseq also calls this with a mere group of arguments, for its documentation
        if isinstance(parser, ArgumentParser):
            refuse_idle_ranks(parser)

    def build_criterion(self, cfg, *args, **kwargs):
        """Called where training starts, before data are loaded: a bad teacher is refused here."""
        self._load_teacher()
        criterion = super().build_criterion(cfg, *args, **kwargs)
        if isinstance(criterion, KDLabelSmoothedCrossEntropyCriterion):
            self.selection = criterion.selection
            if isinstance(self.teacher, CachedTeacher):
                self.teacher.check(criterion.kd_divergence, criterion.temperatures(), criterion.kd_top1_rank)
            self._signature = run_signature(criterion, self.teacher)
            logger.info(self._signature)
        elif self.teacher is not None:
            raise KDPluginError(
                f"a teacher is given, but the criterion {type(criterion).__name__} asks no teacher. Remedy: "
                "--criterion kd_label_smoothed_cross_entropy, or leave the teacher out"
            )
        return criterion

    def _load_teacher(self) -> None:
        cfg = self.cfg
        if cfg.teacher_cache:
            for name in ("teacher_path", "teacher_weights"):
                if getattr(cfg, name):
                    raise KDPluginError(f"--{name.replace('_', '-')} and --teacher-cache are both given: leave one out")
            for name, default in (("teacher_overrides", "{}"), ("teacher_dtype", "auto")):
                if str(getattr(cfg, name)) != str(default):
                    raise KDPluginError(
                        f"--{name.replace('_', '-')}: the answers in --teacher-cache were given without it. Remedy: "
                        "leave it out; kd-plugin cache takes --teacher-overrides and --teacher-dtype"
                    )
            self.teacher = CachedTeacher(cfg.teacher_cache, self.target_dictionary, parse_hashes(cfg.teacher_sha256))
        elif cfg.teacher_path:
            saving = self._root().get("checkpoint")
            if saving and not saving.no_save:
                refuse_to_replace(split_model_paths(cfg.teacher_path), saving.save_dir)
            self.teacher = open_teacher(
                self,
                cfg.teacher_path,
                cfg.teacher_weights,
                cfg.teacher_overrides,
                cfg.teacher_sha256,
                str(cfg.teacher_dtype),
            )
        else:
            for name in ("teacher_weights", "teacher_sha256"):
                if getattr(cfg, name):
                    raise KDPluginError(f"--{name.replace('_', '-')} is given without --teacher-path")

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """As fairseq's; batches of a split whose answers are in --teacher-cache bring them along."""
        if self.cfg.upsample_primary < 1:
            self.cfg.upsample_primary = 1  # with fairseq's own default, -1, train and train1 together crash
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        if isinstance(self.teacher, CachedTeacher):
            training = split == self.cfg.train_subset
            paths = utils.split_paths(self.cfg.data)
            data = paths[(epoch - 1) % len(paths)] if training else paths[0]
            languages = self.cfg.source_lang, self.cfg.target_lang
            truncated_to = self.cfg.max_source_positions if self.cfg.truncate_source else None
            self.teacher.attach(self.datasets[split], data, split, *languages, training, truncated_to)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        # schedules and error messages need the update number, which fairseq hands to nobody else
        self.num_updates = update_num
        # a rank that has run out of data goes through a batch whose gradient is thrown away
        self.is_dummy_batch = ignore_grad
        if ignore_grad and isinstance(self.teacher, CachedTeacher):
            sample = self.teacher.complete(sample)
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs)

    def get_batch_iterator(self, *args, **kwargs):
        """fairseq's iterator, whose state in a checkpoint carries that of the selection of tokens.

        fairseq saves `task.state` but restores it in no training; the iterator's state it does restore, and forgets
        it with --reset-dataloader, as it should.
        """
        return carry_state(super().get_batch_iterator(*args, **kwargs), "kd_selection", lambda: self.selection)

    def begin_epoch(self, epoch, model):
        """From here on nothing reads the configuration any more but the trainer when it saves."""
        super().begin_epoch(epoch, model)
        if not self._student_checked:
            self._student_checked = True
            check_finite(dict(model.named_parameters()), self._student_name())
        # after loading a checkpoint, whose own signature it replaces
        self.state.merge_state_dict({"kd_signature": self._signature})
        root = self._root()
        if "common" in root and "criterion" in root:
            describe_as_stock(root, PRIVATE_FIELDS)

    def _root(self) -> DictConfig:
        """The whole configuration of the training around the task; empty where there is none."""
        root = self.cfg._get_root() if isinstance(self.cfg, DictConfig) else None
        return root if isinstance(root, DictConfig) else DictConfig({})

    def _student_name(self) -> str:
        """The file that the student's first weights may come from."""
        cfg = self._root().get("checkpoint")
        if not cfg:
            return "the student"
        flag = "finetune_from_model" if cfg.finetune_from_model else "restore_file"
        return f"the student of --{flag.replace('_', '-')} {cfg[flag]}"

    def max_positions(self):
        """fairseq skips (training) or refuses (validation) what is longer: no index error in a shorter teacher."""
        own = super().max_positions()
        return utils.resolve_max_positions(own, *self.teacher.max_positions()) if self.teacher is not None else own


# a second task of this name would be ignored by fairseq without a word
if TASK_REGISTRY[TASK_NAME].__module__ != __name__:
    raise KDPluginError(
        f"another plugin has registered the task {TASK_NAME} ({TASK_REGISTRY[TASK_NAME].__module__}). Remedy: import "
        "only one of the two (--user-dir)"
    )
