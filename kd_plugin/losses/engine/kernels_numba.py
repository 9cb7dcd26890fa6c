"""The one-pass engine on CPUs: `one_pass` compiled by Numba, if installed (extra "cpu").

Each thread takes a share of the rows; compiled_rows/ has the arithmetic. These are Python threads, as many as PyTorch
has, since the compiled code releases the GIL. Unlike Numba's own thread pools they survive a fork and get along with
PyTorch's OpenMP. Compiled code is cached on disk (`__pycache__` or NUMBA_CACHE_DIR), so only the first run waits for
the compilation, some ten seconds.
"""

import contextlib
import itertools
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterator, List, Optional, Tuple, TypeVar

import numba
import torch
from torch import Tensor

from kd_plugin.losses import definition
from kd_plugin.losses.engine import compiled_rows
from kd_plugin.losses.engine.memory import LinearHead, new_buffer
from kd_plugin.losses.engine.ranked import Ranking
from kd_plugin.losses.engine.storage import gradient_bound, scale_for
from kd_plugin.losses.sparse import BUCKET_DIVERGENCES, Knowledge, SparseAnswer

logging.getLogger("numba").setLevel(logging.WARNING)  # at DEBUG it logs every step of the compiler

# entries per thread: PyTorch's own threads busy-wait, which slows down shorter work
MIN_ENTRIES = 2**20
LANES = 64  # running maxima: several vectors' worth
TILE_COLUMNS = 2048
MAX_BEST = 256  # insertion into the sorted best entries is linear in their number

BestAndRest = Tuple[Tensor, Tensor, Tensor]
T = TypeVar("T")


def supports(student_logits: Tensor, teacher_logits: Knowledge, objective: definition.Objective) -> bool:
    """Whether this module's `one_pass` handles these logits and the objective."""
    if numba.config.DISABLE_JIT:
        return False
    if isinstance(teacher_logits, SparseAnswer):
        return objective.divergence in BUCKET_DIVERGENCES
    return teacher_logits is None or objective.divergence in compiled_rows.DIVERGENCES


def one_pass(
    student_logits: Tensor,
    teacher_logits: Knowledge,
    target: Tensor,
    objective: definition.Objective,
    *,
    rows: Optional[Tensor] = None,
    teacher_rows: Optional[Tensor] = None,
    gradient: Optional[Tensor] = None,
    scales: Optional[Tensor] = None,
    ranked: Optional[Ranking] = None,
) -> Tensor:
    """engine.one_pass.one_pass for the cases that `supports` accepts.

    Compiled code reads and writes fp32 or float64. PyTorch converts half precision, a few cached rows at a time, which
    takes about a quarter longer than fp32 (docs/benchmarks/ways_of_the_loss.md).

    Args:
        ranked: the tokens' ranking term
    """
    student_logits = student_logits.detach()
    dtype = definition.accumulation_dtype(student_logits, teacher_logits)
    n_rows, vocab = target.numel(), student_logits.size(1)
    terms = torch.zeros(n_rows, definition.N_TERMS, dtype=dtype)
    if ranked is not None:
        terms[:, definition.RANK] = ranked.values
    rows = torch.arange(n_rows) if rows is None else rows
    teacher_rows = torch.arange(n_rows) if teacher_rows is None else teacher_rows
    dense = [x for x in (student_logits, teacher_logits, gradient) if isinstance(x, Tensor)]
    direct = all(x.dtype == dtype and x.is_contiguous() for x in dense)
    step = n_rows if direct else max(1, MIN_ENTRIES // 4 // vocab)

    def share(start: int, stop: int) -> None:
        buffers = [] if direct else [torch.empty(min(step, stop - start), vocab, dtype=dtype) for _ in range(2)]
        for first in range(start, stop, max(1, step)):
            part = slice(first, min(first + step, stop))
            of_student, of_teacher = rows[part], teacher_rows[part]
            student, teacher, slope = student_logits, teacher_logits, gradient
            everything = torch.arange(part.stop - part.start)
            if isinstance(teacher_logits, SparseAnswer):
                teacher, of_teacher = teacher_logits.chunk(part.start, part.stop), everything
            elif not direct and teacher_logits is not None:
                teacher, of_teacher = buffers[1][: len(everything)].copy_(teacher_logits[of_teacher]), everything
            if not direct:
                student, of_student = buffers[0][: len(everything)].copy_(student_logits[of_student]), everything
                slope = None if gradient is None else student
            _run(student, of_student, teacher, of_teacher, target[part], objective, slope, terms[part])
            if slope is not None and ranked is not None:
                weight = (1.0 - objective.alpha) * objective.temperature
                ranked.chunk(part.start, part.stop).add_to(slope, of_student, weight)
            if slope is not None and slope is not gradient:
                if scales is not None:
                    # a bound is free; searching for the largest entry takes longer than everything else
                    kd = terms[part, definition.KD]
                    bound = objective.alpha if teacher is None else gradient_bound(objective, kd)
                    of_rows = scale_for(torch.as_tensor(bound, dtype=dtype).expand(len(everything)))
                    slope.mul_(of_rows.unsqueeze(-1))
                    scales[rows[part]] = of_rows.to(scales.dtype)
                gradient[rows[part]] = slope.to(gradient.dtype)  # type: ignore[index,union-attr]

    threads = _threads(n_rows, vocab)
    with contextlib.nullcontext() if direct else _threads_of_torch(1 if threads > 1 else torch.get_num_threads()):
        _in_threads(share, n_rows, threads)
    return terms


def finds_best(vocab: int, k: int) -> bool:
    """Whether top_entries and top_of_product suit this k: they need vocab >= 2 k, and a large k is slow."""
    return 2 * k <= vocab and k <= MAX_BEST


def top_entries(logits: Tensor, k: int, temperature: float = 1.0) -> BestAndRest:
    """The k best entries of softmax(logits / temperature), best first, and the rest.

    Args:
        logits: (tokens, vocab) fp32 or float64 on a CPU, contiguous; vocab >= 2 k

    Returns:
        (tokens, k) int64 ids; (tokens, k) their log-probabilities; (tokens,) the log of all other entries' mass
    """
    best = _Best(logits.size(0), k, temperature, logits.dtype)
    best.add(logits, 0)
    return best.finish()


def top_of_product(head: LinearHead, features: Tensor, k: int, temperature: float = 1.0) -> BestAndRest:
    """top_entries(head(features), k, temperature), with logits that never leave the CPU's cache.

    They are computed and searched a few rows and columns at a time, which is faster than writing them all to memory.

    Args:
        features: (tokens, dimension) fp32 or float64 on a CPU; vocab >= 2 k
    """
    n_rows, vocab = features.size(0), head.weight.size(0)

    @torch.no_grad()
    def share(start: int, stop: int) -> List[BestAndRest]:
        rows = min(stop - start, max(1, MIN_ENTRIES // TILE_COLUMNS))
        columns = max(TILE_COLUMNS, MIN_ENTRIES // max(1, rows), 2 * k)
        tile = new_buffer((rows * columns,), features.dtype, features.device)
        found = []
        for part in features[start:stop].split(max(1, rows)):
            best = _Best(part.size(0), k, temperature, features.dtype)
            for first in range(0, vocab, columns):
                some = head.columns(first, first + columns)
                best.add(some(part, lambda shape, *_: tile[: math.prod(shape)].view(shape)), first)
            found.append(best.finish())
        return found

    threads = _threads(n_rows, vocab)
    with _threads_of_torch(1):  # each of our threads multiplies alone; PyTorch's busy-waiting ones would interfere
        shares = _in_threads(share, n_rows, threads)
    ids, lprobs, log_rest = (torch.cat(parts) for parts in zip(*itertools.chain(*shares)))
    return ids, lprobs, log_rest


class _Best:
    """The best entries of some rows and the mass of all others, fed with blocks of columns of the logits."""

    def __init__(self, n_rows: int, k: int, temperature: float, dtype: torch.dtype):
        self._values, self._ids = torch.empty(n_rows, k, dtype=dtype), torch.empty(n_rows, k, dtype=torch.long)
        self._rest = torch.empty(n_rows, dtype=torch.float64)
        self._temperature = temperature
        # only groups whose maximum reaches the k-th largest lane maximum are searched for best entries
        self._lanes = max(LANES, 1 << (2 * k - 1).bit_length())

    def add(self, logits: Tensor, first: int) -> None:
        """Adds contiguous columns of the logits, `first` being the first one's index; at least 2 k if first is 0."""
        (n_rows, width), lanes = logits.shape, self._lanes
        groups = lanes * max(1, min(1024 // lanes, width // (2 * lanes)))
        if width < groups:
            groups = lanes = self._ids.size(1)
        arrays = [tensor.detach().numpy() for tensor in (logits, self._values, self._ids, self._rest)]
        inverse_temperature = arrays[0].dtype.type(1.0 / self._temperature)

        def share(start: int, stop: int) -> None:
            part, *kept = (array[start:stop] for array in arrays)
            compiled_rows.top_rows(part, first, *kept, inverse_temperature, groups, lanes)

        _in_threads(share, n_rows, _threads(n_rows, width))

    def finish(self) -> BestAndRest:
        centred = (self._values - self._values[:, :1]).double() / self._temperature
        log_total = (centred.exp().sum(dim=-1) + self._rest).log()
        lprobs, log_rest = centred - log_total.unsqueeze(-1), self._rest.log() - log_total
        return self._ids, lprobs.to(self._values.dtype), log_rest.to(self._values.dtype)


def _threads(n_rows: int, vocab: int) -> int:
    """How many threads are worth starting."""
    return max(1, min(torch.get_num_threads(), n_rows * vocab // MIN_ENTRIES, n_rows))


def _in_threads(share: Callable[[int, int], T], n_rows: int, threads: int) -> List[T]:
    """Runs share(start, stop) over all rows, in parallel."""
    bounds = [n_rows * i // threads for i in range(threads + 1)]
    if threads == 1:
        return [share(0, n_rows)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(share, bounds[:-1], bounds[1:]))


@contextlib.contextmanager
def _threads_of_torch(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(
    student: Tensor,
    rows: Tensor,
    teacher: Knowledge,
    teacher_rows: Tensor,
    target: Tensor,
    objective: definition.Objective,
    gradient: Optional[Tensor],
    terms: Tensor,
) -> None:
    """Runs the compiled code on some rows."""
    vocab = student.size(1)
    alpha, temperature, eps = objective.alpha, objective.temperature, objective.label_smoothing
    eps_i = eps / (vocab - 1) if eps > 0 else 0.0
    divergence, parameter = 0, 0.0
    if teacher is not None:
        divergence = compiled_rows.DIVERGENCES.index(objective.divergence)
        parameter = float(next(iter(objective.divergence_parameters().values()), 0.0))
    real = student.numpy().dtype.type
    student_side = (student.numpy(), rows.contiguous().numpy())
    outcome = (
        target.contiguous().numpy(),
        (student if gradient is None else gradient.detach()).numpy(),
        terms.numpy(),
        gradient is not None,
        divergence,
        *(real(x) for x in (alpha, (1.0 - alpha) * temperature, 1.0 / temperature)),
        *(real(x) for x in (1.0 - eps - eps_i, eps_i, parameter)),
    )
    if isinstance(teacher, SparseAnswer):
        answer = teacher.take(teacher_rows)
        floats = (x.to(student.dtype).contiguous().numpy() for x in (answer.lprobs, answer.log_rest))
        compiled_rows.sparse_rows(*student_side, answer.ids.contiguous().numpy(), *floats, answer.sampled, *outcome)
    else:
        logits = student if teacher is None else teacher.detach()
        teacher_side = (logits.numpy(), teacher_rows.contiguous().numpy(), teacher is not None)
        compiled_rows.dense_rows(*student_side, *teacher_side, *outcome)
