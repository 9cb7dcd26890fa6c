from kd_plugin.models import simple
from kd_plugin.models.student_transformer import STUDENT_ARCHITECTURES

__all__ = ["STUDENT_ARCHITECTURES", "simple"]
