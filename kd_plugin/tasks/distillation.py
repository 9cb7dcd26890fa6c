"""What every task with a teacher shares; a task of ours is this before a stock task of fairseq's."""

import logging
from argparse import ArgumentParser
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, FrozenSet, Optional

from fairseq import utils
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import DictConfig

from kd_plugin.checkpoints.finite import check_finite
from kd_plugin.checkpoints.paths import split_model_paths
from kd_plugin.checkpoints.student import Stock, carry_state, describe_as_stock, refuse_to_replace
from kd_plugin.compat import refuse_idle_ranks
from kd_plugin.criterions.flags import KDLabelSmoothedCrossEntropyCriterionConfig
from kd_plugin.distill.distiller import Distiller
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.selection import SelectAll
from kd_plugin.teachers.base import Teacher
from kd_plugin.teachers.kinds import open_asked, own_flags
from kd_plugin.teachers.online import TEACHER_DTYPES
from kd_plugin.teachers.vocabulary import MISSING_SYMBOLS, REFUSE

logger = logging.getLogger(__name__)


@dataclass
class TeacherFlags(*own_flags(), FairseqDataclass):  # type: ignore[misc]
    """The flags that name a teacher."""

    teacher_path: Optional[str] = field(
        default=None,
        metadata={
            "help": "checkpoint of the teacher, or a folder of Hugging Face's (MarianMT and OPUS-MT, M2M100 and NLLB, "
            "mBART, T5 and MADLAD); several, separated by colons, make an ensemble (a colon in a path: \\: or a JSON "
            "list). The architecture is read from the checkpoint itself"
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
    teacher_user_dir: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder with code that registers the teacher's architecture or task, as fairseq's --user-dir; "
            "several as in --teacher-path. It is run: name only code that you trust"
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
    teacher_source_lang: Optional[str] = field(
        default=None,
        metadata={
            "help": "the source language, as a Hugging Face teacher of several languages names it: eng_Latn for NLLB, "
            "en for M2M100, en_XX for mBART"
        },
    )
    teacher_target_lang: Optional[str] = field(
        default=None, metadata={"help": "the target language likewise; also deu for >>deu<<, de for MADLAD's <2de>"}
    )
    teacher_missing_symbols: ChoiceEnum(MISSING_SYMBOLS) = field(  # type: ignore[valid-type]
        default=REFUSE,
        metadata={
            "help": "what to do where the student's dictionaries have symbols that the teacher lacks; ignore: it reads "
            "them as its unknown symbol, and never says them"
        },
    )


def own_fields(config: type, stock_config: type) -> FrozenSet[str]:
    """Names that a configuration has and the stock one has not."""
    return frozenset(field.name for field in fields(config)) - {field.name for field in fields(stock_config)}


class DistillationMixin:
    """A task whose criterion may ask `teacher` about the target tokens of a batch; `class X(DistillationMixin, Y)`.

    Without training (fairseq-generate, fairseq-interactive) it is the stock task and no teacher is loaded. It describes
    its students' checkpoints as that task's.
    """

    # of the task that it extends
    stock: ClassVar[Stock]
    private_fields: ClassVar[FrozenSet[str]]

    cfg: Any
    teacher: Optional[Teacher]

    def __init__(self, cfg: Any, *dictionaries: Any):
        super().__init__(cfg, *dictionaries)  # type: ignore[call-arg]
        self.teacher = None
        self.num_updates = 0
        self.is_dummy_batch = False
        self.selection = SelectAll()
        self._signature = ""
        self._student_checked = False

    @classmethod
    def add_args(cls, parser: Any) -> None:
        super().add_args(parser)  # type: ignore[misc]
        # at import, fairseq also calls this with a mere group of arguments, for its documentation
        if isinstance(parser, ArgumentParser):
            refuse_idle_ranks(parser)

    def build_criterion(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        """Called where training starts, before data are loaded: a bad teacher is refused here.

        Any criterion will do that has a `distiller`, or, without a teacher, any at all.
        """
        self._load_teacher()
        criterion = super().build_criterion(cfg, *args, **kwargs)  # type: ignore[misc]
        distiller = getattr(criterion, "distiller", None)
        if isinstance(distiller, Distiller):
            self.selection = distiller.selection
            self._signature = distiller.signature
            logger.info(self._signature)
        elif self.teacher is not None:
            raise KDPluginError(
                f"a teacher is given, but the criterion {type(criterion).__name__} asks no teacher. Remedy: "
                "--criterion kd_label_smoothed_cross_entropy, or leave the teacher out"
            )
        return criterion

    def _load_teacher(self) -> None:
        saving = self._root().get("checkpoint")
        if self.cfg.teacher_path and saving and not saving.no_save:
            refuse_to_replace(split_model_paths(self.cfg.teacher_path), saving.save_dir)
        self.teacher = open_asked(self, self.cfg)

    def train_step(
        self,
        sample: Any,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **kwargs: Any,
    ) -> Any:
        # schedules and error messages need the update number, which fairseq hands to nobody else
        self.num_updates = update_num
        # a rank that has run out of data goes through a batch whose gradient is thrown away
        self.is_dummy_batch = ignore_grad
        if ignore_grad and self.teacher is not None:
            sample = self.teacher.complete(sample)
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs)  # type: ignore[misc]

    def get_batch_iterator(self, *args: Any, **kwargs: Any) -> Any:
        """fairseq's iterator, whose state in a checkpoint carries that of the selection of tokens.

        fairseq saves `task.state` but restores it in no training; the iterator's state it does restore, and forgets
        it with --reset-dataloader, as it should.
        """
        iterator = super().get_batch_iterator(*args, **kwargs)  # type: ignore[misc]
        return carry_state(iterator, "kd_selection", lambda: self.selection)

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """From here on nothing reads the configuration any more but the trainer when it saves."""
        super().begin_epoch(epoch, model)  # type: ignore[misc]
        if not self._student_checked:
            self._student_checked = True
            check_finite(dict(model.named_parameters()), self._student_name())
        # after loading a checkpoint, whose own signature it replaces
        self.state.merge_state_dict({"kd_signature": self._signature})  # type: ignore[attr-defined]
        root = self._root()
        if "common" in root and "criterion" in root:
            describe_as_stock(root, self.private_fields, self.stock)

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

    def max_positions(self) -> Any:
        """fairseq skips (training) or refuses (validation) what is longer: no index error in a shorter teacher."""
        own = super().max_positions()  # type: ignore[misc]
        return own if self.teacher is None else utils.resolve_max_positions(own, *self.teacher.max_positions())


def private_fields(config: type, stock_config: type) -> FrozenSet[str]:
    """Names of the flags that no stock checkpoint has: of the task and of the criterion."""
    return own_fields(config, stock_config) | own_fields(
        KDLabelSmoothedCrossEntropyCriterionConfig, LabelSmoothedCrossEntropyCriterionConfig
    )
