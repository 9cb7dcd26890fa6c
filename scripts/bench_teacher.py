#!/usr/bin/env python3
"""Compares time and memory of a teacher's forward pass: fairseq's own and kd_plugin's OnlineTeacher.

    bench_teacher.py [--quick] [--device cpu|cuda] [--threads N] [--seconds S] [--no-memory] [--out DIR]

The teacher is a fairseq transformer with random weights. One run answers for several batches, made by fairseq's own
batching and collater. fairseq, as used in distillation forks, computes every position including padding; OnlineTeacher
computes only real tokens.
"""

import argparse
import contextlib
import pathlib
import tempfile
from typing import Any, Dict, Iterator, List, Optional, Sequence

import torch
from benchmarking import (
    CASE,
    CONTESTANT,
    DTYPES,
    MILLISECONDS,
    QUICK_MAX_TOKENS,
    SPREAD,
    Column,
    Contestant,
    Memory,
    ModelCase,
    Progress,
    Report,
    Size,
    Table,
    draw_batches,
    padding,
    parse_arguments,
    race,
    target_rows,
    write_checkpoint,
    write_dictionaries,
)
from fairseq import utils
from torch import Tensor

from kd_plugin.tasks.distillation_translation import DistillationTranslationConfig, DistillationTranslationTask
from kd_plugin.teachers import OnlineTeacher, Request
from kd_plugin.teachers.fairseq import load_teacher


def cases(arguments: argparse.Namespace) -> List[ModelCase]:
    # examples/translation/train-teacher.sh's, and a base transformer
    multi30k, base = Size(4, 128, 256, 4), Size(6, 512, 2048, 8)
    if arguments.quick:
        return [ModelCase("tiny", Size(1, 16, 32, 2), 256, QUICK_MAX_TOKENS, 2)]
    if arguments.device.type == "cpu":
        small = [ModelCase("Multi30k, 1,024 tokens per batch", multi30k, vocab, 1024, 4) for vocab in (8192, 32768)]
        # the recipe's --max-tokens
        small.insert(1, ModelCase("Multi30k, 4,096 tokens per batch", multi30k, 8192, 4096, 2))
        return [*small, *(ModelCase("base, 512 tokens per batch", base, vocab, 512, 2) for vocab in (8192, 32768))]
    sizes = {"Multi30k": multi30k, "base": base}
    return [
        ModelCase(name, size, vocab, 8192, 8, dtype)
        for name, size in sizes.items()
        for vocab in (8192, 32768)
        for dtype in ("bf16", "fp16")
    ]


class Teacher:
    """A checkpoint of random weights, read in both ways, and batches for it."""

    def __init__(self, folder: pathlib.Path, case: ModelCase, device: torch.device):
        write_dictionaries(folder, case.vocab)
        path = folder / "teacher.pt"
        self.stock = write_checkpoint(path, case.size).eval()
        self.stock.to(device=device, dtype=DTYPES[case.dtype])
        cfg = DistillationTranslationConfig(data=str(folder), source_lang="en", target_lang="de")
        task = DistillationTranslationTask.setup_task(cfg)
        self.online = OnlineTeacher([load_teacher(str(path), task)])
        self._dtype, self._vocab = DTYPES[case.dtype], case.vocab
        samples = draw_batches(task.target_dictionary, case.max_tokens, case.batches)
        self.padding = padding(samples)
        padding_idx = task.target_dictionary.pad()
        self.samples = samples if device.type == "cpu" else [utils.move_to_cuda(sample) for sample in samples]
        self.rows = [target_rows(sample, padding_idx)[0] for sample in self.samples]
        self.logits_bytes = max(map(len, self.rows)) * case.vocab * torch.empty((), dtype=self._dtype).element_size()

    @torch.no_grad()
    def stock_logits(self, sample: Dict[str, Any], rows: Tensor) -> Tensor:
        return self.stock(**sample["net_input"])[0]

    def _asked(self, sample: Dict[str, Any], rows: Tensor) -> Any:
        return self.online.answer(sample, Request(rows, self._dtype)).distribution

    def our_logits(self, sample: Dict[str, Any], rows: Tensor) -> Tensor:
        return self._asked(sample, rows).logits

    def answer(self, sample: Dict[str, Any], rows: Tensor) -> None:
        """In the way that the loss asks for it."""
        for _ in self._asked(sample, rows).pieces(len(rows), self._vocab):
            pass

    def largest_difference(self) -> float:
        """The largest difference between fairseq's logits and ours."""
        differences = []
        for sample, rows in zip(self.samples, self.rows):
            logits = self.stock_logits(sample, rows)
            logits = logits.reshape(-1, logits.size(-1))[rows]
            differences.append((logits.float() - self.our_logits(sample, rows).float()).abs().max().item())
        return max(differences)


# with frozen weights, fairseq's projection takes another path in PyTorch
STOCK, FROZEN, OURS = "fairseq eval", "fairseq eval, requires_grad False", "kd_plugin OnlineTeacher"
WAYS = (STOCK, FROZEN, OURS)


def contestant(name: str, teacher: Teacher) -> Contestant:
    answer = teacher.answer if name == OURS else teacher.stock_logits

    def prepare() -> None:
        teacher.stock.requires_grad_(name == STOCK)

    def run() -> None:
        for sample, rows in zip(teacher.samples, teacher.rows):
            answer(sample, rows)

    # fairseq 0.12.2's fast path fails on newer torch versions
    return Contestant(name, run, prepare, optional=name != OURS)


@contextlib.contextmanager
def teacher_of(case: ModelCase, device: torch.device) -> Iterator[Teacher]:
    with tempfile.TemporaryDirectory() as folder:
        yield Teacher(pathlib.Path(folder), case, device)


def build(name: str, case: ModelCase, device: str) -> Contestant:
    """A single contestant, for a process that measures its memory."""
    with teacher_of(case, torch.device(device)) as teacher:
        return contestant(name, teacher)


def teacher_table(arguments: argparse.Namespace, memory: Memory, progress: Progress) -> Table:
    ratio = Column("÷ fairseq", "ratio", ".3f")
    columns = [CASE, CONTESTANT, MILLISECONDS, SPREAD, ratio, Column("extra memory ÷ N·V·b", "memory_share", ".3f")]
    columns.insert(-1, Column("÷ frozen fairseq", "frozen_ratio", ".3f"))
    columns.append(Column("largest difference of a logit", "difference", ".1e"))
    table = Table("A teacher's forward pass", columns, chart=ratio)
    for case in cases(arguments):
        progress.step(f"teacher: {case}")
        with teacher_of(case, arguments.device) as teacher:
            timings = race([contestant(name, teacher) for name in WAYS], arguments)
            tokens = [len(rows) for rows in teacher.rows]
            table.notes.append(
                f"{case}: {case.size}, {teacher.online.members[0].parameters:,} parameters; {len(tokens)} batches of "
                f"{min(tokens)}–{max(tokens)} target tokens, {teacher.padding}"
            )
            for name, timing in timings.items():
                values = {**case._asdict(), **timing.row()}
                values.update(ratio=timing.over(timings[STOCK]), frozen_ratio=timing.over(timings[FROZEN]))
                if name == OURS and timings[STOCK].skipped is None:
                    values["difference"] = teacher.largest_difference()
                if timing.skipped is None:
                    progress.step(f"memory of {name}: {case}")
                    extra = memory.extra_bytes(build, name, case, arguments.device.type)
                    values["memory_share"] = None if extra is None else extra / teacher.logits_bytes
                table.add(str(case), name, values)
    table.notes.append(
        "“fairseq eval” is a model in eval mode under no_grad; with requires_grad False besides, as a frozen teacher "
        "often has it, PyTorch takes a slower way through fairseq's output projection."
    )
    table.notes.append(
        "kd_plugin's logits are made as the loss asks for them, chunk by chunk into the same memory, which is kept (64 "
        "MB at most on a CPU) and not counted as extra."
    )
    table.notes.append("Memory: N is the largest batch's number of target tokens, without padding.")
    if memory.unavailable is not None:
        table.notes.append(f"Memory was not measured: {memory.unavailable}.")
    if arguments.device.type == "cpu":
        table.not_measured("CUDA, bf16 and fp16", "no CUDA device was used")
    return table


def main(argv: Optional[Sequence[str]] = None) -> None:
    arguments = parse_arguments(__doc__, argv, optional=["memory"])
    memory = Memory(arguments, modules=["kd_plugin"])
    progress = Progress(steps=len(cases(arguments)) * (1 + len(WAYS)))
    report = Report("bench_teacher", arguments, "what asking the teacher costs, compared with its usual forward pass.")
    report.add(teacher_table(arguments, memory, progress))
    progress.close()
    report.finish()


if __name__ == "__main__":
    main()
