from kd_plugin.losses.distillation import DistillationLoss, distillation_loss
from kd_plugin.losses.divergences import DIVERGENCES

__all__ = ["DIVERGENCES", "DistillationLoss", "distillation_loss"]
