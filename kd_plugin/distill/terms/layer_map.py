"""Which of the teacher's layers teach which of the student's: `last`, `uniform`, or pairs by hand."""

import re
from typing import Dict, List, NamedTuple, Tuple

from kd_plugin.errors import KDPluginError
from kd_plugin.models.states import SIDES, Shape

SHORT = {"enc": "encoder", "dec": "decoder"}
EXAMPLE = "enc:0-1,5-2;dec:5-2"


class Pair(NamedTuple):
    """A layer of the teacher and one of the student, on the same side, counted from 0."""

    side: str
    teacher: int
    student: int

    @property
    def name(self) -> str:
        """As the name of a module."""
        return f"{self.side}_{self.teacher}_{self.student}"


def layer_pairs(text: str, flag: str, student: Shape, teacher: Shape) -> List[Pair]:
    """The pairs that a layer map names.

    Args:
        text: `last`: the last layers of both sides; `uniform`: each of the student's layers with the one at the same
            fraction of the teacher's depth, so that the last layers meet; or TEACHER-STUDENT pairs like EXAMPLE
        flag: for messages

    Raises:
        KDPluginError: no such map, or a layer that one of the two does not have
    """
    by_hand = None if text in ("last", "uniform") else _parsed(text, flag)
    pairs = []
    for side in SIDES:
        theirs, ours = teacher.side(side).layers, student.side(side).layers
        if by_hand is not None:
            found = by_hand.get(side, [])
        elif not theirs or not ours:  # encoders alone have no decoder
            found = []
        elif text == "last":
            found = [(theirs - 1, ours - 1)]
        else:
            found = [(-(-(layer + 1) * theirs // ours) - 1, layer) for layer in range(ours)]
        for layer, number, whose in [(t, theirs, "teacher") for t, _ in found] + [
            (s, ours, "student") for _, s in found
        ]:
            if layer >= number:
                raise KDPluginError(
                    f"{flag} {text}: the {whose}'s {side} has no layer {layer}, but {number} layers, counted from 0. "
                    f"Remedy: TEACHER-STUDENT pairs like {EXAMPLE}"
                )
        pairs += [Pair(side, *pair) for pair in found]
    return pairs


def _parsed(text: str, flag: str) -> Dict[str, List[Tuple[int, int]]]:
    found: Dict[str, List[Tuple[int, int]]] = {}
    for part in text.split(";"):
        match = re.fullmatch(r"\s*(enc|dec):(\d+-\d+(?:,\d+-\d+)*)\s*", part)
        side = SHORT[match.group(1)] if match else ""
        pairs = [tuple(map(int, pair.split("-"))) for pair in match.group(2).split(",")] if match else []
        if match is None or side in found or len(set(pairs)) < len(pairs):
            raise KDPluginError(
                f"{flag} {text}: is neither last nor uniform nor a list of TEACHER-STUDENT pairs, each once. Remedy: "
                f"write it like {EXAMPLE}"
            )
        found[side] = [(theirs, ours) for theirs, ours in pairs]
    return found
