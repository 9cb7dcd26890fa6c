"""A small student, its teacher, their criterion and a batch, for tests of terms on inner states."""

from types import SimpleNamespace

import torch

from kd_plugin.models.states import shape_of
from kd_plugin.teachers import OnlineTeacher
from kd_plugin.teachers.fairseq import FairseqMember
from kd_plugin.teachers.vocabulary import Symbols
from tests.support import MODEL, make_checkpoint
from tests.unit.test_criterion import PAD, criterion_of

WIDER = [
    "--encoder-embed-dim", 24, "--decoder-embed-dim", 24, "--encoder-attention-heads", 3,
    "--decoder-attention-heads", 3, "--encoder-layers", 3, "--decoder-layers", 3,
]  # fmt: skip
TWO_LAYERS = ["--encoder-layers", 2, "--decoder-layers", 2]
PRE_NORM = ["--encoder-normalize-before", "--decoder-normalize-before"]


def model_of(folder, data, *flags, seed=1, dropout=0):
    model = make_checkpoint(
        folder / f"{seed}.pt", data, "-s", "en", "-t", "de", *MODEL, "--dropout", dropout, *flags, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # untrained models attend almost evenly, which would hide a wrong mask
        for name, weights in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weights.mul_(4)
            if "layer_norm" in name or name.endswith("bias"):
                weights.add_(0.2 * torch.randn(weights.shape, generator=generator))
    return model


def batch(source_padding=0, target_padding=0):
    """Three sentence pairs of different lengths, as fairseq collates them, with so many more columns of padding."""
    source = torch.tensor([[4, 5, 6, 2], [PAD, 7, 8, 2], [PAD, PAD, 9, 2]])
    target = torch.tensor([[4, 5, 2, PAD, PAD], [7, 8, 9, 4, 2], [4, 2, PAD, PAD, PAD]])
    source = torch.nn.functional.pad(source, (source_padding, 0), value=PAD)
    target = torch.nn.functional.pad(target, (0, target_padding), value=PAD)
    previous = torch.cat([torch.full((3, 1), 2), target[:, :-1]], dim=1).masked_fill(target == PAD, PAD)
    lengths = source.ne(PAD).sum(dim=1)
    net_input = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous}
    return {"id": torch.arange(3), "net_input": net_input, "target": target, "ntokens": 10}


def task_of(student, *teachers):
    members = [FairseqMember(one, "teacher.pt", "0" * 64, 1, Symbols(), Symbols()) for one in teachers]
    return SimpleNamespace(
        target_dictionary=student.decoder.dictionary,
        teacher=OnlineTeacher(members) if members else None,
        num_updates=0,
        student_shape=shape_of(student),
        cfg=SimpleNamespace(),
        language_pairs=list,
    )


def criterion_for(student, teacher, num_updates=0, **flags):
    task = task_of(student, teacher)
    task.num_updates = num_updates
    return criterion_of(task, **flags).train()
