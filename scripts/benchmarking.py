"""Shared by the benchmarks: flags, timing, memory, reports, and realistic inputs.

How it measures: contestants are compared only within one run. After a warm-up, each round runs every contestant once,
in rotating order. A time is the median over the rounds, a ratio the median of the ratios within a round, so that a
machine that slows down affects both sides. Memory is the increase of the peak: of the resident set, in a separate
process per contestant (CPU), or of the allocator (CUDA).
"""

import argparse
import concurrent.futures
import contextlib
import datetime
import gc
import json
import logging
import math
import multiprocessing
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
import warnings
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from kd_plugin.errors import KDPluginError
from kd_plugin.files.protection import check_outputs

# fairseq logs a lot on import and turns on all loggers' messages
logging.disable(logging.INFO)
warnings.simplefilter("ignore")

WARM_UPS = {"cpu": 1, "cuda": 3}
ROUNDS = (5, 200)  # at least, at most
QUICK_ROUNDS = (3, 3)
QUICK_MAX_TOKENS = 128  # of a batch of --quick
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# written before each timed run, so that no run finds its inputs in a cache
EVICTED_BYTES = 64 * 1024 * 1024


# --- flags ----------------------------------------------------------------------------------------------------------


LEFT_OUT = {
    "compile": "skip torch.compile, which takes tens of seconds per shape",
    "memory": "skip measuring memory, for which every contestant runs again in its own process",
}


def parse_arguments(
    description: str, argv: Optional[Sequence[str]] = None, optional: Sequence[str] = ()
) -> argparse.Namespace:
    """Parses the flags of all benchmarks, and --no-X for each optional part X of LEFT_OUT.

    Returns them with `device` as a torch.device, and sets torch's number of threads.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if available")
    parser.add_argument("--threads", type=int, help="torch's CPU threads; default: torch's own choice")
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        help=f"time for the rounds of each comparison, at least {ROUNDS[0]} rounds; default: %(default)s",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs; the numbers mean nothing")
    for part in optional:
        parser.add_argument(f"--no-{part}", action="store_true", help=LEFT_OUT[part])
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="folder for the report: .md, .json and .png")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    arguments.device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    return arguments


class Progress:
    """A benchmark's progress: a bar on a terminal, otherwise an occasional line."""

    def __init__(self, steps: int, line_every: float = 10.0):
        self._steps, self._done = steps, 0
        self._line_every, self._last_line = line_every, -math.inf
        self._bar = sys.stderr.isatty()

    def step(self, what: str) -> None:
        """Reports that `what` starts now."""
        self._done = min(self._done + 1, self._steps)
        place = f"{self._done}/{self._steps} {what}"
        if self._bar:
            filled = 30 * (self._done - 1) // self._steps
            print(f"\r\033[K[{'#' * filled}{'.' * (30 - filled)}] {place}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._last_line >= self._line_every:
            self._last_line = time.monotonic()
            print(place, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


# --- time -----------------------------------------------------------------------------------------------------------


class Contestant(NamedTuple):
    """run: the timed code; prepare: what to restore before each run; optional: may fail, with a reason."""

    name: str
    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None
    optional: bool = False


class Timing:
    """One contestant's times in seconds.

    first:   its first run, including compilation
    rounds:  later runs
    skipped: why there are none
    """

    def __init__(self, skipped: Optional[str] = None):
        self.skipped = skipped
        self.first = math.nan
        self.rounds: List[float] = []

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def over(self, other: "Timing") -> Optional[float]:
        """The median ratio to another contestant's runs in the same rounds; None if one was skipped."""
        if not self.rounds or not other.rounds:
            return None
        return statistics.median(mine / theirs for mine, theirs in zip(self.rounds, other.rounds))

    def row(self) -> Dict[str, Any]:
        """The values for a table row."""
        if self.skipped is not None:
            return {"skipped": self.skipped}
        return {
            "seconds": self.median,
            "lowest": min(self.rounds),
            "highest": max(self.rounds),
            "rounds": len(self.rounds),
        }


def race(contestants: Sequence[Contestant], arguments: argparse.Namespace) -> Dict[str, Timing]:
    """Times all contestants, round by round."""
    device = arguments.device
    timings = {contestant.name: Timing() for contestant in contestants}
    fit = [contestant for contestant in contestants if _warm_up(contestant, timings[contestant.name], device)]
    fewest, most = QUICK_ROUNDS if arguments.quick else ROUNDS
    gc.collect()
    gc.disable()
    try:
        end = time.monotonic() + arguments.seconds
        done = 0
        while fit and done < most and (done < fewest or time.monotonic() < end):
            turn = done % len(fit)
            for contestant in fit[turn:] + fit[:turn]:
                timings[contestant.name].rounds.append(_seconds(contestant, device))
            done += 1
    finally:
        gc.enable()
    return timings


def _warm_up(contestant: Contestant, timing: Timing, device: torch.device) -> bool:
    try:
        timing.first = _seconds(contestant, device)
        for _ in range(WARM_UPS[device.type] - 1):
            _seconds(contestant, device)
    except Exception as error:  # compilers and third-party kernels may raise anything
        if not (contestant.optional or "out of memory" in str(error)):
            raise
        timing.skipped = first_line(error)
    return timing.skipped is None


def _seconds(contestant: Contestant, device: torch.device) -> float:
    contestant.prepare()
    if device.type != "cuda":
        start = time.perf_counter()
        contestant.run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    contestant.run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def first_line(error: BaseException, length: int = 120) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:length]}" if text else type(error).__name__


# --- memory ---------------------------------------------------------------------------------------------------------

HIGH_WATER_RESET = "/proc/self/clear_refs"


class Memory:
    """Peak memory of contestants, each named by a function that builds it and that function's arguments."""

    def __init__(self, arguments: argparse.Namespace, modules: Sequence[str]):
        """modules: imported by a measuring process before it starts."""
        self._arguments = arguments
        self.unavailable = self._why_not()
        if self.unavailable is None and arguments.device.type == "cpu":
            from multiprocessing import forkserver  # not everywhere

            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(["benchmarking", *modules])
            # return every freed block to the system at once, so that the resident set is the live memory
            with environment(MALLOC_MMAP_THRESHOLD_="65536", PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
                forkserver.ensure_running()
            if not arguments.quick:  # its imports would slow down the first timed runs
                self.extra_bytes(_nothing)

    def _why_not(self) -> Optional[str]:
        if self._arguments.no_memory:
            return "--no-memory"
        if self._arguments.device.type == "cpu" and not os.access(HIGH_WATER_RESET, os.W_OK):
            return "the peak of the resident set can only be reset on Linux"
        return None

    def extra_bytes(self, build: Callable[..., Contestant], *build_arguments: Any) -> Optional[int]:
        """The peak of one run beyond its inputs; None: unknown, or the run failed."""
        if self.unavailable is not None:
            return None
        if self._arguments.device.type == "cuda":
            return _extra_bytes_cuda(build, *build_arguments)
        job = (torch.get_num_threads(), build, *build_arguments)
        with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=self._context) as fresh_process:
            try:
                return fresh_process.submit(_extra_bytes_cpu, *job).result()
            except Exception as error:
                print(f"memory of {build_arguments}: {first_line(error)}", file=sys.stderr)
                return None


def _nothing() -> Contestant:
    return Contestant("nothing", lambda: None)


def _extra_bytes_cpu(threads: int, build: Callable[..., Contestant], *build_arguments: Any) -> int:
    torch.set_num_threads(threads)
    contestant = build(*build_arguments)
    contestant.prepare()
    contestant.run()
    gc.collect()
    contestant.prepare()
    with open(HIGH_WATER_RESET, "w") as file:
        file.write("5")
    before = _resident_bytes("VmRSS")
    contestant.run()
    return _resident_bytes("VmHWM") - before


def _resident_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def _extra_bytes_cuda(build: Callable[..., Contestant], *build_arguments: Any) -> Optional[int]:
    try:
        contestant = build(*build_arguments)
        for _ in range(2):
            contestant.prepare()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            contestant.run()
            torch.cuda.synchronize()
            extra = torch.cuda.max_memory_allocated() - before
        return extra
    except Exception as error:
        print(f"memory of {build_arguments}: {first_line(error)}", file=sys.stderr)
        return None


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables for processes started within this context."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- reports --------------------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """A column: title, the row's key, and the format of its values."""

    title: str
    key: str
    form: str = ""


CASE, CONTESTANT = Column("case", "case"), Column("contestant", "contestant")
MILLISECONDS = Column("ms", "seconds", "ms")
SPREAD = Column("lowest – highest", "lowest", "spread")


class Table:
    """A table. Rows are dictionaries with at least `case` and `contestant`; `skipped` says why one has no numbers."""

    def __init__(
        self, title: str, columns: Sequence[Column], notes: Sequence[str] = (), chart: Optional[Column] = None
    ):
        self.title, self.columns, self.notes, self.chart = title, list(columns), list(notes), chart
        self.rows: List[Dict[str, Any]] = []

    def add(self, case: str, contestant: str, values: Dict[str, Any]) -> None:
        self.rows.append({"case": case, "contestant": contestant, **values})

    def not_measured(self, case: str, reason: str) -> None:
        self.add(case, "all", {"skipped": f"not measured: {reason}"})

    def markdown(self) -> str:
        titles = [column.title for column in self.columns]
        cells = [[_written(row, column) for column in self.columns] for row in self.rows]
        if any("skipped" in row for row in self.rows):
            titles.append("why not")
            cells = [[*line, row.get("skipped", "")] for line, row in zip(cells, self.rows)]
        widths = [max(len(text) for text in column) for column in zip(titles, *cells)]
        left = [0, 1, len(self.columns)]
        rule = ["-" * width if i in left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
        lines = [
            "| "
            + " | ".join(t.ljust(w) if i in left else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths)))
            + " |"
            for line in (titles, rule, *cells)
        ]
        notes = ["", *(f"* {note}" for note in self.notes)] if self.notes else []
        return "\n".join([f"## {self.title}", "", *lines, *notes])


def _written(row: Dict[str, Any], column: Column) -> str:
    value = row.get(column.key)
    if value is None:
        return "–"
    if column.form == "ms":
        return _milliseconds(value)
    if column.form == "spread":
        return f"{_milliseconds(row['lowest'])} – {_milliseconds(row['highest'])}"
    return format(value, column.form)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


def machine(device: torch.device) -> Dict[str, Any]:
    """The machine and software of the measurement."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": device.type,
        "name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


HOW_IT_WAS_MEASURED = (
    "Contestants ran in turn, round by round. Times are medians over the rounds, ratios medians of the ratios within a "
    "round."
)


class Report:
    """One benchmark's tables: on the screen as they are finished, and finally in the folder of --out.

    tells: what the reader will know, to complete the page's first sentence
    """

    def __init__(self, name: str, arguments: argparse.Namespace, tells: str):
        self.name, self.arguments, self.tells = name, arguments, tells
        self._check_folder()
        self.machine = machine(arguments.device)
        self.command = "python " + " ".join(shlex.quote(word) for word in sys.argv)
        self.tables: List[Table] = []
        print(self._head(), flush=True)

    def _check_folder(self) -> None:
        """Refuses, before hours of work, to overwrite anything but an earlier report of this benchmark."""
        folder = self.arguments.out
        if folder is None:
            return
        try:
            check_outputs([], [("--out", folder)])
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                if json.loads((folder / f"{self.name}.json").read_bytes())["benchmark"] == self.name:
                    return
            check_outputs([], files=[("--out", folder / f"{self.name}.{end}") for end in ("md", "json", "png")])
        except KDPluginError as error:
            raise SystemExit(str(error)) from error

    def add(self, table: Table) -> None:
        self.tables.append(table)
        print("\n" + table.markdown(), flush=True)

    def finish(self) -> None:
        folder = self.arguments.out
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n\n".join([self._head(), *(table.markdown() for table in self.tables)]) + "\n"
        (folder / f"{self.name}.md").write_text(text, encoding="utf-8")
        data = {
            "benchmark": self.name,
            "command": self.command,
            "quick": self.arguments.quick,
            "machine": self.machine,
            "tables": [{"title": table.title, "notes": table.notes, "rows": table.rows} for table in self.tables],
        }
        (folder / f"{self.name}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
        try:
            draw(self.tables, folder / f"{self.name}.png")
        except ImportError:
            print("no .png: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)

    def _head(self) -> str:
        m = self.machine
        line = f"{m['name']} ({m['cores']} cores, {m['threads']} threads), torch {m['torch']}, Python {m['python']}"
        lines = [
            f"# {self.name}",
            "",
            f"**After this page you know** {self.tells}",
            "",
            f"{line}, {m['date']}, `{self.command}`",
            "",
            HOW_IT_WAS_MEASURED,
        ]
        if self.arguments.quick:
            lines += ["", "**--quick: a trial run of the script; these numbers mean nothing.**"]
        return "\n".join(lines)


def draw(tables: Sequence[Table], path: pathlib.Path) -> None:
    """One panel of bars for each table with a chart: one group per case, one colour per contestant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = []
    for table in tables:
        rows = [row for row in table.rows if table.chart is not None and row.get(table.chart.key) is not None]
        if rows:
            panels.append((table, rows))
    if not panels:
        return
    everybody = list(dict.fromkeys(row["contestant"] for _, rows in panels for row in rows))
    colours = {contestant: f"C{i % 10}" for i, contestant in enumerate(everybody)}
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(12, 4.2 * len(panels)), squeeze=False)
    for axis, (table, rows) in zip(axes[:, 0], panels):
        cases = list(dict.fromkeys(row["case"] for row in rows))
        contestants = list(dict.fromkeys(row["contestant"] for row in rows))
        width = 0.85 / len(contestants)
        for i, contestant in enumerate(contestants):
            mine = [row for row in rows if row["contestant"] == contestant]
            places = [cases.index(row["case"]) + (i - (len(contestants) - 1) / 2) * width for row in mine]
            heights = [row[table.chart.key] for row in mine]
            axis.bar(places, heights, width, label=contestant, color=colours[contestant])
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.set_xticks(range(len(cases)))
        axis.set_xticklabels(cases, rotation=20, ha="right", fontsize="small")
        axis.set_xlim(-0.6, max(len(cases), 3) - 0.4)
        axis.set_title(table.title)
        axis.set_ylabel(table.chart.title)
        axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(str(path), dpi=110)
    pyplot.close(figure)


# --- logits like a trained model's ----------------------------------------------------------------------------------


class Logits(NamedTuple):
    student: Tensor  # (tokens, vocab)
    teacher: Tensor  # (tokens, vocab)
    target: Tensor  # (tokens,)


DISTINCT_ROWS = 128  # repeated for all tokens, because drawing would take longer than the measurement
HOW_LOGITS_ARE_DRAWN = (
    "Logits: for each token, normal noise (2 nats) that student and teacher share, minus the logarithm of the word's "
    "frequency rank, plus five likely words, raised by up to 11, 8, 7, 6, 5 nats on a token that is easy and by half "
    "of it on one that is hard; the student adds 1 nat of noise of its own. Targets are drawn from the teacher. "
    f"{DISTINCT_ROWS} tokens are drawn and repeated."
)


def draw_logits(tokens: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Logits:
    """The same every time for the same arguments; see HOW_LOGITS_ARE_DRAWN."""
    generator = torch.Generator(device).manual_seed(vocab)
    place: Dict[str, Any] = {"generator": generator, "device": device}
    rows = min(tokens, DISTINCT_ROWS)
    teacher = torch.randn(rows, vocab, **place).mul_(2.0)
    teacher -= torch.arange(1, vocab + 1, device=device).log()
    ease = 0.5 + 0.5 * torch.rand(rows, 1, **place)
    raised = torch.tensor([11.0, 8.0, 7.0, 6.0, 5.0], device=device) * ease
    # frequent words are more likely to be the likely ones
    likely = (vocab * torch.rand(rows, raised.size(1), **place) ** 3).long()
    teacher.scatter_add_(1, likely, raised + likely.add(1).log())
    student = torch.randn(rows, vocab, **place).add_(teacher)
    target = teacher.softmax(-1).multinomial(1, generator=generator).squeeze(1)
    repeated = torch.arange(tokens, device=device) % rows
    return Logits(student.to(dtype)[repeated], teacher.to(dtype)[repeated], target[repeated])


class FromModel(torch.autograd.Function):
    """Logits as from a model: not a leaf of the graph, with a gradient that the model consumes at no cost."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, values: Tensor, gradients: Optional[List[Tensor]]) -> Tensor:
        """anchor: any leaf that needs a gradient; gradients: a list to put the gradient into, or None."""
        ctx.gradients = gradients
        return values.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        if ctx.gradients is not None:
            ctx.gradients.append(gradient.detach().clone())
        return None, None, None


LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]  # of student logits, teacher logits, target


class LossArena:
    """Forward and backward of losses from the same logits. The student's logits are restored before each run, because a
    loss may overwrite them and so that no contestant finds its inputs in a cache."""

    def __init__(self, drawn: Logits):
        self.drawn = drawn
        self.student = drawn.student.clone()
        self._anchor = torch.zeros((), device=self.student.device, requires_grad=True)
        self._evicting = torch.zeros(EVICTED_BYTES // 4, device=self.student.device)

    def contestant(self, name: str, loss_function: LossFunction, optional: bool = False) -> Contestant:
        return Contestant(name, lambda: self.run(loss_function), self.restore, optional)

    def restore(self) -> None:
        self.student.copy_(self.drawn.student)
        self._evicting.add_(1)

    def run(self, loss_function: LossFunction, gradients: Optional[List[Tensor]] = None) -> None:
        logits = FromModel.apply(self._anchor, self.student, gradients)
        scaled(loss_function(logits, self.drawn.teacher, self.drawn.target), self.student.dtype).backward()


def scaled(loss: Tensor, dtype: torch.dtype) -> Tensor:
    """The loss that training differentiates: in fp16 fairseq multiplies it, by 128 at the start."""
    return loss * 128 if dtype == torch.float16 else loss


# --- fairseq's models and batches -----------------------------------------------------------------------------------


class Size(NamedTuple):
    layers: int  # on each side
    width: int
    ffn: int
    heads: int

    def flags(self) -> List[str]:
        values = {
            "layers": self.layers,
            "embed-dim": self.width,
            "ffn-embed-dim": self.ffn,
            "attention-heads": self.heads,
        }
        sides = [f"--{side}-{name}={value}" for name, value in values.items() for side in ("encoder", "decoder")]
        return ["--arch=transformer", "--share-all-embeddings", *sides]

    def wider(self) -> "Size":
        """Twice as wide: four times the parameters in every layer."""
        return Size(self.layers, 2 * self.width, 2 * self.ffn, 2 * self.heads)

    def __str__(self) -> str:
        return f"{self.layers}+{self.layers} layers, width {self.width}, ffn {self.ffn}"


class ModelCase(NamedTuple):
    """A model and its batches; max_tokens as in fairseq's flag, dtype is a key of DTYPES."""

    model: str
    size: Size
    vocab: int
    max_tokens: int
    batches: int
    dtype: str = "fp32"

    def __str__(self) -> str:
        return f"{self.model}, V {self.vocab}, {self.dtype}"


def write_dictionaries(folder: pathlib.Path, vocab: int) -> None:
    """dict.en.txt and dict.de.txt of `vocab` symbols with fairseq's four special ones."""
    text = "".join(f"word{i} 1\n" for i in range(vocab - 4))
    for lang in ("en", "de"):
        (folder / f"dict.{lang}.txt").write_text(text, encoding="utf-8")


def fairseq_config(folder: pathlib.Path, *flags: str) -> Any:
    """The configuration of `fairseq-train FOLDER flags…`."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    words = [str(folder), "-s", "en", "-t", "de", *flags]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))


def write_checkpoint(path: pathlib.Path, size: Size) -> Any:
    """A transformer with random weights for the dictionaries beside it, as fairseq would save it. Returns the model."""
    from fairseq import tasks
    from omegaconf import OmegaConf

    cfg = fairseq_config(path.parent, "--task=translation", *size.flags())
    torch.manual_seed(1)
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    torch.save({"args": None, "cfg": plain, "model": model.state_dict()}, str(path))
    return model


def draw_batches(dictionary: Any, max_tokens: int, count: int) -> List[Dict[str, Any]]:
    """Batches from fairseq's own dataset, batching and collater: sentences of 4 to 60 tokens, mostly around 14, targets
    about as long as sources, similar lengths within a batch, with average padding."""
    from fairseq.data import LanguagePairDataset, ListDataset
    from fairseq.data.data_utils import batch_by_size

    generator = torch.Generator().manual_seed(7)
    # Multi30k's size: with fewer sentences, batches have more padding; the few tokens of --quick do not need 30,000
    n_sentences = 30_000 if max_tokens > QUICK_MAX_TOKENS else 1_000

    def lengths(logarithm: Tensor, spread: float) -> Tensor:
        drawn = logarithm + spread * torch.randn(n_sentences, generator=generator)
        return drawn.exp().round().clamp(4, 60).long()

    def sentences(sizes: Tensor) -> List[Tensor]:
        first = dictionary.nspecial
        # Zipf's law: ranks drawn with a density of one over the rank
        ranks = [torch.rand(size, generator=generator) for size in sizes.tolist()]
        words = [(first + (len(dictionary) - first) ** rank - 1).long() for rank in ranks]
        return [torch.cat([line[:-1], line.new_tensor([dictionary.eos()])]) for line in words]

    source_sizes = lengths(torch.full((n_sentences,), math.log(14)), 0.35)
    target_sizes = lengths(source_sizes.float().log(), 0.15)
    source, target = (ListDataset(sentences(sizes), sizes.numpy()) for sizes in (source_sizes, target_sizes))
    dataset = LanguagePairDataset(
        source, source.sizes, dictionary, target, target.sizes, dictionary, left_pad_source=True, left_pad_target=False
    )
    batches = batch_by_size(dataset.ordered_indices(), dataset.num_tokens, max_tokens=max_tokens)
    padded = np.array([len(batch) * int(target_sizes[batch].max()) for batch in batches])
    real = np.array([int(target_sizes[batch].sum()) for batch in batches])
    from_the_mean = np.abs(real / padded - real.sum() / padded.sum())
    # batches of all lengths, not only the shortest
    chosen = [part[from_the_mean[part].argmin()] for part in np.array_split(np.arange(len(batches)), count)]
    return [dataset.collater([dataset[index] for index in batches[at]]) for at in chosen]


def target_rows(sample: Dict[str, Any], padding_idx: int) -> Tuple[Tensor, Tensor]:
    """(tokens,) non-padding positions in the flattened target, and the targets there."""
    target = sample["target"].reshape(-1)
    rows = target.ne(padding_idx).nonzero(as_tuple=True)[0]
    return rows, target[rows]


def padding(samples: Sequence[Dict[str, Any]]) -> str:
    """The share of padding, for the notes."""
    inputs = [sample["net_input"] for sample in samples]
    target = 1 - sum(sample["ntokens"] for sample in samples) / sum(sample["target"].numel() for sample in samples)
    real, all_of_them = sum(int(i["src_lengths"].sum()) for i in inputs), sum(i["src_tokens"].numel() for i in inputs)
    return f"{target:.0%} of the target's and {1 - real / all_of_them:.0%} of the source's positions are padding."
