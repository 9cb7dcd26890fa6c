"""The task: fairseq's translation task with a frozen teacher."""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq import utils
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from kd_plugin.cache.data import Split
from kd_plugin.checkpoints.student import TRANSLATION
from kd_plugin.corpus.noise import FLAG, parsed
from kd_plugin.corpus.noisy_sources import SourceText, add_noise, is_noisy, source_text
from kd_plugin.errors import KDPluginError
from kd_plugin.tasks.distillation import DistillationMixin, check_registered_here, private_fields
from kd_plugin.tasks.teacher_flags import TeacherFlags
from kd_plugin.tasks.validation_bleu import log_bleu_of_nothing
from kd_plugin.teachers.base import DISTRIBUTION

TASK_NAME = "distillation_translation"


@dataclass
class DistillationTranslationConfig(TeacherFlags, TranslationConfig):
    kd_augment: Optional[str] = field(
        default=None,
        metadata={
            "help": "noise for the sources that the student reads in training, while the teacher reads the clean ones: "
            "kinds and their probabilities for each sentence, such as upper:0.05,title:0.05,lower:0.05,punct:0.1,"
            "typo:0.1:0.05,numbers:0.05 (typo's second number: the share of letters). --bpe names the subword model"
        },
    )


@register_task(TASK_NAME, dataclass=DistillationTranslationConfig)
class DistillationTranslationTask(DistillationMixin, TranslationTask):
    """Translation with a criterion that may ask `task.teacher` about a batch's target tokens."""

    stock = TRANSLATION
    private_fields = private_fields(DistillationTranslationConfig, TranslationConfig)

    def __init__(self, cfg: Any, *dictionaries: Any):
        super().__init__(cfg, *dictionaries)
        self.noise = parsed(cfg.kd_augment)
        self._source_text: Optional[SourceText] = None

    def build_criterion(self, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        """As DistillationMixin's, after the checks of --kd-augment."""
        if not self.noise.asked:
            return super().build_criterion(cfg, *args, **kwargs)
        if self.cfg.num_batch_buckets > 0:
            raise KDPluginError(f"{FLAG}: --num-batch-buckets fixes the lengths of sources. Remedy: one of the two")
        self._source_text = source_text(self.source_dictionary, self._root().get("bpe"))
        criterion = super().build_criterion(cfg, *args, **kwargs)
        for term in getattr(getattr(criterion, "distiller", None), "terms", ()):
            if term.needs - DISTRIBUTION:
                raise KDPluginError(
                    f"{term.flag} compares layers at the same positions of the source, but with {FLAG} the student "
                    "reads another source than the teacher. Remedy: one of the two"
                )
        return criterion

    def reduce_metrics(self, logging_outputs: Any, criterion: Any) -> None:
        """As DistillationMixin's; empty translations have a BLEU of 0."""
        super().reduce_metrics(logging_outputs, criterion)
        log_bleu_of_nothing(logging_outputs)

    def can_reuse_epoch_itr(self, dataset: Any) -> bool:
        """As fairseq's; with noise, each epoch has its own batches."""
        return bool(super().can_reuse_epoch_itr(dataset)) and not is_noisy(dataset)

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """As fairseq's, and adds to the batches what the teacher needs."""
        cfg = self.cfg
        if cfg.upsample_primary < 1:
            cfg.upsample_primary = 1  # fairseq's default, -1, crashes if there are train and train1
        super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        training = split == cfg.train_subset
        if training and self._source_text is not None:
            budget = (self._root().get("dataset") or {}).get("max_tokens")
            add_noise(self.datasets[split], self._source_text, self.noise, self.seed, cfg.max_source_positions, budget)
        if self.teacher is None:
            return
        paths = utils.split_paths(cfg.data)
        data = paths[(epoch - 1) % len(paths)] if training else paths[0]
        truncated_to = cfg.max_source_positions if cfg.truncate_source else None
        texts = Split(data, split, cfg.source_lang, cfg.target_lang, truncated_to)
        self.teacher.attach(self.datasets[split], texts, training)


check_registered_here(TASK_NAME, __name__)
