from kd_plugin.tasks.distillation_multilingual import DistillationMultilingualTask
from kd_plugin.tasks.distillation_sentence_prediction import DistillationSentencePredictionTask
from kd_plugin.tasks.distillation_sequence_tagging import DistillationSequenceTaggingTask
from kd_plugin.tasks.distillation_translation import DistillationTranslationTask

__all__ = [
    "DistillationMultilingualTask",
    "DistillationSentencePredictionTask",
    "DistillationSequenceTaggingTask",
    "DistillationTranslationTask",
]
