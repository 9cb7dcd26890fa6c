"""The task: fairseq's translation task with a frozen teacher."""

from dataclasses import dataclass
from typing import Any

from fairseq import utils
from fairseq.tasks import TASK_REGISTRY, register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from kd_plugin.cache.data import Split
from kd_plugin.checkpoints.student import TRANSLATION
from kd_plugin.errors import KDPluginError
from kd_plugin.tasks.distillation import DistillationMixin, private_fields
from kd_plugin.tasks.teacher_flags import TeacherFlags

TASK_NAME = "distillation_translation"


@dataclass
class DistillationTranslationConfig(TeacherFlags, TranslationConfig):
    pass


@register_task(TASK_NAME, dataclass=DistillationTranslationConfig)
class DistillationTranslationTask(DistillationMixin, TranslationTask):
    """Translation with a criterion that may ask `task.teacher` about a batch's target tokens."""

    stock = TRANSLATION
    private_fields = private_fields(DistillationTranslationConfig, TranslationConfig)

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """As fairseq's, and adds to the batches what the teacher needs."""
        cfg = self.cfg
        if cfg.upsample_primary < 1:
            cfg.upsample_primary = 1  # fairseq's default, -1, crashes if there are train and train1
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        if self.teacher is None:
            return
        training = split == cfg.train_subset
        paths = utils.split_paths(cfg.data)
        data = paths[(epoch - 1) % len(paths)] if training else paths[0]
        truncated_to = cfg.max_source_positions if cfg.truncate_source else None
        texts = Split(data, split, cfg.source_lang, cfg.target_lang, truncated_to)
        self.teacher.attach(self.datasets[split], texts, training)


# fairseq would silently ignore a second task of this name
if TASK_REGISTRY[TASK_NAME].__module__ != __name__:
    raise KDPluginError(
        f"another plugin has already registered the task {TASK_NAME} ({TASK_REGISTRY[TASK_NAME].__module__}). Remedy: "
        "import only one of the two (--user-dir)"
    )
