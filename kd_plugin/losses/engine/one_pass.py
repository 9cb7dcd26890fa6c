"""The one-pass engine: every term of the loss, and its gradient, from a single visit to each row of logits.

It computes the gradient in the forward pass, in chunks of rows that stay in the cache, and writes it where the caller
wants it: over the student's logits, or into a buffer. It allocates nothing of size (tokens, vocab).
"""

import math
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from kd_plugin.losses.definition import N_TERMS, Objective, accumulation_dtype
from kd_plugin.losses.engine.memory import ChunkBuffers
from kd_plugin.losses.engine.one_chunk import Chunk, Student, one_chunk
from kd_plugin.losses.engine.storage import bound_is_known, gradient_bound, scale_for, scale_of_all
from kd_plugin.losses.sparse import Knowledge, SparseAnswer

# bytes of a chunk's working buffer; four to six are in use at once. Measured: on a CPU they should fit into its caches,
# on a GPU (without Triton) larger chunks save launches of small operations
CHUNK_BYTES = {"cpu": 1536 * 1024, "cuda": 256 * 1024 * 1024}


def one_pass(
    student_logits: Tensor,
    teacher_logits: Knowledge,
    target: Tensor,
    objective: Objective,
    *,
    rows: Optional[Tensor] = None,
    teacher_rows: Optional[Tensor] = None,
    gradient: Optional[Tensor] = None,
    scales: Optional[Tensor] = None,
) -> Tensor:
    """The terms of some rows, and the gradient of their summed loss.

    Args:
        student_logits: (all, vocab)
        teacher_logits: (any, vocab); a SparseAnswer for the tokens; or None: the rows are not distilled, and their KD
            and RANK are 0
        target: (tokens,)
        rows: (tokens,) ascending positions in student_logits; None: all of them
        teacher_rows: (tokens,) ascending positions in teacher_logits; None: all of them
        gradient: (all, vocab) receives d loss / d logits in `rows` and stays unchanged elsewhere; may be student_logits
            itself
        scales: (all,) fp32 receives in `rows` the factor that each row of an fp16 gradient is multiplied by; None: 1

    Returns:
        (tokens, N_TERMS) fp32, or float64 if an input is float64
    """
    student_logits = student_logits.detach()
    dtype = accumulation_dtype(student_logits, teacher_logits)
    n_rows, vocab = target.numel(), student_logits.size(-1)
    chunk_rows = min(rows_per_chunk(vocab, dtype, target.device), max(n_rows, 1))
    memory = ChunkBuffers((chunk_rows, vocab), dtype, target.device)
    same_scale = None if scales is None else scale_of_all(objective, teacher_logits is not None)
    chunks = []
    for start in range(0, n_rows, chunk_rows):
        stop = min(start + chunk_rows, n_rows)
        student, place = _take(student_logits, rows, start, stop)
        if isinstance(teacher_logits, SparseAnswer):
            teacher: Knowledge = teacher_logits.chunk(start, stop)
        else:
            teacher = None if teacher_logits is None else _take(teacher_logits, teacher_rows, start, stop)[0]
        memory.start(stop - start)
        direct = gradient is not None and place is not None and gradient.dtype == dtype
        work = gradient[place] if direct else memory.take()  # type: ignore[index]
        chunks.append(one_chunk(student, teacher, target[start:stop], objective, work, gradient is not None, memory))
        if gradient is not None and scales is not None:
            scale = same_scale if same_scale is not None else _scale(chunks[-1], objective, work)
            work.mul_(scale)
            where = slice(start, stop) if rows is None else rows[start:stop]
            scales[where] = scale if same_scale is not None else scale.squeeze(-1)  # type: ignore[union-attr]
        if gradient is not None and not direct:
            if place is not None:
                gradient[place] = work
            else:
                assert rows is not None
                gradient.index_copy_(0, rows[start:stop], work.to(gradient.dtype))
    return _terms(chunks, objective, vocab, empty=student_logits.new_zeros(0, N_TERMS, dtype=dtype))


def _scale(chunk: Chunk, objective: Objective, gradient: Tensor) -> Tensor:
    """(rows, 1) factors for a chunk's gradient before it is stored in fp16."""
    _, distilled = chunk
    if distilled is not None and bound_is_known(objective):
        bound = gradient_bound(objective, distilled.kd)
        assert isinstance(bound, Tensor)
        return scale_for(bound)
    return scale_for(torch.linalg.vector_norm(gradient, ord=math.inf, dim=-1, keepdim=True))


def rows_per_chunk(vocab: int, dtype: torch.dtype, device: torch.device) -> int:
    size = 8 if dtype == torch.float64 else 4
    return max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (vocab * size))


def _take(logits: Tensor, rows: Optional[Tensor], start: int, stop: int) -> Tuple[Tensor, Optional[slice]]:
    """Some of the rows, and their slice if they are contiguous; then nothing is copied."""
    if rows is None:
        return logits[start:stop], slice(start, stop)
    first, last = int(rows[start]), int(rows[stop - 1])
    if last - first == stop - start - 1:
        return logits[first : last + 1], slice(first, last + 1)
    return logits.index_select(0, rows[start:stop]), None


def _terms(chunks: List[Chunk], objective: Objective, vocab: int, empty: Tensor) -> Tensor:
    """(tokens, N_TERMS) from the chunks' results."""
    if not chunks:
        return empty
    student = Student(*(torch.cat(column) for column in zip(*(student for student, _ in chunks))))
    nll = student.total.log() - student.centred_at_target
    ce, eps = nll, objective.label_smoothing
    if eps > 0:
        eps_i = eps / (vocab - 1)
        ce = (1.0 - eps - eps_i) * nll + eps_i * (vocab * student.total.log() - student.centred_sum)
    distilled = [distilled for _, distilled in chunks if distilled is not None]
    if not distilled:
        return torch.cat([ce, nll, nll.new_zeros(nll.size(0), N_TERMS - 2)], dim=-1)
    return torch.cat([ce, nll, *(torch.cat(column).to(nll.dtype) for column in zip(*distilled))], dim=-1)
