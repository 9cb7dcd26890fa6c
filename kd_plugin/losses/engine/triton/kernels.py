"""The one-pass engine on GPUs: Triton kernels for `one_pass` and for scaling its gradient.

One program takes one row and passes over the vocabulary two or three times: for the statistics of both softmaxes; for
the divergence, if the gradient needs the sum of its slope; for the gradient. Later passes should find the row in the L2
cache, so that device memory sees two reads and one write. rows.py has the code that all kernels share, dense.py the
kernels for a teacher's logits, sparse.py the one for a cache's entries. The adaptive KL computes its weights in a
separate kernel, which visits the teacher's row 17 times.

Design decisions for an H100 (speed not measured; registers, spills and load widths read off the code that Triton 3.9
compiles for it):
* Lanes. A block of a row is (LANES, VECTOR) entries; VECTOR entries are one load of 16 bytes. Each lane keeps its own
  statistics, merged at the end of the row: no barriers between warps in the loops, one exponential in VECTOR + 1 spent
  on rescaling, and sums about as exact as pairwise ones.
* The largest programs possible, 16 warps with two lanes per thread, and 64 registers per thread, so that two programs
  fit on a multiprocessor (for sm_100 see `most`): at V = 32k in bf16 the active rows take 2 * 132 * 128 KB, 34 of the
  L2 cache's 50 MB.
* Edges. If the vocabulary is not a multiple of VECTOR (GPT-2's 50257; fairseq pads its own to a multiple of 8), rows
  begin and end in the middle of 16 bytes. Positions are then counted from the vector in which the row begins; whole
  vectors are moved at once, and the few entries before and after them one by one. The gradient's rows have the
  student's alignment. The teacher's may differ: they are read in their own vectors on the first pass, which waits for
  device memory, and entry by entry when they are read beside the student's.
* The vocabulary and the strides are compile-time constants: otherwise the compiler would not know that loads can be 16
  bytes wide if the vocabulary is a multiple of 8 but not of 16. The number of rows, alpha, temperature and parameters
  may change from batch to batch without recompilation; a temperature of 1 has its own kernels.
"""

import contextlib
import math
from typing import Any, ContextManager, Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kd_plugin.losses import definition
from kd_plugin.losses.divergences import COMPILED_DIVERGENCES
from kd_plugin.losses.engine.ranked import Ranking
from kd_plugin.losses.engine.storage import gradient_bound
from kd_plugin.losses.engine.triton.dense import head_weight_kernel, row_kernel
from kd_plugin.losses.engine.triton.rows import begin, edges, inside, positions
from kd_plugin.losses.engine.triton.sparse import sparse_kernel
from kd_plugin.losses.sparse import BUCKET_DIVERGENCES, Knowledge, SparseAnswer

KNOWN_DIVERGENCES = COMPILED_DIVERGENCES
KNOWN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_VOCAB = 2**30  # positions in a row are int32
MAX_ENTRIES = 127  # of a sparse answer or the ranking term: all pairs of entries are compared
MIN_LANES, MAX_LANES = 32, 1024
SCALE_BLOCK = 4096
SCALE_PROGRAMS = 2048  # few: if the factor is 1, starting is all they do


def supports(student_logits: Tensor, teacher_logits: Knowledge, objective: definition.Objective) -> bool:
    """Whether this module's `one_pass` handles these logits and the objective."""
    dense = [x for x in (student_logits, teacher_logits) if isinstance(x, Tensor)]
    if isinstance(teacher_logits, SparseAnswer):
        if objective.divergence not in BUCKET_DIVERGENCES or teacher_logits.ids.size(1) > MAX_ENTRIES:
            return False
        if teacher_logits.dtype not in KNOWN_DTYPES:
            return False
    elif teacher_logits is not None:
        if objective.divergence not in KNOWN_DIVERGENCES or 2 * objective.top1_rank > MAX_ENTRIES:
            return False
    if torch.version.hip:
        return False  # untried
    if student_logits.is_cuda and torch.cuda.get_device_capability(student_logits.device) < (8, 0):
        return False  # below Triton's minimum
    return all(
        logits.dtype in KNOWN_DTYPES and logits.dim() == 2 and logits.stride(1) == 1 and logits.size(1) <= MAX_VOCAB
        for logits in dense
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
    scales: Optional[Tensor] = None,
    ranked: Optional[Ranking] = None,
) -> Tensor:
    """engine.one_pass.one_pass for the cases that `supports` accepts. Nothing waits for the device.

    Args:
        gradient: its last dimension must be contiguous too
        ranked: the tokens' ranking term

    Returns:
        (tokens, N_TERMS) fp32
    """
    n_rows, vocab = target.numel(), student_logits.size(1)
    assert gradient is None or (gradient.shape == student_logits.shape and gradient.stride(1) == 1)
    terms = torch.zeros(n_rows, definition.N_TERMS, dtype=torch.float32, device=student_logits.device)
    if n_rows == 0:
        return terms
    sparse = teacher_logits if isinstance(teacher_logits, SparseAnswer) else None
    teacher = teacher_logits.detach() if isinstance(teacher_logits, Tensor) else None
    assert teacher is None or teacher.size(1) == vocab
    student_logits = student_logits.detach()
    rows, teacher_rows = (None if at is None else at.contiguous() for at in (rows, teacher_rows))
    alpha, temperature, eps = objective.alpha, objective.temperature, objective.label_smoothing
    eps_i = eps / (vocab - 1) if eps > 0 else 0.0
    divergence, tempered, parameter, bound = "", False, 0.0, alpha  # without a teacher, one kernel serves all
    if teacher_logits is not None:
        divergence, tempered = objective.divergence, temperature != 1.0
        parameter = float(next(iter(objective.divergence_parameters().values()), 0.0))
        bound = float(gradient_bound(objective, 0.0))  # for a divergence of 0; the kernel adds the reverse KL's value
    strides = [0 if tensor is None else tensor.stride(0) for tensor in (student_logits, teacher, gradient)]
    vector = 16 // student_logits.element_size()
    if gradient is not None:  # its rows need the student's alignment, if necessary with narrower vectors
        vector = math.gcd(vector, strides[2] - strides[0])
    has_edges = any(entries % vector for entries in (vocab, *strides))
    places = vocab + (vector - 1 if has_edges else 0)
    # at least one lane per thread: in place, an entry then has one reader, which also overwrites it
    max_lanes, registers = most(student_logits.device)
    lanes = min(max_lanes, max(MIN_LANES, triton.next_power_of_2(triton.cdiv(places, vector))))
    shape = dict(VOCAB=vocab, STUDENT_STRIDE=strides[0], LANES=lanes, VECTOR=vector, EDGES=has_edges)
    launch = dict(num_warps=max(1, lanes // 64), maxnreg=registers)
    given = (
        target.contiguous(),
        rows,
        None if gradient is None else gradient.detach(),
        None if gradient is None else scales,
        terms,
        *(alpha, (1.0 - alpha) * temperature, 1.0 / temperature, 1.0 - eps - eps_i, eps_i, parameter, bound),
    )
    how = dict(
        GRADIENT_STRIDE=strides[2], DIVERGENCE=divergence, TEMPERED=tempered, SMOOTHED=eps > 0, **shape, **launch
    )
    with _on(student_logits):
        if sparse is not None:
            entries = sparse.ids.size(1)
            sparse_kernel[(n_rows,)](
                student_logits,
                *(x.contiguous() for x in (sparse.ids, sparse.lprobs, sparse.log_rest)),
                *given,
                SAMPLED=sparse.sampled,
                ENTRIES=entries,
                PADDED_ENTRIES=triton.next_power_of_2(entries + 1),
                BLOCKS=triton.next_power_of_2(triton.cdiv(places, lanes * vector)),
                **how,
            )
            return terms
        weights = None
        if divergence == "adaptive_kl":
            assert teacher is not None
            weights = torch.empty(n_rows, dtype=torch.float32, device=terms.device)
            between = rows, teacher_rows, weights, 1.0 / temperature, parameter
            head_weight_kernel[(n_rows,)](
                student_logits, teacher, *between, TEACHER_STRIDE=strides[1], **shape, **launch
            )
        entries = 0
        if ranked is not None:
            terms[:, definition.RANK] = ranked.values
            entries = ranked.ids.size(1)
        row_kernel[(n_rows,)](
            student_logits,
            teacher,
            teacher_rows,
            weights,
            None if ranked is None else ranked.ids.contiguous(),
            None if ranked is None else ranked.slopes.float().contiguous(),
            *given,
            TEACHER_STRIDE=strides[1],
            ENTRIES=entries,
            PADDED_ENTRIES=triton.next_power_of_2(max(1, entries)),
            **how,
        )
    return terms


def most(device: torch.device) -> Tuple[int, int]:
    """The maximum numbers of lanes per program and of registers per thread.

    With 64 registers, two programs of 16 warps fit on a multiprocessor. For sm_100 the compiler needs more and would
    spill; with 80, three programs of 8 warps fit.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 10:
        return MAX_LANES // 2, 80
    return MAX_LANES, 64


def scale_(tensor: Tensor, factor: Tensor, scales: Optional[Tensor] = None) -> None:
    """tensor *= factor, a 0-dim tensor on the same device, in fp32; a factor of 1 reads and writes no entry.

    scales: (rows,) fp32 by which to divide each row of a two-dimensional tensor
    """
    if tensor.dtype not in KNOWN_DTYPES or not (
        tensor.is_contiguous() or (tensor.dim() == 2 and tensor.stride(1) == 1)
    ):
        factor = factor if scales is None else (factor / scales).unsqueeze(-1)
        tensor.copy_(tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * factor)
    elif tensor.numel() > 0:
        entries = tensor.detach() if tensor.dim() == 2 else tensor.detach().view(-1, *tensor.shape[-1:] or (1,))
        n_rows, width = entries.shape
        vector = 16 // tensor.element_size()
        shape = dict(WIDTH=width, STRIDE=entries.stride(0), LANES=SCALE_BLOCK // vector, VECTOR=vector)
        has_edges = width % vector != 0 or entries.stride(0) % vector != 0
        with _on(tensor):
            _scale_kernel[(min(n_rows, SCALE_PROGRAMS),)](
                entries, factor.detach(), scales, n_rows, **shape, EDGES=has_edges, num_warps=8
            )


def _on(tensor: Tensor) -> ContextManager[Any]:
    """Makes the tensor's device current, because Triton launches on the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@triton.jit(do_not_specialize=["n_rows"])
def _scale_kernel(  # type: ignore[no-untyped-def]
    tensor,
    factor,
    scales,
    n_rows,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    EDGES: tl.constexpr,
):
    END: tl.constexpr = WIDTH + (VECTOR - 1 if EDGES else 0)
    offsets = positions(LANES, VECTOR)
    of_all = tl.load(factor).to(tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), n_rows, tl.num_programs(0)):
        by = of_all
        if scales is not None:
            by = of_all / tl.load(scales + row)
        if by != 1.0:
            entries, shift = begin(tensor, row, STRIDE, VECTOR, EDGES)
            for start in range(0, END, LANES * VECTOR):
                at = start + offsets
                own = inside(at, start, shift, WIDTH, LANES, VECTOR, EDGES)
                values = tl.load(entries + at, mask=own).to(tl.float32) * by
                tl.store(entries + at, values.to(tensor.dtype.element_ty), mask=own)
            if EDGES:
                at_edges, is_edge = edges(shift, WIDTH, VECTOR)
                of_edges = tl.load(entries + shift + at_edges, mask=is_edge).to(tl.float32) * by
                tl.debug_barrier()  # many threads read each entry, and one of them overwrites it
                tl.store(entries + shift + at_edges, of_edges.to(tensor.dtype.element_ty), mask=is_edge)
