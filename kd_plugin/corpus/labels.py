"""Names of labels: in the label dictionary of a fairseq folder, and how one list of names maps to another."""

from typing import Any, List, Optional, Sequence

import torch
from torch import Tensor

from kd_plugin.corpus.dictionaries import load_dictionary
from kd_plugin.errors import KDPluginError

FILLERS = ("madeupword", "<mask>")  # what fairseq adds to dictionaries; no label


def load_labels(path: str) -> Any:
    """The label dictionary of a folder, with the <mask> that fairseq's task adds.

    Raises:
        KDPluginError: it is damaged, or names a label twice or like a special symbol
    """
    dictionary = load_dictionary(path, "each label once, and none named <s>, <pad>, </s> or <unk>")
    dictionary.add_symbol("<mask>")
    return dictionary


def label_names(dictionary: Any) -> List[str]:
    """The labels of a label dictionary, in the order of a model's outputs.

    Args:
        dictionary: fairseq's, of `label/dict.txt`
    """
    symbols: List[str] = dictionary.symbols[dictionary.nspecial :]
    return [symbol for symbol in symbols if not symbol.startswith(FILLERS)]


def check_number(names: Sequence[str], num_classes: int, path: str) -> None:
    """Refuses a label dictionary that does not have as many labels as the model.

    Raises:
        KDPluginError: another number than --num-classes, or fewer than two
    """
    if len(names) != num_classes:
        raise KDPluginError(
            f"--num-classes {num_classes}: {path} has {len(names)} labels ({shown(names)}). Remedy: --num-classes "
            f"{len(names)}"
        )
    if num_classes < 2:
        raise KDPluginError(
            f"{path}: has only the label {shown(names)}, so there is nothing to learn. Remedy: other data"
        )


def mapped(student: Sequence[str], teacher: Sequence[str], path: str) -> Optional[Tensor]:
    """(labels,) int64, the teacher's output for each of the student's labels; None: the same order.

    Raises:
        KDPluginError: their labels differ; labels are only ever compared by name
    """
    if list(student) == list(teacher):
        return None
    if sorted(student) != sorted(teacher):
        ours, theirs = [one for one in student if one not in teacher], [one for one in teacher if one not in student]
        raise KDPluginError(
            f"{path}: its labels differ from the student's. Only the teacher has {shown(theirs)}; only the student has "
            f"{shown(ours)}. Remedy: a teacher for these labels; if its labels only have other names, name its "
            "outputs in their order: --teacher-labels NAME,NAME,…"
        )
    return torch.tensor([list(teacher).index(name) for name in student], dtype=torch.int64)


def shown(names: Sequence[str], most: int = 12) -> str:
    """Some names for a message."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) + more) or "none"
