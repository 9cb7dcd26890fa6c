"""Which of the teacher's layers a student keeps."""

import re
from typing import Dict, List, Optional

from torch import Tensor

from kd_plugin.errors import KDPluginError
from kd_plugin.initialise.whole import SIDES, Whole


def even_map(teacher: int, student: int) -> List[int]:
    """Evenly spaced layers, with the first and the last: round(i (teacher - 1) / (student - 1)); of one, the first."""
    if student == 1:
        return [0]
    return [round(i * (teacher - 1) / (student - 1)) for i in range(student)]


def chosen_layers(text: Optional[str], teacher: int, flag: str) -> List[int]:
    """The layers that a flag names, in the student's order.

    Args:
        text: a number of layers, or a list of the teacher's layers, from 0; None: all
        teacher: how many the teacher has

    Raises:
        KDPluginError: not a number or list, or the teacher does not have these layers
    """
    if text is None:
        return list(range(teacher))
    if not re.fullmatch(r"\d+|\d+(,\d+)*,?", text):
        raise KDPluginError(f"{flag} {text}: not a number of layers. Remedy: 3, or the teacher's layers from 0: 0,2,5")
    if "," not in text:
        if not 1 <= int(text) <= teacher:
            raise KDPluginError(f"{flag} {text}: the teacher has {teacher} layers. Remedy: 1 … {teacher}")
        return even_map(teacher, int(text))
    layers = [int(number) for number in text.split(",") if number]
    if max(layers) >= teacher:
        raise KDPluginError(
            f"{flag} {text}: the teacher has no layer {max(layers)}. Remedy: its layers are 0 … {teacher - 1}"
        )
    return layers


def keep_layers(whole: Whole, kept: Dict[str, List[int]]) -> Whole:
    """The model with only these layers of each side, renumbered."""
    weights: Dict[str, Tensor] = {}
    for name, weight in whole.weights.items():
        found = re.match(r"(encoder|decoder)\.layers\.(\d+)\.(.*)", name)
        if found is None:
            weights[name] = weight
            continue
        side, number, rest = found.group(1), int(found.group(2)), found.group(3)
        for new, old in enumerate(kept[side]):
            if old == number:
                weights[f"{side}.layers.{new}.{rest}"] = weight
    options = {**whole.options, **{f"{side}_layers": len(kept[side]) for side in SIDES}}
    return whole._replace(options=options, weights=weights)
