#!/usr/bin/env python3
"""Compares time, memory and accuracy of the distillation loss, forward and backward, with the usual implementations.

    bench_loss.py [--quick] [--device cpu|cuda] [--threads N] [--seconds S] [--no-compile] [--no-memory]
        [--out DIR]

All contestants compute alpha * cross-entropy(label-smoothed) + (1 - alpha) * temperature**2 * KL(teacher || student)
from the same logits, alpha 0.5, label smoothing 0.1. Memory is given as a share of one set of logits: tokens (N) times
vocabulary (V) times the bytes of a logit (b). The floor is one pass that reads two such sets and writes one.
"""

import argparse
import functools
import importlib.util
import os
import shutil
import tempfile
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple
from unittest import mock

import torch
import torch.nn.functional as F
from benchmarking import (
    CASE,
    CONTESTANT,
    DTYPES,
    HOW_LOGITS_ARE_DRAWN,
    MILLISECONDS,
    SPREAD,
    Column,
    Contestant,
    LossArena,
    LossFunction,
    Memory,
    Progress,
    Report,
    Table,
    Timing,
    draw_logits,
    environment,
    first_line,
    parse_arguments,
    race,
    scaled,
)
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from torch import Tensor

from kd_plugin.losses import DIVERGENCES, distillation_loss
from kd_plugin.losses.answer import ProjectedAnswer
from kd_plugin.losses.definition import Objective
from kd_plugin.losses.engine import dispatch as engine
from kd_plugin.losses.engine.fused_head import StudentFeatures
from kd_plugin.losses.engine.memory import Allocate, LinearHead

ALPHA, LABEL_SMOOTHING = 0.5, 0.1
NO_GPU = "no CUDA device was used"
MEMORY_COLUMN = Column("extra memory ÷ N·V·b", "memory_share", ".3f")
RATIO_COLUMN = Column("÷ usual", "ratio", ".3f")


class Case(NamedTuple):
    """One comparison; dtype is a key of DTYPES."""

    vocab: int
    tokens: int
    dtype: str
    temperature: float = 1.0
    divergence: str = "forward_kl"

    def __str__(self) -> str:
        return f"V {self.vocab}, N {self.tokens}, {self.dtype}, τ {self.temperature:g}"

    def logits_bytes(self) -> int:
        return self.vocab * self.tokens * torch.empty((), dtype=DTYPES[self.dtype]).element_size()


# --- the contestants: each makes a loss function for a case ---------------------------------------------------------


def usual(case: Case, teacher_term: Optional[Callable[..., Tensor]] = None) -> LossFunction:
    """As in fairseq forks: fairseq's own cross-entropy, and two more softmaxes for the KL, all in fp32.

    teacher_term: (log p, q) -> (tokens, vocab), to be summed over the vocabulary; default: the KL
    """
    teacher_term = teacher_term or functools.partial(F.kl_div, reduction="none")

    def loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        dtype = torch.promote_types(student.dtype, torch.float32)
        lprobs = torch.log_softmax(student, dim=-1, dtype=dtype)
        ce, _ = label_smoothed_nll_loss(lprobs, target, LABEL_SMOOTHING)
        kd = teacher_term(*softmaxes(student.to(dtype), teacher.to(dtype), case.temperature))
        return mixed(ce, kd.sum(dim=-1).sum(), case)  # first one value per token, because forks mask them

    return loss


def without_entropy(case: Case) -> LossFunction:
    """The same with the teacher's entropy, which has no gradient, left out of the KL."""
    return usual(case, lambda lprobs, teacher_probs: -teacher_probs * lprobs)


def pytorch_losses(case: Case) -> LossFunction:
    """F.cross_entropy, which smooths labels itself, and F.kl_div."""

    def loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        student, teacher = student.float(), teacher.float()
        smoothing = torch_label_smoothing(student.size(-1))
        ce = F.cross_entropy(student, target, label_smoothing=smoothing, reduction="sum")
        return mixed(ce, F.kl_div(*softmaxes(student, teacher, case.temperature), reduction="sum"), case)

    return loss


def softmaxes(student: Tensor, teacher: Tensor, temperature: float) -> Tuple[Tensor, Tensor]:
    """The student's log-probabilities and the teacher's probabilities, as F.kl_div expects them."""
    if temperature != 1.0:
        student, teacher = student / temperature, teacher / temperature
    return torch.log_softmax(student, dim=-1), torch.softmax(teacher, dim=-1)


def mixed(ce: Tensor, kd: Tensor, case: Case) -> Tensor:
    return ALPHA * ce + (1 - ALPHA) * case.temperature**2 * kd


def torch_label_smoothing(vocab: int) -> float:
    """fairseq's smoothing in PyTorch's terms: PyTorch also gives the target its share of the smoothing mass."""
    return LABEL_SMOOTHING * vocab / (vocab - 1)


@functools.lru_cache(maxsize=None)
def _compiled(temperature: float) -> LossFunction:
    return torch.compile(usual(Case(0, 0, "fp32", temperature)), dynamic=False)


def compiled(case: Case) -> LossFunction:
    """The usual way through torch.compile, for this shape only."""
    return _compiled(case.temperature)


def liger(case: Case) -> LossFunction:
    """Liger-Kernel's Triton kernels for the cross-entropy and the KL; the former overwrites the student's logits."""
    from liger_kernel.transformers import LigerCrossEntropyLoss, LigerKLDIVLoss

    cross_entropy = LigerCrossEntropyLoss(label_smoothing=torch_label_smoothing(case.vocab), reduction="sum")
    kl_div = LigerKLDIVLoss(reduction="sum")

    def loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        kd = kl_div(*softmaxes(student.float(), teacher.float(), case.temperature))
        return mixed(cross_entropy(student, target), kd, case)

    return loss


def ours(case: Case, inplace: bool, kernels: bool = True) -> LossFunction:
    """Ours; without kernels it runs as if neither Numba nor Triton were installed."""

    def with_what_is_installed(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return distillation_loss(
            student,
            teacher,
            target,
            alpha=ALPHA,
            temperature=case.temperature,
            label_smoothing=LABEL_SMOOTHING,
            divergence=case.divergence,
            inplace=inplace,
        ).loss

    def by_pytorch(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        with mock.patch.object(engine, "kernels_for", lambda device_type: None):
            return with_what_is_installed(student, teacher, target)

    return with_what_is_installed if kernels else by_pytorch


USUAL, COMPILED, LIGER, FLOOR = "usual", "torch.compile of usual", "Liger-Kernel", "floor: one streaming pass"
OURS_NEW, OURS_IN_PLACE = "kd_plugin, new buffer", "kd_plugin, in place"
OURS_BY_PYTORCH = "kd_plugin, in place, no compiled kernels"
LOSSES: Dict[str, Callable[[Case], LossFunction]] = {
    USUAL: usual,
    "usual, without the teacher's entropy": without_entropy,
    "F.cross_entropy + F.kl_div": pytorch_losses,
    COMPILED: compiled,
    LIGER: liger,
    OURS_NEW: functools.partial(ours, inplace=False),
    OURS_IN_PLACE: functools.partial(ours, inplace=True),
    OURS_BY_PYTORCH: functools.partial(ours, inplace=True, kernels=False),
}
OTHERS = (COMPILED, LIGER)  # they may fail


def why_not(name: str, device: torch.device, arguments: argparse.Namespace) -> Optional[str]:
    """Why a contestant cannot take part; None: it can."""
    if name == LIGER:
        if device.type != "cuda":
            return "its kernels need CUDA"
        return None if importlib.util.find_spec("liger_kernel") else "pip install liger-kernel"
    if name == OURS_BY_PYTORCH and engine.kernels_for(device.type) is None:
        return "as the rows above: " + ("Triton" if device.type == "cuda" else "Numba") + " is not installed"
    if name == COMPILED:
        if arguments.no_compile or arguments.quick:
            return "--no-compile" if arguments.no_compile else "--quick"
        if not hasattr(torch, "compile"):
            return f"torch {torch.__version__} has none"
        if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
            return "no C++ compiler was found"
    return None


def loss_contestant(name: str, arena: LossArena, case: Case) -> Contestant:
    if name == FLOOR:
        written = torch.empty_like(arena.student)
        return Contestant(name, lambda: torch.add(arena.student, arena.drawn.teacher, out=written), arena.restore)
    return arena.contestant(name, LOSSES[name](case), optional=name in OTHERS)


def build_loss(name: str, case: Case, device: str) -> Contestant:
    """A single contestant, for a process that measures its memory."""
    arena = LossArena(draw_logits(case.tokens, case.vocab, DTYPES[case.dtype], torch.device(device)))
    return loss_contestant(name, arena, case)


# --- cases ----------------------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    vocabs: Sequence[int]
    middle_vocab: int  # for what is measured at one vocabulary only
    elements: int  # N·V
    more: int  # times as many in one larger case
    head: "HeadCase"


def sizes(arguments: argparse.Namespace) -> Sizes:
    if arguments.quick:
        return Sizes((4096,), 4096, 2**18, 1, HeadCase(4096, 64, 32, "fp32"))
    if arguments.device.type == "cpu":
        return Sizes((8192, 32768, 65536), 32768, 2**24, 4, HeadCase(32768, 1024, 512, "fp32"))
    elements, more = 2**28, 2
    memory = torch.cuda.get_device_properties(arguments.device).total_memory
    while more * elements * 60 > memory:  # bytes of the usual way for each element, inputs and their copies included
        elements //= 2
    return Sizes((8192, 32768, 65536), 32768, elements, more, HeadCase(32768, 8192, 512, "bf16"))


def cases(arguments: argparse.Namespace) -> List[Case]:
    size = sizes(arguments)
    dtypes = ["fp32"] if arguments.device.type == "cpu" else ["bf16", "fp16"]
    chosen = [
        Case(vocab, size.elements // vocab, dtype, temperature)
        for dtype in dtypes
        for vocab in size.vocabs
        for temperature in (1.0, 2.0)
    ]
    middle, tokens = size.middle_vocab, size.elements // size.middle_vocab
    if size.more > 1:
        chosen += [Case(middle, size.more * tokens, dtype) for dtype in dtypes]
    return chosen if arguments.device.type == "cuda" else [*chosen, Case(middle, tokens, "bf16")]


def _why_not_compiled(case: Case, arguments: argparse.Namespace) -> Optional[str]:
    """Decides whether to compile, which takes tens of seconds per shape, to keep the benchmark short."""
    size = sizes(arguments)
    chosen = case.vocab == size.middle_vocab and case.vocab * case.tokens == size.elements
    if chosen and not (case.dtype == "bf16" and arguments.device.type == "cpu"):
        return None
    return "it compiles each shape separately: skipped here"


def reasons(case: Case, arguments: argparse.Namespace) -> Dict[str, Optional[str]]:
    """Why each contestant cannot take part; None: it does."""
    skipped = {name: why_not(name, arguments.device, arguments) for name in LOSSES}
    skipped[COMPILED] = skipped[COMPILED] or _why_not_compiled(case, arguments)
    return skipped


def count_steps(arguments: argparse.Namespace) -> int:
    """The steps of the whole benchmark, for its progress: races, memory and gradients."""
    losses = sum(1 + list(reasons(case, arguments).values()).count(None) for case in cases(arguments))
    heads = sum(name != PRODUCTS for name in HEADS) - bool(why_not(LIGER, arguments.device, arguments))
    return losses + 1 + 2 + 1 + heads


# --- the loss from logits -------------------------------------------------------------------------------------------


def loss_table(arguments: argparse.Namespace, memory: Memory, progress: Progress) -> Table:
    columns = [CASE, CONTESTANT, MILLISECONDS, SPREAD, RATIO_COLUMN, Column("÷ floor", "floor_ratio", ".1f")]
    columns += [MEMORY_COLUMN, Column("compile s", "compile_seconds", ".1f")]
    notes = [
        "Loss forward and backward from logits, forward KL. “usual” is fairseq's label_smoothed_nll_loss and a KL from "
        "two more softmaxes, all in fp32 by PyTorch's operations and autograd.",
        HOW_LOGITS_ARE_DRAWN,
        "Extra memory includes the gradient with respect to the logits, except where it is written over them.",
        "In fp16 the loss is multiplied by 128 before backward, as fairseq does.",
    ]
    if memory.unavailable is not None:
        notes.append(f"Memory was not measured: {memory.unavailable}.")
    table = Table("Loss, forward and backward", columns, notes, chart=RATIO_COLUMN)
    for case in cases(arguments):
        progress.step(f"loss at {case}")
        skipped = reasons(case, arguments)
        timings = _race_of_losses(case, [FLOOR, *(name for name in LOSSES if not skipped[name])], arguments)
        for name in (*LOSSES, FLOOR):
            timing = timings.get(name) or Timing(skipped[name])
            values = {**case._asdict(), **timing.row()}
            values.update(ratio=timing.over(timings[USUAL]), floor_ratio=timing.over(timings[FLOOR]))
            if timing.skipped is None and name == COMPILED:
                values["compile_seconds"] = timing.first - timing.median
            if timing.skipped is None and name != FLOOR:
                progress.step(f"memory of {name} at {case}")
                values["memory_share"] = _memory_share(name, case, memory, arguments)
            table.add(str(case), name, values)
    if arguments.device.type == "cpu":
        table.not_measured("CUDA, bf16 and fp16", NO_GPU)
    return table


def _race_of_losses(case: Case, names: Sequence[str], arguments: argparse.Namespace) -> Dict[str, Timing]:
    arena = LossArena(draw_logits(case.tokens, case.vocab, DTYPES[case.dtype], arguments.device))
    return race([loss_contestant(name, arena, case) for name in names], arguments)


def _memory_share(name: str, case: Case, memory: Memory, arguments: argparse.Namespace) -> Optional[float]:
    if arguments.quick and case != cases(arguments)[0]:
        return None
    extra = memory.extra_bytes(build_loss, name, case, arguments.device.type)
    return None if extra is None else extra / case.logits_bytes()


# --- every divergence -----------------------------------------------------------------------------------------------


def divergence_table(arguments: argparse.Namespace, progress: Progress) -> Table:
    size = sizes(arguments)
    dtype = "fp32" if arguments.device.type == "cpu" else "bf16"
    base = Case(size.middle_vocab, size.elements // size.middle_vocab, dtype)
    table = Table(
        f"Every divergence at {base}",
        [Column("divergence", "case"), CONTESTANT, MILLISECONDS, SPREAD, RATIO_COLUMN],
        ["“usual” is the usual way with the forward KL, the same for every divergence."],
        chart=RATIO_COLUMN,
    )
    arena = LossArena(draw_logits(base.tokens, base.vocab, DTYPES[dtype], arguments.device))
    contestants = [loss_contestant(USUAL, arena, base)]
    for divergence in DIVERGENCES:
        for name in (OURS_NEW, OURS_IN_PLACE):
            loss_function = LOSSES[name](base._replace(divergence=divergence))
            contestants.append(arena.contestant(f"{divergence}, {name}", loss_function))
    progress.step(f"every divergence at {base}")
    timings = race(contestants, arguments)
    for divergence in DIVERGENCES:
        for name in (OURS_NEW, OURS_IN_PLACE):
            timing = timings[f"{divergence}, {name}"]
            table.add(divergence, name, {**timing.row(), "ratio": timing.over(timings[USUAL])})
    table.add("forward_kl", USUAL, {**timings[USUAL].row(), "ratio": 1.0})
    if arguments.device.type == "cpu":
        table.not_measured("CUDA, bf16", NO_GPU)
    return table


# --- accuracy -------------------------------------------------------------------------------------------------------


def accuracy_table(arguments: argparse.Namespace, progress: Progress) -> Table:
    size = sizes(arguments)
    tokens = min(size.elements, 2**24) // size.middle_vocab
    columns = [CASE, CONTESTANT, Column("largest error", "error", ".2e"), Column("largest entry", "largest", ".3f")]
    table = Table(
        "Gradient in fp32 against the usual way in float64",
        columns,
        ["The largest difference of an entry of the gradient with respect to the logits."],
    )
    for temperature in (1.0, 2.0):
        case = Case(size.middle_vocab, tokens, "fp32", temperature)
        progress.step(f"gradient at {case}")
        drawn = draw_logits(case.tokens, case.vocab, torch.float32, arguments.device)
        doubled = LossArena(drawn._replace(student=drawn.student.double(), teacher=drawn.teacher.double()))
        exact = _gradient(doubled, usual(case))
        arena = LossArena(drawn)
        for name in LOSSES:
            reason = why_not(name, arguments.device, arguments)
            values = {"skipped": reason} if reason else _error(arena, name, case, exact)
            table.add(str(case), name, values)
    if arguments.device.type == "cpu":
        table.not_measured("CUDA, fp32", NO_GPU)
    return table


def _gradient(arena: LossArena, loss_function: LossFunction) -> Tensor:
    gradients: List[Tensor] = []
    arena.restore()
    arena.run(loss_function, gradients)
    return gradients[0]


def _error(arena: LossArena, name: str, case: Case, exact: Tensor) -> Dict[str, Any]:
    try:
        gradient = _gradient(arena, LOSSES[name](case))
    except Exception as error:
        if name not in OTHERS:
            raise
        return {"skipped": first_line(error)}
    return {"error": (gradient - exact).abs().max().item(), "largest": exact.abs().max().item()}


# --- output projection and loss together: features in, no logits ----------------------------------------------------


class HeadCase(NamedTuple):
    """Student and teacher have features of the same width."""

    vocab: int
    tokens: int
    width: int
    dtype: str

    def __str__(self) -> str:
        return f"V {self.vocab}, N {self.tokens}, width {self.width}, {self.dtype}"

    def case(self) -> Case:
        return Case(self.vocab, self.tokens, self.dtype)


class Head:
    """Features and output projections, and the ways from them to a loss and its gradients."""

    def __init__(self, case: HeadCase, device: torch.device):
        generator = torch.Generator(device).manual_seed(5)

        def normal(*shape: int, std: float = 1.0) -> Tensor:
            drawn = torch.randn(*shape, generator=generator, device=device) * std
            return drawn.to(DTYPES[case.dtype])

        std = 2.5 / case.width**0.5  # logits that vary by 2.5 nats
        self.case = case.case()
        self.features, self.weight = normal(case.tokens, case.width), normal(case.vocab, case.width, std=std)
        self.teacher_features, self.teacher_weight = (
            normal(case.tokens, case.width),
            normal(*self.weight.shape, std=std),
        )
        self.target = torch.randint(case.vocab, (case.tokens,), generator=generator, device=device)
        self.features.requires_grad_()
        self.weight.requires_grad_()

    def forget_gradients(self) -> None:
        self.features.grad = self.weight.grad = None

    def products(self) -> Callable[[], Any]:
        """The floor: student's logits, teacher's logits, and the gradients of features and projection, no loss."""
        features, weight = self.features.detach(), self.weight.detach()
        logits = torch.empty(features.size(0), weight.size(0), dtype=features.dtype, device=features.device)
        teacher_logits = torch.empty_like(logits)
        for_features, for_weight = torch.empty_like(features), torch.empty_like(weight)

        def run() -> None:
            torch.mm(features, weight.t(), out=logits)
            torch.mm(self.teacher_features, self.teacher_weight.t(), out=teacher_logits)
            torch.mm(logits, weight, out=for_features)
            torch.mm(logits.t(), features, out=for_weight)

        return run

    def allocating_products(self) -> Callable[[], Any]:
        """The same with operations that return new tensors, whose pages the kernel must allocate first."""
        features, weight = self.features.detach(), self.weight.detach()

        def run() -> None:
            logits = F.linear(features, weight)
            teacher_logits = F.linear(self.teacher_features, self.teacher_weight)
            gradients = torch.mm(logits, weight), torch.mm(logits.t(), features)
            del teacher_logits, gradients

        return run

    def through_logits(self, loss_name: str) -> Callable[[], Any]:
        loss_function = LOSSES[loss_name](self.case)

        def run() -> None:
            teacher_logits = F.linear(self.teacher_features, self.teacher_weight)
            logits = F.linear(self.features, self.weight)
            scaled(loss_function(logits, teacher_logits, self.target), logits.dtype).backward()

        return run

    def fused(self) -> Callable[[], Any]:
        objective = Objective(ALPHA, self.case.temperature, LABEL_SMOOTHING)

        def project(features: Tensor, allocate: Allocate) -> Tensor:  # as OnlineTeacher projects
            return LinearHead(self.teacher_weight)(features, allocate)

        def run() -> None:
            answer = ProjectedAnswer([(self.teacher_features, project)], [0.0])
            loss, _ = StudentFeatures(self.features, self.weight).loss(answer, self.target, objective)
            scaled(loss, self.features.dtype).backward()

        return run

    def liger(self) -> Callable[[], Any]:
        """Liger-Kernel's fused projection, cross-entropy and KL; it has no label smoothing."""
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss_function = LigerFusedLinearJSDLoss(weight_hard_loss=ALPHA, weight_soft_loss=1 - ALPHA, beta=0.0)

        def run() -> None:
            teacher = (self.teacher_features, self.teacher_weight)
            loss = loss_function(self.features, self.weight, *teacher, self.target)
            scaled(loss, self.features.dtype).backward()

        return run


PRODUCTS, FUSED, LIGER_FUSED = "floor: the four products", "kd_plugin, fused head", "Liger-Kernel, fused head"
ALLOCATING = "the four products into new tensors"
HEADS: Dict[str, Callable[[Head], Callable[[], Any]]] = {
    "logits, then usual": lambda head: head.through_logits(USUAL),
    f"logits, then {OURS_IN_PLACE}": lambda head: head.through_logits(OURS_IN_PLACE),
    FUSED: Head.fused,
    LIGER_FUSED: Head.liger,
    PRODUCTS: Head.products,
    ALLOCATING: Head.allocating_products,
}


def build_head(name: str, case: HeadCase, device: str) -> Contestant:
    head = Head(case, torch.device(device))
    return Contestant(name, HEADS[name](head), head.forget_gradients, optional=name == LIGER_FUSED)


def head_table(arguments: argparse.Namespace, memory: Memory, progress: Progress) -> Table:
    case = sizes(arguments).head
    gradients = (case.tokens + case.vocab) * case.width / (case.tokens * case.vocab)
    ratio = Column("÷ the products", "ratio", ".3f")
    table = Table(
        "Output projections and loss together",
        [
            CASE,
            CONTESTANT,
            MILLISECONDS,
            SPREAD,
            ratio,
            Column("÷ those into new tensors", "new_ratio", ".3f"),
            MEMORY_COLUMN,
        ],
        [
            "From features to the gradients of features and projection. The four products are the student's logits, "
            "the teacher's logits and the two gradients, without any loss: once into buffers that are there already, "
            "once into new tensors, as PyTorch's operations make them.",
            f"The two gradients, which all of them make, are {gradients:.3f} of the extra memory.",
            "Features and projections are drawn at random, logits vary by 2.5 nats.",
        ],
        chart=ratio,
    )
    progress.step(f"projections and loss at {case}")
    reason = why_not(LIGER, arguments.device, arguments)
    skipped = {LIGER_FUSED: Timing(reason)} if reason else {}
    names = [name for name in HEADS if name not in skipped]
    head = Head(case, arguments.device)
    timings = race(
        [Contestant(name, HEADS[name](head), head.forget_gradients, name == LIGER_FUSED) for name in names], arguments
    )
    timings.update(skipped)
    for name, timing in timings.items():
        values = {**case._asdict(), **timing.row(), "ratio": timing.over(timings[PRODUCTS])}
        values["new_ratio"] = timing.over(timings[ALLOCATING])
        if timing.skipped is None and name not in (PRODUCTS, ALLOCATING):
            progress.step(f"memory of {name} at {case}")
            extra = memory.extra_bytes(build_head, name, case, arguments.device.type)
            values["memory_share"] = None if extra is None else extra / case.case().logits_bytes()
        table.add(str(case), name, values)
    if arguments.device.type == "cpu":
        table.not_measured("CUDA, bf16", NO_GPU)
    return table


def main(argv: Optional[Sequence[str]] = None) -> None:
    arguments = parse_arguments(__doc__, argv, optional=["compile", "memory"])
    # compile in every run, so that its time is measured
    with tempfile.TemporaryDirectory() as cache, environment(TORCHINDUCTOR_CACHE_DIR=cache):
        memory = Memory(arguments, modules=["kd_plugin.losses"])
        progress = Progress(count_steps(arguments))
        report = Report(
            "bench_loss",
            arguments,
            "what the loss costs in time and memory, compared with the usual implementation and with plain "
            "cross-entropy.",
        )
        report.add(loss_table(arguments, memory, progress))
        report.add(divergence_table(arguments, progress))
        report.add(accuracy_table(arguments, progress))
        report.add(head_table(arguments, memory, progress))
        progress.close()
    report.finish()


if __name__ == "__main__":
    main()
