"""The GPU kernel for a teacher with few entries per row."""

import triton
import triton.language as tl

from kd_plugin.losses.engine.triton.rows import (
    AGREE,
    KD,
    LOWEST,
    N_TERMS,
    argmax,
    begin,
    cross_entropy,
    divergence,
    edges,
    exp,
    in_lanes,
    inside,
    load,
    lprobs,
    merge,
    positions,
    row_scale,
    visit,
)


@triton.jit
def sparse_kernel(  # type: ignore[no-untyped-def]
    student,  # (all, vocab)
    ids,  # (tokens, ENTRIES)
    answer,  # (tokens, ENTRIES) the teacher's log-probabilities of them
    log_rest,  # (tokens,)
    target,  # from here on as in dense.row_kernel
    rows,
    gradient,
    scales,
    terms,
    ce_weight,
    kd_weight,
    inverse_temperature,
    nll_weight,
    eps_i,
    parameter,
    bound,
    VOCAB: tl.constexpr,
    STUDENT_STRIDE: tl.constexpr,
    GRADIENT_STRIDE: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    SAMPLED: tl.constexpr,
    TEMPERED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    ENTRIES: tl.constexpr,
    PADDED_ENTRIES: tl.constexpr,  # a power of two above ENTRIES: entry number ENTRIES is the bucket
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
    EDGES: tl.constexpr,
    BLOCKS: tl.constexpr,  # a power of two, of LANES * VECTOR
):
    """Sums the bucket's mass without the entries, because a small mass computed as a difference would be inexact: the
    symbols of lanes that hold an entry are read again. A lane's sum is relative to its own best, so none underflows.

    With h the slope in log p, d/d(logits / temperature) is h - p sum h for an entry and p / p_rest h_rest - p sum h for
    a symbol in the bucket.
    """
    token = tl.program_id(0).to(tl.int64)
    row = token
    if rows is not None:
        row = tl.load(rows + token).to(tl.int64)
    label = tl.load(target + token).to(tl.int32)
    END: tl.constexpr = VOCAB + (VECTOR - 1 if EDGES else 0)
    z_row, z_shift = begin(student, row, STUDENT_STRIDE, VECTOR, EDGES)
    z_label = tl.load(z_row + z_shift + label).to(tl.float32)
    origin = tl.where(z_label == -float("inf"), 0.0, z_label)
    best, first, total, tempered, z_sum, _, _, _, _ = visit(
        z_row, z_shift, None, 0, origin, inverse_temperature, VOCAB, TEMPERED, SMOOTHED, LANES, VECTOR, EDGES
    )
    of_edges = None
    if EDGES:
        at_edges, is_edge = edges(z_shift, VOCAB, VECTOR)
        of_edges = load(z_row + z_shift, at_edges, is_edge, "evict_last")
        if SMOOTHED:
            z_sum += in_lanes(tl.where(is_edge, of_edges - origin, 0.0), LANES)
    out = terms + token * N_TERMS
    top, log_total, log_tempered = merge(best, total, tempered, of_edges, inverse_temperature, TEMPERED)
    cross_entropy(out, z_label, origin, top, log_total, z_sum, nll_weight, eps_i, VOCAB, SMOOTHED)
    best_entry = argmax(z_row, z_shift, top, best, first, VOCAB, LANES, VECTOR, EDGES)
    tl.store(out + AGREE, (best_entry == tl.load(ids + token * ENTRIES)).to(tl.float32))

    entry = tl.arange(0, PADDED_ENTRIES)
    is_entry = entry < ENTRIES
    at_entries = tl.load(ids + token * ENTRIES + entry, mask=is_entry, other=-1).to(tl.int32)
    z_entries = tl.load(z_row + z_shift + at_entries, mask=is_entry, other=-float("inf")).to(tl.float32)
    t_lprobs = tl.load(answer + token * ENTRIES + entry, mask=is_entry, other=-float("inf")).to(tl.float32)
    z_lprobs = lprobs(z_entries, top, log_tempered, inverse_temperature, TEMPERED)
    p_entries = exp(z_lprobs)
    same = at_entries[:, None] == at_entries[None, :]
    earlier = entry[None, :] < entry[:, None]
    rest_top, of_rest = top, 0.0
    if SAMPLED:
        slope = tl.where(is_entry, -1.0 / ENTRIES, 0.0)
        kd, slope_total = tl.sum(tl.where(is_entry, t_lprobs - z_lprobs, 0.0), axis=0) / ENTRIES, -1.0
    else:
        lanes = tl.arange(0, LANES)
        lane = tl.where(is_entry, (z_shift + at_entries) // VECTOR % LANES, -1)
        lane_again = tl.max(((lane[:, None] == lane[None, :]) & earlier).to(tl.int32), axis=1) == 1
        column = tl.arange(0, BLOCKS * VECTOR)
        vectors = (column // VECTOR * (LANES * VECTOR))[None, :] + (lane * VECTOR)[:, None]
        at = vectors + (column % VECTOR)[None, :]
        if EDGES:
            wanted = (vectors >= z_shift) & (vectors + VECTOR <= z_shift + VOCAB)
        else:
            wanted = at < VOCAB
        wanted = wanted & (is_entry & (lane_again == 0))[:, None]
        others = tl.load(z_row + at, mask=wanted, other=-float("inf")).to(tl.float32)
        holds_entry = tl.zeros((LANES,), tl.int32)
        for i in range(ENTRIES):
            at_entry = z_shift + tl.load(ids + token * ENTRIES + i).to(tl.int32)
            others = tl.where(at == at_entry, -float("inf"), others)
            holds_entry = tl.where(lanes == at_entry // VECTOR % LANES, 1, holds_entry)
            if EDGES:
                of_edges = tl.where(z_shift + at_edges == at_entry, -float("inf"), of_edges)
        others_best = tl.maximum(tl.max(others, axis=1), LOWEST)
        others_total = tl.sum(exp((others - others_best[:, None]) * inverse_temperature), axis=1)
        lane_best = tl.where(holds_entry == 1, LOWEST, best)
        lane_total = tl.where(holds_entry == 1, 0.0, tempered if TEMPERED else total)
        rest_top = tl.maximum(tl.max(lane_best, axis=0), tl.max(others_best, axis=0))
        if EDGES:
            rest_top = tl.maximum(rest_top, tl.max(of_edges, axis=0))
        rest = tl.sum(lane_total * exp((lane_best - rest_top) * inverse_temperature), axis=0)
        rest += tl.sum(others_total * exp((others_best - rest_top) * inverse_temperature), axis=0)
        if EDGES:
            rest += tl.sum(exp((of_edges - rest_top) * inverse_temperature), axis=0)

        log_p_rest = (rest_top - top) * inverse_temperature + tl.log(rest) - log_tempered
        again = tl.max((same & earlier).to(tl.int32), axis=1) == 1  # cache.compress.unknown repeats one symbol k times
        student_side = tl.where(again, -float("inf"), z_lprobs)
        student_side = tl.where(entry == ENTRIES, log_p_rest, student_side)
        teacher_side = tl.where(entry == ENTRIES, tl.load(log_rest + token).to(tl.float32), t_lprobs)
        value, slope = divergence(student_side, teacher_side, parameter, DIVERGENCE)
        kd, slope_total = tl.sum(value, axis=0), tl.sum(slope, axis=0)
        rest_slope = tl.sum(tl.where(entry == ENTRIES, slope, 0.0), axis=0)
        of_rest = tl.where(rest == 0.0, 0.0, rest_slope / rest)
        kd = tl.where(kd < 0, 0.0, kd)  # a hair below 0 is rounding; NaN stays NaN
    tl.store(out + KD, kd)

    if gradient is not None:
        if EDGES:
            z_edges = load(z_row + z_shift, at_edges, is_edge, "evict_last")
        tl.debug_barrier()  # in place, other threads overwrite below the entries that threads have read above
        g_row, g_shift = begin(gradient, row, GRADIENT_STRIDE, VECTOR, EDGES)  # g_shift is z_shift
        if scales is not None:
            scale = row_scale(bound, kd, kd_weight, DIVERGENCE)
            tl.store(scales + row, scale)
            ce_weight *= scale
            kd_weight *= scale
        shrink = tl.exp((rest_top - top) * inverse_temperature - log_tempered)
        factor = kd_weight * (of_rest - slope_total * shrink)
        if EDGES:
            exp_edges = exp((z_edges - rest_top) * inverse_temperature)
            p_edges = exp(z_edges - top - log_total) if TEMPERED else exp_edges * shrink
            g_edges = (
                ce_weight * (p_edges - tl.where(at_edges == label, nll_weight + eps_i, eps_i)) + factor * exp_edges
            )
            tl.store(g_row + g_shift + at_edges, g_edges.to(gradient.dtype.element_ty), mask=is_edge)
        offsets = positions(LANES, VECTOR)
        for start in range(0, END, LANES * VECTOR):
            at_block = start + offsets
            own = inside(at_block, start, z_shift, VOCAB, LANES, VECTOR, EDGES)
            z = load(z_row, at_block, own, "evict_first")
            of_block = exp(
                (z - rest_top) * inverse_temperature
            )  # may be infinite at an entry, which is rewritten below
            p = exp(z - top - log_total) if TEMPERED else of_block * shrink
            g = ce_weight * (p - tl.where(at_block == z_shift + label, nll_weight + eps_i, eps_i)) + factor * of_block
            tl.store(g_row + at_block, g.to(gradient.dtype.element_ty), mask=own, eviction_policy="evict_first")
        tl.debug_barrier()  # entries are written a second time
        slopes = tl.sum(tl.where(same, slope[None, :], 0.0), axis=1)
        g = ce_weight * (exp(z_entries - top - log_total) - tl.where(at_entries == label, nll_weight + eps_i, eps_i))
        g += kd_weight * (slopes - p_entries * slope_total)
        tl.store(g_row + g_shift + at_entries, g.to(gradient.dtype.element_ty), mask=is_entry)
