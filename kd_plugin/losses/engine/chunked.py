"""Terms and gradient by autograd of the definition, a few rows at a time: what runs where no kernel is compiled.

That is on CPUs without Numba, on GPUs without Triton, and for divergences that the kernels do not know. On a CPU it
takes 3 to 11 times as long as the kernels (adaptive_kl, which it sorts for, 20 times). Forms differentiated by hand in
PyTorch took 2 to 5 times as long as they (V = 8k and 32k, fp32, bf16 and fp16, one thread): too little, for too few, to
keep every divergence once more.
torch.compile gained nothing here, at some ten seconds a divergence. docs/benchmarks/ways_of_the_loss.md has figures.
"""

from typing import Optional

import torch
from torch import Tensor

from kd_plugin.losses.definition import KD, N_TERMS, Objective, accumulation_dtype, row_terms, terms_by_definition
from kd_plugin.losses.engine.storage import scaled_
from kd_plugin.losses.sparse import Knowledge, SparseAnswer

# bytes of one of autograd's some ten buffers: on a CPU they should stay in its caches, on a GPU the launches of many
# small operations count
CHUNK_BYTES = {"cpu": 1024 * 1024, "cuda": 64 * 1024 * 1024}


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
    """Terms of some rows, and the gradient of the summed loss of them.

    Args:
        student_logits: (all, vocab)
        teacher_logits: (any, vocab); a SparseAnswer for each of the tokens; or None: these rows are not distilled,
            their KD and RANK are 0
        target: (tokens,)
        rows: (tokens,) ascending positions in student_logits; None: all of them
        teacher_rows: (tokens,) ascending positions in teacher_logits; None: all of them
        gradient: (all, vocab) receives d loss / d logits in `rows` and is left alone elsewhere; may be student_logits
            itself
        scales: (all,) fp32 receives in `rows` what each row of the gradient is multiplied by, for fp16; None: 1

    Returns:
        (tokens, N_TERMS) fp32, or float64 where an input is
    """
    student_logits = student_logits.detach()
    dtype = accumulation_dtype(student_logits, teacher_logits)
    step = rows_per_chunk(student_logits.size(-1), dtype, target.device)
    terms = target.new_zeros(target.numel(), N_TERMS, dtype=dtype)
    for start in range(0, target.numel(), step):
        part = slice(start, min(start + step, target.numel()))
        at = part if rows is None else rows[part]
        teacher: Knowledge = None
        if isinstance(teacher_logits, SparseAnswer):
            teacher = teacher_logits.chunk(part.start, part.stop)
        elif teacher_logits is not None:
            teacher = teacher_logits[part if teacher_rows is None else teacher_rows[part]]
        if gradient is None:
            terms[part] = row_terms(student_logits[at], teacher, target[part], objective)
            continue
        terms[part], slope = terms_by_definition(student_logits[at], teacher, target[part], objective)
        if scales is not None:
            scales[at] = scaled_(slope)
        gradient[at] = slope.to(gradient.dtype)
    if not (isinstance(teacher_logits, SparseAnswer) and teacher_logits.sampled):
        terms[:, KD].clamp_(min=0)  # a hair below 0 is rounding; NaN stays NaN
    return terms


def rows_per_chunk(vocab: int, dtype: torch.dtype, device: torch.device) -> int:
    size = 8 if dtype == torch.float64 else 4
    return max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (vocab * size))
