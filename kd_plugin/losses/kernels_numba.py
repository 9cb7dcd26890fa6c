"""The one-pass engine on CPUs: `one_pass` compiled by Numba, where that is installed (extra "cpu").

Each thread takes its share of the rows; compiled_rows.py has the arithmetic. They are Python threads, as many as
PyTorch has, because the compiled code releases the interpreter's lock: unlike Numba's own pools they survive a fork and
get along with PyTorch's OpenMP. Compiled code is kept on disk (`__pycache__` or NUMBA_CACHE_DIR), so that only a first
run waits for it, some ten seconds.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Optional, Tuple

import numba
import torch
from torch import Tensor

from kd_plugin.losses import compiled_rows, definition
from kd_plugin.losses.sparse import BUCKET_DIVERGENCES, Knowledge, SparseAnswer

logging.getLogger("numba").setLevel(logging.WARNING)  # it tells the compiler's steps to whoever logs at DEBUG

# entries of a thread: PyTorch's own threads, which wait busily, slow down what is shorter
MIN_ENTRIES = 2**20
LANES = 64  # of running maxima: several vectors' worth


def supports(student_logits: Tensor, teacher_logits: Knowledge, objective: definition.Objective) -> bool:
    """Whether `one_pass` here takes such logits and knows the objective."""
    if numba.config.DISABLE_JIT:
        return False
    if teacher_logits is not None and (
        objective.divergence not in compiled_rows.DIVERGENCES or objective.top1_rank > 0
    ):
        return False
    if isinstance(teacher_logits, SparseAnswer):
        if objective.divergence not in BUCKET_DIVERGENCES:
            return False
        teacher_logits = None if teacher_logits.dtype == torch.float32 else teacher_logits.lprobs
    dtypes = {logits.dtype for logits in (student_logits, teacher_logits) if logits is not None}
    # half precision is left to PyTorch, which converts and computes faster than it could be converted for this
    return (dtypes == {torch.float32} or dtypes == {torch.float64}) and all(
        logits.device.type == "cpu" and logits.dim() == 2 and logits.is_contiguous()
        for logits in (student_logits, teacher_logits)
        if logits is not None
    )


def one_pass(
    student_logits: Tensor,
    teacher_logits: Knowledge,
    target: Tensor,
    objective: definition.Objective,
    *,
    rows: Optional[Tensor] = None,
    teacher_rows: Optional[Tensor] = None,
    gradient: Optional[Tensor] = None,
) -> Tensor:
    """As kd_plugin.losses.one_pass.one_pass, for what `supports` agrees to.

    gradient: contiguous too, of the student's dtype
    """
    student_logits = student_logits.detach()
    dtype = definition.accumulation_dtype(student_logits, teacher_logits)
    n_rows, vocab = target.numel(), student_logits.size(1)
    terms = torch.zeros(n_rows, definition.N_TERMS, dtype=dtype)
    if rows is None:
        rows = torch.arange(n_rows)
    if teacher_rows is None:
        teacher_rows = torch.arange(n_rows)

    def share(start: int, stop: int) -> None:
        part = slice(start, stop)
        teacher, teacher_part = teacher_logits, teacher_rows[part]
        if isinstance(teacher, SparseAnswer):
            teacher, teacher_part = teacher.chunk(start, stop), teacher_rows[: stop - start]
        _run(student_logits, rows[part], teacher, teacher_part, target[part], objective, gradient, terms[part])

    _in_threads(share, n_rows, vocab)
    return terms


def top_entries(logits: Tensor, k: int, temperature: float = 1.0) -> Tuple[Tensor, Tensor, Tensor]:
    """The k best entries of softmax(logits / temperature), best first, and the rest.

    Args:
        logits: (tokens, vocab) fp32 or float64 on a CPU, contiguous; vocab >= 2 k

    Returns:
        (tokens, k) int64 ids; (tokens, k) their log-probabilities; (tokens,) the logarithm of all others' mass
    """
    n_rows, vocab = logits.shape
    ids = torch.empty(n_rows, k, dtype=torch.long)
    lprobs, log_rest = torch.empty(n_rows, k, dtype=logits.dtype), torch.empty(n_rows, dtype=logits.dtype)
    arrays = [tensor.detach().numpy() for tensor in (logits, ids, lprobs, log_rest)]
    inverse_temperature = arrays[0].dtype.type(1.0 / temperature)
    # the best entries are looked for in the groups whose maxima are not below the k-th of as many lanes of groups
    n_lanes = max(LANES, 1 << (2 * k - 1).bit_length())
    n_groups = n_lanes * max(1, min(1024 // n_lanes, vocab // (2 * n_lanes)))
    if vocab < n_groups:
        n_groups = n_lanes = k

    def share(start: int, stop: int) -> None:
        compiled_rows.top_rows(*(array[start:stop] for array in arrays), inverse_temperature, n_groups, n_lanes)

    _in_threads(share, n_rows, vocab)
    return ids, lprobs, log_rest


def _in_threads(share: Callable[[int, int], None], n_rows: int, vocab: int) -> None:
    """share(start, stop) of all rows, as many at the same time as pay."""
    threads = max(1, min(torch.get_num_threads(), n_rows * vocab // MIN_ENTRIES, n_rows))
    bounds = [n_rows * i // threads for i in range(threads + 1)]
    if threads == 1:
        share(0, n_rows)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, bounds[:-1], bounds[1:]))


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
    """The compiled code on some rows."""
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
