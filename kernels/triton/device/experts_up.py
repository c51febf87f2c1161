"""Experts kernel, first launch of a layer: gate, up and SwiGLU of routed and shared experts.

Legend: k experts per token (TOPK), pair p = token * k + choice, D distinct experts. A unit is a row tile of an expert,
gate and up side by side (`row_tile`); the turns of all units stand in line and every program takes an equal share
(`work_split`), first of the shared expert, whose format may differ, then of the distinct experts. It finds an expert's
weights through `slots`, its tokens through `members`, both written by `moegauge.kernels.triton.device.route`; nothing
is sorted or aligned.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.normalised import inverse_root, load_squares
from moegauge.kernels.triton.device.partial_sums import add_parts, arrive, bias_rows, first_bias, silu, split_sides
from moegauge.kernels.triton.device.row_tile import add_warps, beside, quads, rows_of_tile, wait_for_producers
from moegauge.kernels.triton.device.work_split import owner_of, parts_of, share_of


@triton.jit
def pairs_of(members, j, q, lane, count, batch, ROUTED: tl.constexpr, TOPK: tl.constexpr, BATCH1: tl.constexpr):
    """(token, choice, pair) of inputs q + lane of the j-th distinct expert, or of the shared one, whose pairs come
    behind all others. A single token's experts are all distinct, in the order of its choices: nothing is looked up."""
    if not ROUTED:
        token = q + lane
        choice = lane * 0
        pair = batch * TOPK + token
    elif BATCH1:
        token = lane * 0
        choice = lane * 0 + j
        pair = choice
    else:
        pair = tl.load(members + j * batch + q + lane, mask=q + lane < count, other=0)
        token = pair // TOPK
        choice = pair % TOPK
    return token, choice, pair


@triton.jit
def write_up(sums, gate_added, up_added, out, shadow, target, there, GATED: tl.constexpr, SHADOW: tl.constexpr):
    """SwiGLU of sums [sides * rows, NT] and biases [rows], written to `target` [rows, NT] of `out`."""
    if GATED:
        gate, up = split_sides(sums)
        value = silu(gate + gate_added[:, None]) * (up + up_added[:, None])
    else:
        value = silu(sums + up_added[:, None])
    tl.store(out + target, value, mask=there)
    if SHADOW:
        tl.store(shadow + target, value.to(tl.bfloat16), mask=there)


@triton.jit
def up_units(
    w_pool, s_pool, t_pool, x, squares, out, shadow, part, counters, gate_bias, up_bias, slots, counts, members,
    gate_w, gate_s, gate_t, up_w, up_s, up_t, w_stride, s_stride, t_stride, bias_stride,
    found, rows, tiles, height, batch, x_stride8, out_stride, gate_length, up_length, x_width,
    FORMAT: tl.constexpr, ROUTED: tl.constexpr, TOPK: tl.constexpr, NT: tl.constexpr, FEW: tl.constexpr,
    UNROLL: tl.constexpr, ACROSS: tl.constexpr, TILES: tl.constexpr, RAGGED: tl.constexpr, QUAD: tl.constexpr,
    ASM: tl.constexpr, HELD: tl.constexpr, WAITS: tl.constexpr, GATED: tl.constexpr, SHADOW: tl.constexpr,
    TILES2: tl.constexpr,
):  # fmt: skip
    """This program's share of the units of `found` experts, or of the shared expert without ROUTED.

    out: where the first choice's columns begin. part: [parts, pairs + tokens, sides * height]. HELD: the kernel before
    this one is waited for once the program knows its share, which takes several divisions. WAITS: it may still use the
    scratch, so it is waited for before a part is stored.
    """
    SIDES: tl.constexpr = 2 if GATED else 1
    BATCH1: tl.constexpr = FEW == 1
    grid = tl.num_programs(0)
    me = tl.program_id(0)
    token, k = quads(NT)
    lane = tl.arange(0, NT)
    few = tl.arange(0, FEW)
    i = tl.arange(0, 16 * SIDES)
    high = rows // 16
    length = tl.cdiv(tiles, TILES * ACROSS)
    total = found * high * length
    stride = batch * (TOPK + 1) * SIDES * height
    begin, end = share_of(me, grid, total)
    start = begin // length
    stop = tl.cdiv(end, length)
    j = start // high
    row_tile = start - j * high
    if HELD:
        wait_for_producers()
    following = tl.load(slots + tl.minimum(j, found - 1)) if ROUTED else 0
    for unit in range(start, stop):
        first = tl.maximum(begin - unit * length, 0)
        last = tl.minimum(end - unit * length, length)
        slot = tl.cast(following, tl.int64)
        at_end = row_tile + 1 == high
        next_j = tl.where(at_end, j + 1, j)
        row = row_tile * 16 + tl.arange(0, 16)
        upper = beside(ACROSS) == SIDES - 1
        w = tl.where(upper, up_w, gate_w).to(tl.int64)
        s = tl.where(upper, up_s, gate_s).to(tl.int64)
        t = tl.where(upper, up_t, gate_t).to(tl.int64)
        count = batch
        if ROUTED:
            following = tl.load(slots + tl.minimum(next_j, found - 1))
            count = 1 if BATCH1 else tl.load(counts + j)
            w += slot * w_stride
            s += slot * s_stride
            t += slot * t_stride
            gate_first = first_bias(gate_bias + slot * bias_stride, gate_length, row)
            up_first = first_bias(up_bias + slot * bias_stride, up_length, row)
        place = i // 16 * height + row_tile * 16 + i % 16
        roots = load_squares(squares, x_width, TILES2)
        gate_added = tl.zeros((16,), tl.float32)
        up_added = tl.zeros((16,), tl.float32)
        for q in range(0, count, NT):
            source, _, _ = pairs_of(members, j, q, token, count, batch, ROUTED, TOPK, BATCH1)
            acc = rows_of_tile(
                w_pool + w * 64, s_pool + s * 64, t_pool + t * 64, x + source * (x_stride8 * 8) + k,
                q + token < count, beside(ACROSS) * 0 + row_tile, first, last, tiles,
                FORMAT, NT, ACROSS, TILES, RAGGED, QUAD, ASM, False,
            )  # fmt: skip
            if ROUTED:
                gate_added = bias_rows(gate_first, gate_bias + slot * bias_stride, gate_length, row, rows)
                up_added = bias_rows(up_first, up_bias + slot * bias_stride, up_length, row, rows)
            sums = add_warps(acc, ACROSS)
            to, choice, pair = pairs_of(members, j, q, lane, count, batch, ROUTED, TOPK, BATCH1)
            if last - first == length:
                if TILES2 > 0:
                    sums *= inverse_root(roots, x_width)
                target = (to * out_stride + choice * rows)[None, :] + row[:, None]
                there = tl.broadcast_to((q + lane < count)[None, :], target.shape)
                write_up(sums, gate_added, up_added, out, shadow, target, there, GATED, SHADOW)
            else:
                if WAITS:
                    wait_for_producers()
                z = me - owner_of(unit * length, grid, total)
                at = part + z * stride + (pair * (SIDES * height))[None, :] + place[:, None]
                tl.store(at, sums, mask=tl.broadcast_to((q + lane < count)[None, :], sums.shape))
        if last - first < length:
            if WAITS:
                wait_for_producers()
            if arrive(counters + unit, length, last - first):
                parts = parts_of(unit * length, length, grid, total)
                for q in range(0, count, NT):
                    _, _, pair = pairs_of(members, j, q, few, count, batch, ROUTED, TOPK, BATCH1)
                    at = (pair * (SIDES * height))[None, :] + place[:, None]
                    seen = tl.broadcast_to((q + few < count)[None, :], at.shape)
                    sums = add_parts(part, stride, parts, at, seen, NT, FEW, UNROLL)
                    if TILES2 > 0:
                        sums *= inverse_root(roots, x_width)
                    to, choice, _ = pairs_of(members, j, q, lane, count, batch, ROUTED, TOPK, BATCH1)
                    target = (to * out_stride + choice * rows)[None, :] + row[:, None]
                    there = tl.broadcast_to((q + lane < count)[None, :], target.shape)
                    write_up(sums, gate_added, up_added, out, shadow, target, there, GATED, SHADOW)
        row_tile = tl.where(at_end, 0, row_tile + 1)
        j = next_j


@triton.jit(
    do_not_specialize=[
        "gate_w", "gate_s", "gate_t", "up_w", "up_s", "up_t", "w_stride", "s_stride", "t_stride", "bias_stride",
        "shared_gate_w", "shared_gate_s", "shared_gate_t", "shared_up_w", "shared_up_s", "shared_up_t", "rows",
        "shared_rows", "tiles", "shared_tiles", "batch", "x_stride8", "out_stride", "gate_length", "up_length",
        "experts_most", "x_width",
    ]
)  # fmt: skip
def experts_up(
    w_pool, s_pool, t_pool, shared_w_pool, shared_s_pool, shared_t_pool,  # weights: elements, scales, own scales
    x, squares,  # input, and its root where it is still to be divided by it
    out, shadow,  # output, float32 and bfloat16
    part, counters,  # scratch: partial sums, turns that have arrived
    gate_bias, up_bias,
    slots, counts, members, distinct,  # routing: which experts, of which tokens
    gate_w, gate_s, gate_t, up_w, up_s, up_t, w_stride, s_stride, t_stride, bias_stride,  # where expert 0 lies
    shared_gate_w, shared_gate_s, shared_gate_t, shared_up_w, shared_up_s, shared_up_t,  # where the shared one lies
    rows, shared_rows, tiles, shared_tiles, batch, x_stride8, out_stride, gate_length, up_length, experts_most,
    x_width,  # shape
    # Compile-time: formats and how they are cut,
    FORMAT: tl.constexpr, SHARED: tl.constexpr, TOPK: tl.constexpr, NT: tl.constexpr, FEW: tl.constexpr,
    UNROLL: tl.constexpr, ACROSS: tl.constexpr, TILES: tl.constexpr, RAGGED: tl.constexpr,
    SHARED_TILES: tl.constexpr, SHARED_RAGGED: tl.constexpr,
    # the compiler and the launch, what follows the sums.
    QUAD: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr, EARLY: tl.constexpr, GATED: tl.constexpr,
    SHADOW: tl.constexpr, TILES2: tl.constexpr,
):  # fmt: skip
    """out[token, choice * rows + i] = silu(W_gate x) * (W_up x) of every pair, and the shared expert's behind them.

    SHARED is the shared expert's format or "". FEW, UNROLL: pairs and parts added up at a time; FEW is 1 for a single
    token. TILES2 > 0: x is still to be divided by the root that `squares` [x_width / 16] give. EARLY: the kernel before
    this one does not make x, so under programmatic launch the shared expert is not kept waiting: what is two kernels
    back has ended (`wait_for_producers`).
    """
    height = rows if SHARED == "" else tl.maximum(rows, shared_rows)
    if SHARED != "":
        if PDL and not EARLY:
            wait_for_producers()
        up_units(
            shared_w_pool, shared_s_pool, shared_t_pool, x, squares, out + TOPK * rows, shadow + TOPK * rows, part,
            counters + experts_most * (rows // 16), gate_bias, up_bias, slots, counts, members,
            shared_gate_w, shared_gate_s, shared_gate_t, shared_up_w, shared_up_s, shared_up_t, 0, 0, 0, 0,
            1, shared_rows, shared_tiles, height, batch, x_stride8, out_stride, 0, 0, x_width,
            SHARED, False, TOPK, NT, FEW, UNROLL, ACROSS, SHARED_TILES, SHARED_RAGGED, QUAD, ASM, False, PDL and EARLY,
            GATED, SHADOW, TILES2,
        )  # fmt: skip
    if PDL and FEW > 1:
        wait_for_producers()
    found = TOPK if FEW == 1 else tl.load(distinct)
    up_units(
        w_pool, s_pool, t_pool, x, squares, out, shadow, part, counters, gate_bias, up_bias, slots, counts, members,
        gate_w, gate_s, gate_t, up_w, up_s, up_t, w_stride, s_stride, t_stride, bias_stride,
        found, rows, tiles, height, batch, x_stride8, out_stride, gate_length, up_length, x_width,
        FORMAT, True, TOPK, NT, FEW, UNROLL, ACROSS, TILES, RAGGED, QUAD, ASM, PDL and FEW == 1, False, GATED, SHADOW,
        TILES2,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "rows", "shared_rows", "height", "batch", "bias_stride", "out_stride", "gate_length", "up_length",
    ]
)  # fmt: skip
def experts_up_finish(
    part, out, shadow, gate_bias, up_bias, slot_of, rows, shared_rows, height, batch, bias_stride, out_stride,
    gate_length, up_length,
    TOPK: tl.constexpr, GATED: tl.constexpr, SHADOW: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The end of `experts_up` alone, after `moegauge.kernels.triton.device.plain` made the parts, gate first.

    Grid (ceil(most rows / 16), pairs, then tokens of the shared expert).
    """
    if PDL:
        wait_for_producers()
    SIDES: tl.constexpr = 2 if GATED else 1
    pair = tl.program_id(1)
    routed = pair < batch * TOPK
    i = tl.arange(0, 16 * SIDES)
    row = tl.program_id(0) * 16 + tl.arange(0, 16)
    place = tl.program_id(0) * 16 + i % 16
    limit = tl.where(routed, rows, shared_rows)
    at = i // 16 * batch * (TOPK + 1) * height + pair * height + place
    sums = tl.load(part + at[:, None] + tl.zeros((1, 1), tl.int32), mask=(place < limit)[:, None], other=0.0)
    slot = tl.load(slot_of + tl.where(routed, pair, 0)).to(tl.int64) * bias_stride
    gate_length = tl.where(routed, gate_length, 0)
    up_length = tl.where(routed, up_length, 0)
    gate_added = bias_rows(first_bias(gate_bias + slot, gate_length, row), gate_bias + slot, gate_length, row, rows)
    up_added = bias_rows(first_bias(up_bias + slot, up_length, row), up_bias + slot, up_length, row, rows)
    routed_at = pair // TOPK * out_stride + pair % TOPK * rows
    behind = (pair - batch * TOPK) * out_stride + TOPK * rows
    target = tl.where(routed, routed_at, behind) + row[:, None]
    write_up(sums, gate_added, up_added, out, shadow, target, (row < limit)[:, None], GATED, SHADOW)
