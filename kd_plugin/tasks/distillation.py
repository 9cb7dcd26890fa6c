"""What all tasks with a teacher share: each combines this mixin with a stock fairseq task."""

import logging
from argparse import ArgumentParser
from dataclasses import fields
from typing import Any, ClassVar, Dict, FrozenSet, List, Optional

from fairseq import utils
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
from fairseq.tasks import TASK_REGISTRY
from omegaconf import DictConfig

from kd_plugin.checkpoints.finite import check_finite
from kd_plugin.checkpoints.student import Stock, carry_state, describe_as_stock, refuse_to_replace
from kd_plugin.compat import refuse_idle_ranks
from kd_plugin.criterions.flags import KDLabelSmoothedCrossEntropyCriterionConfig
from kd_plugin.distill.distiller import Distiller
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.selection import SelectAll
from kd_plugin.models.states import Shape, shape_of
from kd_plugin.teachers.base import Teacher
from kd_plugin.teachers.kinds import TEACHERS, TeacherKind, asked_files, open_asked
from kd_plugin.teachers.routing.ways import Pair

logger = logging.getLogger(__name__)


def own_fields(config: type, stock_config: type) -> FrozenSet[str]:
    """Names of the fields that a configuration has beyond the stock one."""
    return frozenset(field.name for field in fields(config)) - {field.name for field in fields(stock_config)}


def check_registered_here(task: str, module: str) -> None:
    """Refuses to go on if another plugin has registered a task of this name first: fairseq would silently ignore ours.

    Args:
        module: that registers it
    """
    if TASK_REGISTRY[task].__module__ != module:
        raise KDPluginError(
            f"another plugin has already registered the task {task} ({TASK_REGISTRY[task].__module__}). Remedy: "
            "import only one of the two (--user-dir)"
        )


class DistillationMixin:
    """A task whose criterion may ask `teacher` about a batch's target tokens; use as `class X(DistillationMixin, Y)`.

    Outside training (fairseq-generate, fairseq-interactive) it acts as the stock task and loads no teacher. It labels
    its students' checkpoints as the stock task's.
    """

    # of the stock task that it extends
    stock: ClassVar[Stock]
    private_fields: ClassVar[FrozenSet[str]]
    criterion: ClassVar[str] = "kd_label_smoothed_cross_entropy"
    kinds: ClassVar[Dict[str, TeacherKind]] = TEACHERS

    cfg: Any
    teacher: Optional[Teacher]

    def __init__(self, cfg: Any, *dictionaries: Any):
        super().__init__(cfg, *dictionaries)  # type: ignore[call-arg]
        self.teacher = None
        self._config: Any = None
        self._validates = False
        self.num_updates = 0
        self.student_shape: Optional[Shape] = None
        self.is_dummy_batch = False
        self.selection = SelectAll()
        self.on_policy: Any = None
        self._signature = ""
        self._student_checked = False

    @classmethod
    def add_args(cls, parser: Any) -> None:
        super().add_args(parser)  # type: ignore[misc]
        # at import, fairseq also calls this with an argument group, for its documentation
        if isinstance(parser, ArgumentParser):
            refuse_idle_ranks(parser)

    def build_model(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        """fairseq calls this before build_criterion, whose projections must fit the student."""
        model = super().build_model(cfg, *args, **kwargs)  # type: ignore[misc]
        self.student_shape = shape_of(model)
        return model

    def build_criterion(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        """fairseq calls this at the start of training, before it loads data, so a bad teacher is refused here.

        Accepts any criterion with a `distiller` or, without a teacher, any criterion at all.
        """
        self._config = cfg
        self._load_teacher()
        criterion = super().build_criterion(cfg, *args, **kwargs)  # type: ignore[misc]
        distiller = getattr(criterion, "distiller", None)
        if isinstance(distiller, Distiller):
            self.selection = distiller.selection
            self.on_policy = getattr(criterion, "on_policy", None)
            self._signature = distiller.signature
            logger.info(self._signature)
        elif self.teacher is not None:
            raise KDPluginError(
                f"there is a teacher, but the criterion {type(criterion).__name__} does not use one. Remedy: "
                f"--criterion {self.criterion}, or train without a teacher"
            )
        return criterion

    def _load_teacher(self) -> None:
        saving = self._root().get("checkpoint")
        if saving and not saving.no_save:
            refuse_to_replace(asked_files(self.cfg, self.kinds), saving.save_dir)
        self.teacher = open_asked(self, self.cfg, self.kinds)

    def language_pairs(self) -> List[Pair]:
        """The pairs of a multilingual task; empty: it has one, or its sentences have tags that only the data know."""
        return []

    def language_tokens(self) -> List[str]:
        """The language tokens that the task adds to the dictionaries."""
        return []

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
        # schedules and error messages need the update number, which fairseq passes only here
        self.num_updates = update_num
        self._validates = False
        # a rank that has run out of data computes a dummy batch, whose gradient is discarded
        self.is_dummy_batch = ignore_grad
        if ignore_grad and self.teacher is not None:
            sample = self.teacher.complete(sample)
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs)  # type: ignore[misc]

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """Tells the teacher, which may compare itself with the student."""
        super().begin_valid_epoch(epoch, model)  # type: ignore[misc]
        if self.teacher is not None:
            self.teacher.begin_validation()

    def valid_step(self, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's."""
        self._validates = True
        return super().valid_step(*args, **kwargs)  # type: ignore[misc]

    def reduce_metrics(self, logging_outputs: Any, criterion: Any) -> None:
        """As fairseq's, called after each step with the sums of all ranks."""
        super().reduce_metrics(logging_outputs, criterion)  # type: ignore[misc]
        if self._validates and self.teacher is not None:
            for logs in logging_outputs:
                self.teacher.validated(logs)

    def get_batch_iterator(self, *args: Any, **kwargs: Any) -> Any:
        """fairseq's iterator, with the states of token selection, teacher and student's own words added in checkpoints.

        fairseq saves `task.state` but never restores it in training. It does restore the iterator's state, and rightly
        drops it with --reset-dataloader.
        """
        iterator = super().get_batch_iterator(*args, **kwargs)  # type: ignore[misc]
        carry_state(iterator, "kd_selection", lambda: self.selection)
        owners = {"kd_teacher": lambda: self.teacher, "kd_on_policy": lambda: self.on_policy}
        for key, owner in owners.items():
            if owner() is not None and owner().state_dict():
                carry_state(iterator, key, owner)
        return iterator

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """From here on, only the trainer reads the configuration, when it saves."""
        super().begin_epoch(epoch, model)  # type: ignore[misc]
        if not self._student_checked:
            self._student_checked = True
            check_finite(dict(model.named_parameters()), self._student_name())
        # after a checkpoint has been loaded, to replace its signature
        self.state.merge_state_dict({"kd_signature": self._signature})  # type: ignore[attr-defined]
        root = self._root()
        if "common" in root and "criterion" in root:
            describe_as_stock(root, self.private_fields, self.stock)

    @property
    def seed(self) -> int:
        """fairseq's --seed."""
        return int((self._root().get("common") or {}).get("seed", 1))

    @property
    def ddp_backend(self) -> str:
        """fairseq's --ddp-backend; empty if there is no training."""
        return str((self._root().get("distributed_training") or {}).get("ddp_backend", ""))

    def _root(self) -> DictConfig:
        """The training's whole configuration; empty if the task has none around it."""
        # the flags of fairseq's older tasks are a namespace without a root, but the criterion's have it
        known = next((cfg for cfg in (self.cfg, self._config) if isinstance(cfg, DictConfig)), None)
        root = None if known is None else known._get_root()
        return root if isinstance(root, DictConfig) else DictConfig({})

    def checkpoint_flags(self) -> Any:
        """The flags about checkpoints, by name."""
        return self._root().get("checkpoint") or {}

    def _student_name(self) -> str:
        """A name for the student in messages, with the file of its initial weights if there is one."""
        cfg = self._root().get("checkpoint")
        if not cfg:
            return "the student"
        flag = "finetune_from_model" if cfg.finetune_from_model else "restore_file"
        return f"the student of --{flag.replace('_', '-')} {cfg[flag]}"

    def max_positions(self) -> Any:
        """The smaller of the student's and the teacher's limits.

        fairseq skips (training) or refuses (validation) longer sentences, which would be an index error in the teacher.
        """
        own = super().max_positions()  # type: ignore[misc]
        return own if self.teacher is None else utils.resolve_max_positions(own, *self.teacher.max_positions())


def private_fields(
    config: type,
    stock_config: type,
    criterion: type = KDLabelSmoothedCrossEntropyCriterionConfig,
    stock_criterion: type = LabelSmoothedCrossEntropyCriterionConfig,
) -> FrozenSet[str]:
    """Names of the flags of task and criterion that no stock checkpoint has."""
    return own_fields(config, stock_config) | own_fields(criterion, stock_criterion)
