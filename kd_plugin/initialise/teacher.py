"""A teacher whose weights a student can start from, and the check that they were understood."""

from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from kd_plugin.errors import KDPluginError
from kd_plugin.initialise.whole import Whole, build

AGREEMENT = 1e-4  # largest difference of logits, relative to the largest logit; float32 rounds at about 1e-6


class Teacher(NamedTuple):
    """An opened teacher.

    Args:
        what: for example "fairseq transformer"
        whole: all of it, as fairseq's transformer
        languages: source and target; None: unknown
        task: those of its task's options that a student's checkpoint keeps
        smoothing: of its training; None: unknown
        notes: what a reader of its student should know
        difference: of the copy's logits from the teacher's own, relative to the largest
        changes_dictionaries: as for a Checkpoint
    """

    path: str
    sha256: str
    what: str
    parameters: int
    whole: Whole
    languages: Optional[List[str]]
    task: Dict[str, Any]
    smoothing: Optional[float]
    notes: List[str]
    difference: float
    changes_dictionaries: bool = False


class Batch(NamedTuple):
    """Sentences of different lengths, as fairseq's net_input. lengths, targets: of source and target"""

    source: Tensor
    lengths: Tensor
    previous: Tensor
    targets: Tensor


def sample_batch(whole: Whole, longest: int) -> Batch:
    """Random symbols; padded on the right, as some models count positions from the beginning of a row."""
    source, target = whole.dictionaries
    generator = torch.Generator().manual_seed(1)
    sizes = [min(longest, size) for size in (12, 9, 5, 2)]
    rows = {}
    for name, dictionary in (("source", source), ("target", target)):
        rows[name] = torch.full((len(sizes), max(sizes)), dictionary.pad())
        for row, size in zip(rows[name], sizes):
            row[:size] = torch.randint(dictionary.nspecial, len(dictionary), (size,), generator=generator)
    for row, size in zip(rows["source"], sizes):
        row[size - 1] = source.eos()
    rows["target"][:, 0] = target.eos()
    lengths = torch.tensor(sizes)
    return Batch(rows["source"], lengths, rows["target"], lengths)


@torch.no_grad()
def agreement(whole: Whole, own: Callable[[Batch], Tuple[Tensor, Tensor]], path: str, longest: int) -> float:
    """How far the copy's logits are from the teacher's own on a sample of random sentences.

    Args:
        own: the teacher's logits (batch, length, columns), and which of the copy's columns they are, (columns,)
        longest: the longest sentence that the teacher can read

    Returns:
        the largest difference, relative to the largest logit

    Raises:
        KDPluginError: it is not a transformer like fairseq's
    """
    batch = sample_batch(whole, longest)
    try:
        model = build(whole)
        ours = model(batch.source, batch.lengths, batch.previous)[0]
    except Exception as error:  # fairseq raises all kinds for options that do not fit
        raise not_expressible(path, " ".join(str(error).split())[:300]) from error
    theirs, columns = own(batch)
    real = torch.arange(batch.previous.size(1)) < batch.targets.unsqueeze(1)
    found, wanted = ours[..., columns][real], theirs[real]
    difference = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
    if not difference <= AGREEMENT:
        raise not_expressible(path, f"the copy's logits differ by {difference:.2g} of the largest")
    return difference


def not_expressible(path: str, reason: str) -> KDPluginError:
    return KDPluginError(
        f"{path}: it computes something other than fairseq's stock transformer ({reason}), so no student can start "
        "from its weights. Remedy: start from random weights; this teacher can still teach"
    )
