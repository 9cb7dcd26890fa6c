from kd_plugin.tasks.distillation_multilingual import DistillationMultilingualTask
from kd_plugin.tasks.distillation_translation import DistillationTranslationTask

__all__ = ["DistillationMultilingualTask", "DistillationTranslationTask"]
