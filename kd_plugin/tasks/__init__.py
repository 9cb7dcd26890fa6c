from kd_plugin.tasks.distillation_translation import DistillationTranslationTask

__all__ = ["DistillationTranslationTask"]
