"""What all criterions share: a free name, the modules that terms train, and how a checkpoint restores them."""

import logging
from typing import Any, Dict

from fairseq.criterions import CRITERION_REGISTRY
from torch import Tensor

from kd_plugin.distill.distiller import Distiller
from kd_plugin.errors import KDPluginError

logger = logging.getLogger(__name__)


class WithTerms:
    """Use as `class X(WithTerms, Y)`, where Y is a criterion of fairseq; call `use` in __init__."""

    distiller: Distiller
    task: Any

    def use(self, distiller: Distiller) -> None:
        """Takes the distiller, and trains and saves the modules of its terms, which are never part of the student."""
        self.distiller = distiller
        for term in distiller.terms:
            if term.module is not None:
                self.add_module(term.name, term.module)  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any:
        """As torch's. fairseq's trainer calls it only if a term has parameters, such as a projection.

        A checkpoint without them starts them anew if its optimizer is not used either, and is refused otherwise.
        """
        own: Dict[str, Any] = self.state_dict()  # type: ignore[attr-defined]
        same = {
            name: value for name, value in (state_dict or {}).items() if name in own and _same_shape(value, own[name])
        }
        if same.keys() == own.keys() and len(same) == len(state_dict):
            return super().load_state_dict(state_dict, strict)  # type: ignore[misc]
        flags = " and ".join(term.flag for term in self.distiller.terms if term.module is not None)
        what = "has no projections" if not same else "has projections of other layers or sizes"
        saving = self.task.checkpoint_flags() if hasattr(self.task, "checkpoint_flags") else {}
        if saving.get("reset_optimizer") or saving.get("finetune_from_model"):
            logger.warning(f"the checkpoint {what} for {flags}: they start anew")
            return None
        # not an Exception: fairseq would report it as a student of another architecture
        raise SystemExit(
            f"KDPluginError: the checkpoint {what} for {flags}. Remedy: --reset-optimizer to start them anew, or the "
            "flags with which the checkpoint was trained"
        )


def check_free(name: str) -> None:
    """Refuses to register a criterion whose name another plugin has taken."""
    if name in CRITERION_REGISTRY:
        raise KDPluginError(
            f"{CRITERION_REGISTRY[name].__module__} has already registered the criterion {name}. "
            "Remedy: remove that plugin or fork; you cannot use both in one process"
        )


def _same_shape(one: Any, other: Any) -> bool:
    return not isinstance(other, Tensor) or (isinstance(one, Tensor) and one.shape == other.shape)
