"""Experts kernel, first launch of a layer: gate, up and SwiGLU of routed and shared experts.

Legend: k experts per token (TOPK), pair p = token * k + choice, D distinct experts. The chunks of all row tiles of the
distinct experts stand in line, gate before up, the shared expert's (whose format may differ) at the end, and every
program takes an equal share (`share`). It finds an expert's weights through `slots`, its tokens through `members`, both
written by `moegauge.kernels.triton.device.route`; nothing is sorted or aligned.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.normalised import inverse_root, load_squares
from moegauge.kernels.triton.device.partial_sums import add_bias, add_parts, arrive, quads, rows_of_tile, silu
from moegauge.kernels.triton.device.row_tile import wait_for_producers
from moegauge.kernels.triton.device.work_split import owner_of, parts_of, share_of


@triton.jit
def sum_pairs(
    part, stride, count, pairs, there, row, height, NT: tl.constexpr, FEW: tl.constexpr, UNROLL: tl.constexpr
):
    """Sum of `count` parts, `stride` apart, of rows `row` [16] of `pairs` [FEW]; [16, NT]."""
    at = pairs[None, :] * height + row[:, None]
    return add_parts(part, stride, count, at, tl.broadcast_to(there[None, :], at.shape), NT, FEW, UNROLL)


@triton.jit
def sum_sides(
    part, stride, depth, gate_parts, up_parts, pairs, there, row, height, loaded, x_width,
    NT: tl.constexpr, FEW: tl.constexpr, UNROLL: tl.constexpr, GATED: tl.constexpr, TILES2: tl.constexpr,
):  # fmt: skip
    """(gate, up) of rows `row` [16] of `pairs` [FEW] from their parts, `stride` apart, divided by their input's root;
    both [16, NT], gate is up without GATED. loaded: `load_squares`."""
    up = sum_pairs(part, stride, up_parts, pairs, there, row, height, NT, FEW, UNROLL)
    gate = up
    if GATED:
        gate = sum_pairs(part + depth * stride, stride, gate_parts, pairs, there, row, height, NT, FEW, UNROLL)
    if TILES2 > 0:
        inverse = inverse_root(loaded, x_width)
        up *= inverse
        gate *= inverse
    return gate, up


@triton.jit
def write_up(
    gate, up, out, shadow, gate_bias, up_bias, there, token, column, row, row_limit,
    out_stride, gate_length, up_length, GATED: tl.constexpr, SHADOW: tl.constexpr,
):  # fmt: skip
    """SwiGLU of rows `row` [16] of pairs (`there`, `token`, `column` [NT]), written to out[token, column + row]."""
    mask = (row < row_limit)[:, None] & there[None, :]
    up = add_bias(up, up_bias, up_length, row, row_limit)
    if GATED:
        value = silu(add_bias(gate, gate_bias, gate_length, row, row_limit)) * up
    else:
        value = silu(up)
    target = (token * out_stride + column)[None, :] + row[:, None]
    tl.store(out + target, value, mask=mask)
    if SHADOW:
        tl.store(shadow + target, value.to(tl.bfloat16), mask=mask)


@triton.jit(
    do_not_specialize=[
        "gate_w", "gate_s", "gate_t", "up_w", "up_s", "up_t", "w_stride", "s_stride", "t_stride", "bias_stride",
        "shared_gate_w", "shared_gate_s", "shared_gate_t", "shared_up_w", "shared_up_s", "shared_up_t", "rows",
        "shared_rows", "tiles", "shared_tiles", "depth", "batch", "x_stride8", "out_stride", "gate_length",
        "up_length", "experts_most", "x_width",
    ]
)  # fmt: skip
def experts_up(
    w_pool, s_pool, t_pool, shared_w_pool, shared_s_pool, shared_t_pool,  # weights: elements, scales, own scales
    x, squares,  # input, and its root where it is still to be divided by it
    out, shadow,  # output, float32 and bfloat16
    part, counters,  # scratch: partial sums, chunks that have arrived
    gate_bias, up_bias,
    slots, counts, members, distinct,  # routing: which experts, of which tokens
    gate_w, gate_s, gate_t, up_w, up_s, up_t, w_stride, s_stride, t_stride, bias_stride,  # where expert 0 lies
    shared_gate_w, shared_gate_s, shared_gate_t, shared_up_w, shared_up_s, shared_up_t,  # where the shared one lies
    rows, shared_rows, tiles, shared_tiles, depth, batch, x_stride8, out_stride, gate_length, up_length, experts_most,
    x_width,  # shape
    # Compile-time: formats and how they are cut,
    FORMAT: tl.constexpr, SHARED: tl.constexpr, TOPK: tl.constexpr, NT: tl.constexpr, FEW: tl.constexpr,
    UNROLL: tl.constexpr,
    TILES: tl.constexpr, EVEN: tl.constexpr, SHARED_TILES: tl.constexpr, SHARED_EVEN: tl.constexpr,
    # the compiler and the launch, what follows the sums.
    QUAD: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr, GATED: tl.constexpr, SHADOW: tl.constexpr,
    TILES2: tl.constexpr,
):  # fmt: skip
    """out[token, choice * rows + i] = silu(W_gate x) * (W_up x) of every pair, and the shared expert's behind them.

    SHARED is the shared expert's format or "". part: [sides, depth, pairs + tokens, most rows], depth: most parts of a
    row tile. FEW, UNROLL: pairs and parts added up at a time; FEW is 1 for a single token. TILES2 > 0: x is still to
    be divided by the root that `squares` [x_width / 16] give.
    """
    SIDES: tl.constexpr = 2 if GATED else 1
    BATCH1: tl.constexpr = FEW == 1
    grid = tl.num_programs(0)
    me = tl.program_id(0)
    token, k = quads(NT)
    lane = tl.arange(0, NT)
    few = tl.arange(0, FEW)
    height = rows if SHARED == "" else tl.maximum(rows, shared_rows)
    stride = batch * (TOPK + 1) * height
    length = tl.cdiv(tiles, TILES)
    height_tiles = rows // 16
    if PDL:
        wait_for_producers()
    # A single token's experts are all distinct, in the order of its choices: nothing is to be looked up, and a load
    # that the next one waits for is half a microsecond of every program.
    found = TOPK if BATCH1 else tl.load(distinct)
    routed = found * height_tiles * SIDES * length
    total = routed
    if SHARED != "":
        shared_length = tl.cdiv(shared_tiles, SHARED_TILES)
        total += shared_rows // 16 * SIDES * shared_length
    begin, end = share_of(me, grid, total)
    for unit in range(begin // length, tl.cdiv(tl.minimum(end, routed), length)):
        first = tl.maximum(begin - unit * length, 0)
        last = tl.minimum(end - unit * length, length)
        side = unit % SIDES
        tall = unit // SIDES
        j = tall // height_tiles
        row_tile = tall - j * height_tiles
        row = row_tile * 16 + tl.arange(0, 16)
        slot = tl.load(slots + j).to(tl.int64)
        count = 1 if BATCH1 else tl.load(counts + j)
        lower = side < SIDES - 1
        w = w_pool + (tl.where(lower, gate_w, up_w) + slot * w_stride) * 64
        s = s_pool + (tl.where(lower, gate_s, up_s) + slot * s_stride) * 64
        t = t_pool + (tl.where(lower, gate_t, up_t) + slot * t_stride) * 64
        z = (SIDES - 1 - side) * depth + me - owner_of(unit * length, grid, total)
        for q in range(0, count, NT):
            pair = (
                j + token * 0 if BATCH1 else tl.load(members + j * batch + q + token, mask=q + token < count, other=0)
            )
            acc = rows_of_tile(
                w, s, t, x + pair // TOPK * (x_stride8 * 8) + k, q + token < count, row_tile, tiles,
                first * TILES, tl.minimum(last * TILES, tiles), FORMAT, NT, TILES, EVEN, QUAD, ASM, False,
            )  # fmt: skip
            there = q + lane < count
            pairs = j + lane * 0 if BATCH1 else tl.load(members + j * batch + q + lane, mask=there, other=0)
            tl.store(part + z * stride + pairs[None, :] * height + row[:, None], acc, mask=there[None, :])
        if arrive(counters + tall, SIDES * length, last - first):
            up_parts = parts_of((tall * SIDES + SIDES - 1) * length, length, grid, total)
            gate_parts = parts_of(tall * SIDES * length, length, grid, total)
            loaded = load_squares(squares, x_width, TILES2)
            for q in range(0, count, NT):
                there = q + few < count
                pairs = j + few * 0 if BATCH1 else tl.load(members + j * batch + q + few, mask=there, other=0)
                gate, up = sum_sides(
                    part, stride, depth, gate_parts, up_parts, pairs, there, row, height, loaded, x_width,
                    NT, FEW, UNROLL, GATED, TILES2,
                )  # fmt: skip
                there = q + lane < count
                pairs = j + lane * 0 if BATCH1 else tl.load(members + j * batch + q + lane, mask=there, other=0)
                write_up(
                    gate, up, out, shadow, gate_bias + slot * bias_stride, up_bias + slot * bias_stride, there,
                    pairs // TOPK, pairs % TOPK * rows, row, rows, out_stride, gate_length, up_length, GATED, SHADOW,
                )  # fmt: skip
    if SHARED != "":
        since = tl.maximum(begin - routed, 0)
        for unit in range(since // shared_length, tl.cdiv(end - routed, shared_length)):
            first = tl.maximum(begin - routed - unit * shared_length, 0)
            last = tl.minimum(end - routed - unit * shared_length, shared_length)
            side = unit % SIDES
            row_tile = unit // SIDES
            row = row_tile * 16 + tl.arange(0, 16)
            lower = side < SIDES - 1
            w = shared_w_pool + tl.where(lower, shared_gate_w, shared_up_w).to(tl.int64) * 64
            s = shared_s_pool + tl.where(lower, shared_gate_s, shared_up_s).to(tl.int64) * 64
            t = shared_t_pool + tl.where(lower, shared_gate_t, shared_up_t).to(tl.int64) * 64
            z = (SIDES - 1 - side) * depth + me - owner_of(routed + unit * shared_length, grid, total)
            for q in range(0, batch, NT):
                acc = rows_of_tile(
                    w, s, t, x + (q + token) * (x_stride8 * 8) + k, q + token < batch, row_tile, shared_tiles,
                    first * SHARED_TILES, tl.minimum(last * SHARED_TILES, shared_tiles),
                    SHARED, NT, SHARED_TILES, SHARED_EVEN, QUAD, ASM, False,
                )  # fmt: skip
                there = q + lane < batch
                pairs = batch * TOPK + q + lane
                tl.store(part + z * stride + pairs[None, :] * height + row[:, None], acc, mask=there[None, :])
            if arrive(counters + experts_most * height_tiles + row_tile, SIDES * shared_length, last - first):
                at_up = routed + (row_tile * SIDES + SIDES - 1) * shared_length
                up_parts = parts_of(at_up, shared_length, grid, total)
                gate_parts = parts_of(routed + row_tile * SIDES * shared_length, shared_length, grid, total)
                loaded = load_squares(squares, x_width, TILES2)
                for q in range(0, batch, NT):
                    pairs = batch * TOPK + q + few
                    there = q + few < batch
                    gate, up = sum_sides(
                        part, stride, depth, gate_parts, up_parts, pairs, there, row, height, loaded, x_width,
                        NT, FEW, UNROLL, GATED, TILES2,
                    )  # fmt: skip
                    write_up(
                        gate, up, out, shadow, gate_bias, up_bias, q + lane < batch, q + lane, TOPK * rows + lane * 0,
                        row, shared_rows, out_stride, 0, 0, GATED, SHADOW,
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
    """The end of `experts_up` alone, after `moegauge.kernels.triton.device.plain` made the parts.

    Grid (ceil(most rows / 16), pairs, then tokens of the shared expert).
    """
    if PDL:
        wait_for_producers()
    pair = tl.program_id(1)
    row = tl.program_id(0) * 16 + tl.arange(0, 16)
    lane = tl.arange(0, 8)
    there = lane < 1
    stride = batch * (TOPK + 1) * height
    limit = tl.where(pair < batch * TOPK, rows, shared_rows)
    fits = (row < limit)[:, None] & there[None, :]
    at_pair = (pair + lane)[None, :] * height + row[:, None]
    up = add_parts(part, stride, 1, at_pair, fits, 8, 8, 1)
    gate = up
    if GATED:
        gate = add_parts(part + stride, stride, 1, at_pair, fits, 8, 8, 1)
    if pair < batch * TOPK:
        slot = tl.load(slot_of + pair).to(tl.int64)
        write_up(
            gate, up, out, shadow, gate_bias + slot * bias_stride, up_bias + slot * bias_stride, there,
            pair // TOPK + lane, pair % TOPK * rows + lane * 0, row, rows, out_stride, gate_length, up_length,
            GATED, SHADOW,
        )  # fmt: skip
    else:
        write_up(
            gate, up, out, shadow, gate_bias, up_bias, there, pair - batch * TOPK + lane, TOPK * rows + lane * 0, row,
            shared_rows, out_stride, 0, 0, GATED, SHADOW,
        )  # fmt: skip
