"""The task: fairseq's translation with a frozen teacher beside the student."""

from dataclasses import dataclass
from typing import Any

from fairseq import utils
from fairseq.tasks import TASK_REGISTRY, register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from kd_plugin.cache.data import Split
from kd_plugin.checkpoints.student import TRANSLATION
from kd_plugin.errors import KDPluginError
from kd_plugin.tasks.distillation import DistillationMixin, TeacherFlags, private_fields

TASK_NAME = "distillation_translation"


@dataclass
class DistillationTranslationConfig(TeacherFlags, TranslationConfig):
    pass


@register_task(TASK_NAME, dataclass=DistillationTranslationConfig)
class DistillationTranslationTask(DistillationMixin, TranslationTask):
    """Translation whose criterion may ask `task.teacher` about the target tokens of a batch."""

    stock = TRANSLATION
    private_fields = private_fields(DistillationTranslationConfig, TranslationConfig)

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """As fairseq's; batches bring what the teacher needs beside them."""
        cfg = self.cfg
        if cfg.upsample_primary < 1:
            cfg.upsample_primary = 1  # with fairseq's own default, -1, train and train1 together crash
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        if self.teacher is None:
            return
        training = split == cfg.train_subset
        paths = utils.split_paths(cfg.data)
        data = paths[(epoch - 1) % len(paths)] if training else paths[0]
        truncated_to = cfg.max_source_positions if cfg.truncate_source else None
        texts = Split(data, split, cfg.source_lang, cfg.target_lang, truncated_to)
        self.teacher.attach(self.datasets[split], texts, training)


# a second task of this name would be ignored by fairseq without a word
if TASK_REGISTRY[TASK_NAME].__module__ != __name__:
    raise KDPluginError(
        f"another plugin has registered the task {TASK_NAME} ({TASK_REGISTRY[TASK_NAME].__module__}). Remedy: import "
        "only one of the two (--user-dir)"
    )
