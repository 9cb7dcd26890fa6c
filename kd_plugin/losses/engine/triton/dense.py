"""The GPU kernels for a teacher with logits, or for cross-entropy alone."""

import triton
import triton.language as tl

from kd_plugin.losses.engine.triton.rows import (
    AGREE,
    KD,
    LOWEST,
    N_TERMS,
    RANK,
    TEACHER_NLL,
    argmax,
    begin,
    cross_entropy,
    divergence,
    edges,
    exp,
    extend,
    in_lanes,
    inside,
    load,
    load_beside,
    lprobs,
    merge,
    positions,
    row_scale,
    visit,
)


@triton.jit
def row_kernel(  # type: ignore[no-untyped-def]
    student,  # (all, vocab)
    teacher,  # (any, vocab) or None
    teacher_rows,  # (tokens,) or None
    weights,  # (tokens,) fp32, replacing the divergence's parameter, or None
    ids,  # (tokens, ENTRIES) the entries where the ranking term has slopes, or None
    slopes,  # (tokens, ENTRIES) fp32
    target,  # (tokens,)
    rows,  # (tokens,) or None
    gradient,  # (all, vocab) or None; may be the student
    scales,  # (all,) fp32 or None
    terms,  # (tokens, N_TERMS), zeros except for the ranking term
    ce_weight,  # alpha
    kd_weight,  # (1 - alpha) temperature
    inverse_temperature,
    nll_weight,  # 1 - eps - eps_i
    eps_i,
    parameter,  # of the divergence
    bound,  # of the gradient's entries, without what the reverse KL adds to it
    VOCAB: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    TEACHER_STRIDE: tl.constexpr,
    GRADIENT_STRIDE: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    TEMPERED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    ENTRIES: tl.constexpr,
    PADDED_ENTRIES: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    EDGES: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row, teacher_row = token, token
    if rows is not None:
        row = tl.load(rows + token).to(tl.int64)
    if teacher_rows is not None:
        teacher_row = tl.load(teacher_rows + token).to(tl.int64)
    label = tl.load(target + token).to(tl.int32)
    if weights is not None:
        parameter = tl.load(weights + token)
    END: tl.constexpr = VOCAB + (VECTOR - 1 if EDGES else 0)
    offsets, zero = positions(LANES, VECTOR), tl.zeros((LANES,), tl.float32)

    z_row, z_shift = begin(student, row, STUDENT_STRIDE, VECTOR, EDGES)
    z_label = tl.load(z_row + z_shift + label).to(tl.float32)
    origin = tl.where(z_label == -float("inf"), 0.0, z_label)
    t_row, t_shift, apart = teacher, 0, 0
    if teacher is not None:
        t_row, t_shift = begin(teacher, teacher_row, TEACHER_STRIDE, VECTOR, EDGES)
        apart = t_shift - z_shift
    z_best, z_first, z_total, z_tempered, z_sum, t_best, t_first, t_total, t_tempered = visit(
        z_row, z_shift, t_row, t_shift, origin, inverse_temperature, VOCAB, TEMPERED, SMOOTHED, LANES, VECTOR, EDGES
    )
    at_edges, z_edges, t_edges = None, None, None
    if EDGES:
        at_edges, is_edge = edges(z_shift, VOCAB, VECTOR)
        z_edges = load(z_row + z_shift, at_edges, is_edge, "evict_last")
        if SMOOTHED:
            z_sum += in_lanes(tl.where(is_edge, z_edges - origin, 0.0), LANES)
    out = terms + token * N_TERMS
    z_top, z_log, z_log_tempered = merge(z_best, z_total, z_tempered, z_edges, inverse_temperature, TEMPERED)
    cross_entropy(out, z_label, origin, z_top, z_log, z_sum, nll_weight, eps_i, VOCAB, SMOOTHED)

    kd, slope_sum = zero, -1.0  # the forward KL's slope is -q; its value is summed along with the gradient
    if teacher is not None:
        if EDGES:
            at_own_edges, is_own_edge = edges(t_shift, VOCAB, VECTOR)
            t_edges = load(t_row + t_shift, at_own_edges, is_own_edge, "evict_last")
        t_top, t_log, t_log_tempered = merge(t_best, t_total, t_tempered, t_edges, inverse_temperature, TEMPERED)
        tl.store(out + TEACHER_NLL, t_log - (tl.load(t_row + t_shift + label).to(tl.float32) - t_top))
        z_argmax = argmax(z_row, z_shift, z_top, z_best, z_first, VOCAB, LANES, VECTOR, EDGES)
        t_argmax = argmax(t_row, t_shift, t_top, t_best, t_first, VOCAB, LANES, VECTOR, EDGES)
        tl.store(out + AGREE, (z_argmax == t_argmax).to(tl.float32))
        if gradient is None or DIVERGENCE != "forward_kl":
            h = zero
            for start in range(0, END, LANES * VECTOR):
                at = start + offsets
                own = inside(at, start, z_shift, VOCAB, LANES, VECTOR, EDGES)
                t = load_beside(t_row, at, apart, own, EDGES, "evict_last")
                z = load(z_row, at, own, "evict_last")
                z_lprobs = lprobs(z, z_top, z_log_tempered, inverse_temperature, TEMPERED)
                t_lprobs = lprobs(t, t_top, t_log_tempered, inverse_temperature, TEMPERED)
                value, slope = divergence(z_lprobs, t_lprobs, parameter, DIVERGENCE)
                kd += tl.sum(value, axis=1)
                h += tl.sum(slope, axis=1)
            if EDGES:
                z_edges = load(z_row + z_shift, at_edges, is_edge, "evict_last")
                t_edges = load(t_row + t_shift, at_edges, is_edge, "evict_last")
                z_edges = lprobs(z_edges, z_top, z_log_tempered, inverse_temperature, TEMPERED)
                t_edges = lprobs(t_edges, t_top, t_log_tempered, inverse_temperature, TEMPERED)
                kd_edges, h_edges = divergence(z_edges, t_edges, parameter, DIVERGENCE)
                kd += in_lanes(kd_edges, LANES)
                h += in_lanes(h_edges, LANES)
            slope_sum = tl.sum(h, axis=0)

    slope_total = slope_sum
    if ids is not None:  # the ranking term is the sum of its slopes
        slope_total += tl.load(out + RANK)
        entry = tl.arange(0, PADDED_ENTRIES)
        at_entries = tl.load(ids + token * ENTRIES + entry, mask=entry < ENTRIES, other=0).to(tl.int32)
        z_entries = tl.load(z_row + z_shift + at_entries).to(tl.float32)
        t_entries = tl.load(t_row + t_shift + at_entries).to(tl.float32)
    if gradient is not None:
        if EDGES:
            z_edges = load(z_row + z_shift, at_edges, is_edge, "evict_last")
            t_edges = None
            if teacher is not None:
                t_edges = load(t_row + t_shift, at_edges, is_edge, "evict_last")
        tl.debug_barrier()  # in place, other threads overwrite below the entries that threads have read above
        g_row, g_shift = begin(gradient, row, GRADIENT_STRIDE, VECTOR, EDGES)  # g_shift is z_shift
        if scales is not None:
            scale = row_scale(bound, tl.sum(kd, axis=0), kd_weight, DIVERGENCE)
            tl.store(scales + row, scale)
            ce_weight *= scale
            kd_weight *= scale
        if EDGES:
            p_edges = exp(z_edges - z_top - z_log)
            g_edges = ce_weight * (p_edges - tl.where(at_edges == label, nll_weight + eps_i, eps_i))
            z_edges = lprobs(z_edges, z_top, z_log_tempered, inverse_temperature, TEMPERED)
            if teacher is not None:
                t_edges = lprobs(t_edges, t_top, t_log_tempered, inverse_temperature, TEMPERED)
                kd_edges, h_edges = divergence(z_edges, t_edges, parameter, DIVERGENCE)
                g_edges += kd_weight * (h_edges - exp(z_edges) * slope_total)
                if DIVERGENCE == "forward_kl":
                    kd += in_lanes(kd_edges, LANES)
            tl.store(g_row + g_shift + at_edges, g_edges.to(gradient.dtype.element_ty), mask=is_edge)
        for start in range(0, END, LANES * VECTOR):
            at = start + offsets
            own = inside(at, start, z_shift, VOCAB, LANES, VECTOR, EDGES)
            if EDGES and teacher is not None:  # load_beside branches: load first, to hold fewer registers across it
                t = load_beside(t_row, at, apart, own, EDGES, "evict_first")
            z = load(z_row, at, own, "evict_first")
            z_lprobs = lprobs(z, z_top, z_log_tempered, inverse_temperature, TEMPERED)
            p_tempered = exp(z_lprobs)
            p = exp(z - z_top - z_log) if TEMPERED else p_tempered
            g = ce_weight * (p - tl.where(at == z_shift + label, nll_weight + eps_i, eps_i))
            if teacher is not None:
                if not EDGES:
                    t = load(t_row, at, own, "evict_first")
                t_lprobs = lprobs(t, t_top, t_log_tempered, inverse_temperature, TEMPERED)
                value, slope = divergence(z_lprobs, t_lprobs, parameter, DIVERGENCE)
                g += kd_weight * (slope - p_tempered * slope_total)
                if DIVERGENCE == "forward_kl":
                    kd += tl.sum(value, axis=1)
            # no cache is large enough to keep the gradient until its next reader
            tl.store(g_row + at, g.to(gradient.dtype.element_ty), mask=own, eviction_policy="evict_first")
        if ids is not None:
            tl.debug_barrier()  # these entries are written a second time
            p_entries = exp(z_entries - z_top - z_log)
            g_entries = ce_weight * (p_entries - tl.where(at_entries == label, nll_weight + eps_i, eps_i))
            z_entries = lprobs(z_entries, z_top, z_log_tempered, inverse_temperature, TEMPERED)
            t_entries = lprobs(t_entries, t_top, t_log_tempered, inverse_temperature, TEMPERED)
            kd_entries, h_entries = divergence(z_entries, t_entries, parameter, DIVERGENCE)
            h_entries += tl.load(slopes + token * ENTRIES + entry, mask=entry < ENTRIES, other=0.0)
            g_entries += kd_weight * (h_entries - exp(z_entries) * slope_total)
            tl.store(g_row + g_shift + at_entries, g_entries.to(gradient.dtype.element_ty), mask=entry < ENTRIES)

    if teacher is not None:
        kd_row = tl.sum(kd, axis=0)
        tl.store(out + KD, tl.where(kd_row < 0, 0.0, kd_row))  # a hair below 0 is rounding; NaN stays NaN


@triton.jit
def head_weight_kernel(  # type: ignore[no-untyped-def]
    student,  # (all, vocab)
    teacher,  # (any, vocab)
    rows,  # (tokens,) or None
    teacher_rows,  # (tokens,) or None
    weights,  # (tokens,)
    inverse_temperature,
    adaptive_mu,
    VOCAB: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    TEACHER_STRIDE: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    EDGES: tl.constexpr,
):
    """divergences.head_weight without sorting: finds the head's last entry bit by bit, two bits in each of 15 visits to
    the teacher's row."""
    token = tl.program_id(0).to(tl.int64)
    row, teacher_row = token, token
    if rows is not None:
        row = tl.load(rows + token).to(tl.int64)
    if teacher_rows is not None:
        teacher_row = tl.load(teacher_rows + token).to(tl.int64)
    END: tl.constexpr = VOCAB + (VECTOR - 1 if EDGES else 0)
    offsets = positions(LANES, VECTOR)
    z_row, z_shift = begin(student, row, STUDENT_STRIDE, VECTOR, EDGES)
    t_row, t_shift = begin(teacher, teacher_row, TEACHER_STRIDE, VECTOR, EDGES)
    zero, no_index = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.int32)
    z_best, z_total, t_best, t_total = zero + LOWEST, zero, zero + LOWEST, zero
    first, unused = no_index, zero
    for start in range(0, END, LANES * VECTOR):
        at = start + offsets
        own = inside(at, start, z_shift, VOCAB, LANES, VECTOR, EDGES)
        t_own = own
        if EDGES:
            t_own = inside(at, start, t_shift, VOCAB, LANES, VECTOR, EDGES)
        z = load(z_row, at, own, "evict_last") * inverse_temperature
        t = load(t_row, at, t_own, "evict_last") * inverse_temperature
        z_best, first, z_total, unused = extend(z, start, z_best, first, z_total, unused, 1.0, False)
        t_best, first, t_total, unused = extend(t, start, t_best, first, t_total, unused, 1.0, False)
    z_edges, t_edges = None, None
    if EDGES:
        at_edges, is_edge = edges(z_shift, VOCAB, VECTOR)
        at_own_edges, is_own_edge = edges(t_shift, VOCAB, VECTOR)
        z_edges = load(z_row + z_shift, at_edges, is_edge, "evict_last") * inverse_temperature
        t_edges = load(t_row + t_shift, at_own_edges, is_own_edge, "evict_last") * inverse_temperature
    z_top, z_log, unused_log = merge(z_best, z_total, zero, z_edges, 1.0, False)
    t_top, t_log, unused_log = merge(t_best, t_total, zero, t_edges, 1.0, False)

    if EDGES:
        of_edges = exp(t_edges - t_top)
    # exponentials >= `fits` have a mass of at most mu, those >= `lower` have more: at most 4 ** 15 numbers lie between
    limit = adaptive_mu * tl.exp(t_log)
    lower, fits = tl.full((), 0, tl.int32), tl.full((), 0x3F800001, tl.int32)  # fits: the next float above 1
    above = tl.full((), 0.0, tl.float32)
    for _ in range(15):
        step = (fits - lower + 3) // 4
        a, b, c = lower + step, tl.minimum(lower + 2 * step, fits), tl.minimum(lower + 3 * step, fits)
        from_a, from_b, from_c = zero, zero, zero
        if EDGES:
            from_a += in_lanes(tl.where(of_edges >= a.to(tl.float32, bitcast=True), of_edges, 0.0), LANES)
            from_b += in_lanes(tl.where(of_edges >= b.to(tl.float32, bitcast=True), of_edges, 0.0), LANES)
            from_c += in_lanes(tl.where(of_edges >= c.to(tl.float32, bitcast=True), of_edges, 0.0), LANES)
        for start in range(0, END, LANES * VECTOR):
            at = start + offsets
            t_own = inside(at, start, t_shift, VOCAB, LANES, VECTOR, EDGES)
            entries = exp(load(t_row, at, t_own, "evict_last") * inverse_temperature - t_top)
            from_a += tl.sum(tl.where(entries >= a.to(tl.float32, bitcast=True), entries, 0.0), axis=1)
            from_b += tl.sum(tl.where(entries >= b.to(tl.float32, bitcast=True), entries, 0.0), axis=1)
            from_c += tl.sum(tl.where(entries >= c.to(tl.float32, bitcast=True), entries, 0.0), axis=1)
        of_a, of_b, of_c = tl.sum(from_a, axis=0), tl.sum(from_b, axis=0), tl.sum(from_c, axis=0)
        above = tl.where(of_a <= limit, of_a, tl.where(of_b <= limit, of_b, tl.where(of_c <= limit, of_c, above)))
        fits = tl.where(of_a <= limit, a, tl.where(of_b <= limit, b, tl.where(of_c <= limit, c, fits)))
        lower = tl.where(of_c > limit, c, tl.where(of_b > limit, b, tl.where(of_a > limit, a, lower)))
    last, after = lower.to(tl.float32, bitcast=True), fits.to(tl.float32, bitcast=True)
    # entries equal to the last one all belong to the head if one of them still fits; the best one always belongs to it
    threshold = tl.where((above == 0.0) | (above + last <= limit), last, after)
    head, gaps = zero, zero
    if EDGES:
        t_edges = exp(load(t_row + t_shift, at_edges, is_edge, "evict_last") * inverse_temperature - t_top)
        gap_edges = tl.abs(t_edges * tl.exp(-t_log) - exp(z_edges - z_top - z_log))
        gaps += in_lanes(gap_edges, LANES)
        head += in_lanes(tl.where(t_edges >= threshold, gap_edges, 0.0), LANES)
    for start in range(0, END, LANES * VECTOR):
        at = start + offsets
        own = inside(at, start, z_shift, VOCAB, LANES, VECTOR, EDGES)
        z = load(z_row, at, own, "evict_last") * inverse_temperature
        t = load_beside(t_row, at, t_shift - z_shift, own, EDGES, "evict_last")
        entries = exp(t * inverse_temperature - t_top)
        gap = tl.abs(entries * tl.exp(-t_log) - exp(z - z_top - z_log))
        gaps += tl.sum(gap, axis=1)
        head += tl.sum(tl.where(entries >= threshold, gap, 0.0), axis=1)
    total = tl.sum(gaps, axis=0)
    # equal distributions have no gap: both KLs are 0, and any weight will do
    tl.store(weights + token, tl.where(total == 0.0, 0.5, tl.sum(head, axis=0) / total))
