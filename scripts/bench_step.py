#!/usr/bin/env python3
"""Measures a whole training update: distillation against plain cross-entropy, and where the time goes.

    bench_step.py [--quick] [--device cpu|cuda] [--threads N] [--seconds S] [--no-memory] [--out DIR]

An update is fairseq's own Trainer.train_step: forward, backward, clipping, Adam, logging. Task, criterion, optimizer
and models are built from fairseq-train flags; only reading data is left out. The students in a comparison have the same
size and see the same batches, made by fairseq's own batching and collater. A second table has the cost of each optional
term of the loss, beside a distilled update without it.
"""

import argparse
import pathlib
import tempfile
from typing import Any, Dict, List, Optional, Sequence

import torch
from benchmarking import (
    CASE,
    MILLISECONDS,
    QUICK_MAX_TOKENS,
    SPREAD,
    Column,
    Contestant,
    LossArena,
    Memory,
    ModelCase,
    Progress,
    Report,
    Size,
    Table,
    draw_batches,
    draw_logits,
    fairseq_config,
    padding,
    parse_arguments,
    race,
    target_rows,
    write_checkpoint,
    write_dictionaries,
)
from fairseq import tasks, utils
from fairseq.trainer import Trainer
from torch import Tensor

from kd_plugin.compat import BETTER_TRANSFORMER_COPY
from kd_plugin.losses import distillation_loss
from kd_plugin.teachers import Request

ALPHA, LABEL_SMOOTHING = 0.5, 0.1
OPTIMIZER = ["--optimizer=adam", "--adam-betas=(0.9, 0.98)", "--lr=0.0001", "--clip-norm=1.0", "--dropout=0.1"]
PLAIN = ["--task=translation", "--criterion=label_smoothed_cross_entropy"]
DISTILLED = ["--task=distillation_translation", "--criterion=kd_label_smoothed_cross_entropy", f"--kd-alpha={ALPHA}"]
UNTAUGHT = ["--task=translation", "--criterion=kd_label_smoothed_cross_entropy", "--kd-alpha=1"]


def cases(arguments: argparse.Namespace) -> List[ModelCase]:
    if arguments.quick:
        return [ModelCase("tiny student", Size(1, 16, 32, 2), 256, QUICK_MAX_TOKENS, 2)]
    tiny = Size(2, 64, 128, 4)  # transformer_student_micro
    if arguments.device.type == "cpu":
        # a base transformer has six layers per side; with two, layers and vocabulary have similar shares
        multi30k = Size(4, 128, 256, 4)  # examples/translation/train-teacher.sh's
        students = [
            ("tiny", tiny, 4096, 1),
            ("Multi30k", multi30k, 4096, 1),
            ("base-like", Size(2, 512, 2048, 8), 2048, 1),
        ]
    else:
        students = [("tiny", tiny, 8192, 8), ("base", Size(6, 512, 2048, 8), 8192, 4)]
    precision = "fp32" if arguments.device.type == "cpu" else "fp16"
    return [
        ModelCase(f"{name} student", size, vocab, *batch, precision)
        for vocab in (8192, 32768)
        for name, size, *batch in students
    ]


def trainer(folder: pathlib.Path, size: Size, device: torch.device, *flags: str) -> Trainer:
    """fairseq's Trainer as `fairseq-train FOLDER flags…` makes it, its student untrained."""
    place = ["--cpu"] if device.type == "cpu" else ["--fp16", "--fp16-init-scale=4"]
    smoothing = f"--label-smoothing={LABEL_SMOOTHING}"
    cfg = fairseq_config(folder, *size.flags(), *OPTIMIZER, *place, smoothing, "--distributed-world-size=1", *flags)
    torch.manual_seed(2)
    task = tasks.setup_task(cfg.task)
    return Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))


def update(name: str, of_trainer: Trainer, samples: Sequence[Dict[str, Any]]) -> Contestant:
    def run() -> None:
        for sample in samples:
            of_trainer.train_step([sample])

    return Contestant(name, run)


class Alone:
    """The teacher's answer and the loss alone, on the same batches as the updates."""

    def __init__(self, samples: Sequence[Dict[str, Any]], padding_idx: int, vocab: int, device: torch.device):
        self._samples = samples if device.type == "cpu" else [utils.move_to_cuda(sample) for sample in samples]
        self._rows = [target_rows(sample, padding_idx)[0] for sample in self._samples]
        self._vocab = vocab
        self._dtype = torch.float32 if device.type == "cpu" else torch.float16
        self.tokens = [len(rows) for rows in self._rows]
        self._arenas = [LossArena(draw_logits(tokens, vocab, self._dtype, device)) for tokens in self.tokens]

    def teacher(self, name: str, online_teacher: Any) -> Contestant:
        def run() -> None:
            for sample, rows in zip(self._samples, self._rows):
                for _ in online_teacher.answer(sample, Request(rows, self._dtype)).distribution.pieces(
                    len(rows), self._vocab
                ):
                    pass

        return Contestant(name, run)

    def loss(self, name: str) -> Contestant:
        def prepare() -> None:
            for arena in self._arenas:
                arena.restore()

        def run() -> None:
            for arena in self._arenas:
                arena.run(_distillation_loss)

        return Contestant(name, run, prepare)


def _distillation_loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    parameters = {"alpha": ALPHA, "label_smoothing": LABEL_SMOOTHING, "inplace": True}
    return distillation_loss(student, teacher, target, **parameters).loss


FUSED, PACKED = "--kd-fused-head", "--kd-packed-student"
PLAIN_UPDATE, LOSS_ALONE = "plain cross-entropy", "loss alone"
UNTAUGHT_UPDATE = f"the same by kd_plugin, {FUSED} and {PACKED}"
TAUGHT = ("same size", "twice as wide")
WAYS = {"": [], f", {FUSED}": [FUSED], f", {PACKED}": [PACKED], ", both": [FUSED, PACKED]}
QUICK_WAYS = ("", ", both")


def step_rows(case: ModelCase, folder: pathlib.Path, arguments: argparse.Namespace, table: Table) -> None:
    device = arguments.device
    write_dictionaries(folder, case.vocab)
    plain = trainer(folder, case.size, device, *PLAIN)
    dictionary = plain.task.target_dictionary
    samples = draw_batches(dictionary, case.max_tokens, case.batches)
    alone = Alone(samples, dictionary.pad(), case.vocab, device)
    untaught = trainer(folder, case.size, device, *UNTAUGHT, FUSED, PACKED)
    contestants = [update(PLAIN_UPDATE, plain, samples), update(UNTAUGHT_UPDATE, untaught, samples)]
    contestants.append(alone.loss(LOSS_ALONE))
    parameters = {PLAIN_UPDATE: _count(plain.model), UNTAUGHT_UPDATE: _count(untaught.model)}
    ways = {way: WAYS[way] for way in (QUICK_WAYS if arguments.quick else WAYS)}
    taught = dict(list(zip(TAUGHT, (case.size, case.size.wider())))[: 1 if arguments.quick else None])
    for name, size in taught.items():
        path = folder / f"{name.replace(' ', '-')}.pt"
        parameters[name] = _count(write_checkpoint(path, size))
        for way, flags in ways.items():
            distilled = trainer(folder, case.size, device, *DISTILLED, f"--teacher-path={path}", *flags)
            contestants.append(update(name + way, distilled, samples))
        contestants.append(alone.teacher(f"{name} alone", distilled.task.teacher))
    timings = race(contestants, arguments)

    for name, count in parameters.items():
        for way in ways if name in TAUGHT else [""]:
            timing = timings[name + way]
            values = {**case._asdict(), **timing.row(), "parameters": count}
            values["ratio"] = timing.over(timings[PLAIN_UPDATE])
            if name in TAUGHT:
                values["teacher_share"] = timings[f"{name} alone"].over(timing)
                values["loss_share"] = None if FUSED in ways[way] else timings[LOSS_ALONE].over(timing)
            table.add(str(case), f"distilled, teacher {name}{way}" if name in TAUGHT else name, values)
    table.notes.append(
        f"{case}: {case.size}; {len(samples)} batches of {min(alone.tokens)}–{max(alone.tokens)} target tokens, "
        f"{padding(samples)}"
    )


def _count(model: torch.nn.Module) -> int:
    # fairseq 0.12.2 keeps unused copies of some weights
    named = model.named_parameters()
    return sum(parameter.numel() for name, parameter in named if not BETTER_TRANSFORMER_COPY.search(name))


def step_table(arguments: argparse.Namespace, progress: Progress) -> Table:
    ratio = Column("÷ plain", "ratio", ".3f")
    columns = [
        CASE,
        Column("update", "contestant"),
        Column("parameters", "parameters", ",d"),
        MILLISECONDS,
        SPREAD,
        ratio,
    ]
    columns += [Column("teacher's share", "teacher_share", ".0%"), Column("loss's share", "loss_share", ".0%")]
    notes = [
        "Parameters: of the student in the first two rows of each case, of the teacher in the others.",
        "Shares: the teacher's answer, and distillation_loss forward and backward from logits and in place, each run "
        "alone on the same batches in the same rounds, as a part of the update's time.",
    ]
    table = Table("A training update", columns, notes, chart=ratio)
    for case in cases(arguments):
        progress.step(f"updates: {case}")
        with tempfile.TemporaryDirectory() as folder:
            step_rows(case, pathlib.Path(folder), arguments, table)
    if arguments.device.type == "cpu":
        table.not_measured("CUDA, fp16", "no CUDA device was used")
    return table


TODAY = "distilled"
# what each optional term adds; rounds are measured after a few updates, when a code learned for one update is frozen. A
# buffer of translations is not among them, because it makes updates unequal
TERMS: Dict[str, List[str]] = {
    "--kd-rdrop": ["--kd-rdrop=1"],
    "--kd-hidden mse": ["--kd-hidden=mse"],
    "--kd-hidden cosine": ["--kd-hidden=cosine"],
    "--kd-hidden relation": ["--kd-hidden=relation"],
    "--kd-hidden factor, while the code is learned": ["--kd-hidden=factor", "--kd-factor-updates=1000000"],
    "--kd-hidden factor, afterwards": ["--kd-hidden=factor", "--kd-factor-updates=1"],
    "--kd-hidden mse, uniform": ["--kd-hidden=mse", "--kd-hidden-layers=uniform"],
    "--kd-attention cross": ["--kd-attention=cross"],
    "--kd-attention self": ["--kd-attention=self"],
    "--kd-attention both": ["--kd-attention=both"],
    "--kd-on-policy parallel, 3 passes": ["--kd-on-policy=parallel", "--kd-on-policy-share=1"],
    "--kd-on-policy sampled": ["--kd-on-policy=sampled", "--kd-on-policy-share=1"],
}
NEEDS_LOGITS = "--kd-on-policy=parallel"  # refused with the two flags
QUICK_TERMS = ("--kd-rdrop", "--kd-hidden relation", "--kd-on-policy parallel, 3 passes", "--kd-on-policy sampled")
QUICK_TERMS_WITH_BOTH = QUICK_TERMS[-1:]


def term_update(name: str, flags: Sequence[str], case: ModelCase, folder: str, device: str) -> Contestant:
    """An update with a teacher twice as wide, in this process or in one that measures its memory."""
    where = pathlib.Path(folder)
    path = where / "teacher.pt"
    distilled = trainer(where, case.size, torch.device(device), *DISTILLED, f"--teacher-path={path}", *flags)
    samples = draw_batches(distilled.task.target_dictionary, case.max_tokens, case.batches)
    return update(name, distilled, samples)


def term_rows(
    case: ModelCase, folder: pathlib.Path, arguments: argparse.Namespace, memory: Memory, table: Table
) -> None:
    write_dictionaries(folder, case.vocab)
    write_checkpoint(folder / "teacher.pt", case.size.wider())
    for way, both in (("", []), (", with both flags", [FUSED, PACKED])):
        names = (QUICK_TERMS_WITH_BOTH if both else QUICK_TERMS) if arguments.quick else TERMS
        terms = {name: TERMS[name] for name in names if not (both and NEEDS_LOGITS in TERMS[name])}
        asked = {TODAY: both, **{name: [*flags, *both] for name, flags in terms.items()}}
        built = [(name, flags, case, str(folder), arguments.device.type) for name, flags in asked.items()]
        timings = race([term_update(*one) for one in built], arguments)
        weighed = [one for one in built if not arguments.quick or (not both and one[0] in (TODAY, QUICK_TERMS[0]))]
        extra = {one[0]: memory.extra_bytes(term_update, *one) for one in weighed}
        for name, timing in timings.items():
            values = {**case._asdict(), **timing.row(), "ratio": timing.over(timings[TODAY])}
            ours, today = extra.get(name), extra.get(TODAY)
            values["memory_ratio"] = None if ours is None or not today else ours / today
            table.add(str(case), name + way, values)


def term_table(arguments: argparse.Namespace, memory: Memory, progress: Progress) -> Table:
    columns = [
        CASE,
        Column("update", "contestant"),
        MILLISECONDS,
        SPREAD,
        Column("÷ distilled", "ratio", ".3f"),
        Column("memory ÷ distilled", "memory_ratio", ".3f"),
    ]
    notes = [
        "The teacher is twice as wide as the student. With both flags: --kd-fused-head and --kd-packed-student.",
        "Memory: the peak of an update beyond models, optimizer and batches, each in its own process.",
    ]
    if memory.unavailable is not None:
        notes.append(f"Memory was not measured: {memory.unavailable}.")
    table = Table("Optional terms of the loss", columns, notes)
    for case in term_cases(arguments):
        progress.step(f"terms: {case}")
        with tempfile.TemporaryDirectory() as folder:
            term_rows(case, pathlib.Path(folder), arguments, memory, table)
    if arguments.device.type == "cpu":
        table.not_measured("CUDA, fp16", "no CUDA device was used")
    return table


def term_cases(arguments: argparse.Namespace) -> List[ModelCase]:
    """A middle one of `cases`, on a CPU in smaller batches, because there are 25 contestants."""
    (case,) = cases(arguments)[1:2] or cases(arguments)
    return [case._replace(max_tokens=min(case.max_tokens, 1024))] if arguments.device.type == "cpu" else [case]


def main(argv: Optional[Sequence[str]] = None) -> None:
    arguments = parse_arguments(__doc__, argv, optional=["memory"])
    progress = Progress(steps=len(cases(arguments)) + len(term_cases(arguments)))
    memory = Memory(arguments, modules=["bench_step"])
    report = Report(
        "bench_step", arguments, "what a whole update costs with an online teacher, compared with plain training."
    )
    report.add(step_table(arguments, progress))
    report.add(term_table(arguments, memory, progress))
    progress.close()
    report.finish()


if __name__ == "__main__":
    main()
