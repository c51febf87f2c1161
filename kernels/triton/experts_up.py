"""Routed and shared experts, first launch of a layer: gate, up and SwiGLU.

Legend: k experts per token (TOPK), pair p = token * k + choice, D distinct experts. A program works on one row tile of
one distinct expert and finds its weights through `slots`, its tokens through `members`, both written by
`moegauge.kernels.triton.route`; nothing is sorted or aligned. The programs behind the last distinct expert are the
shared expert's, whose format may differ; programs without work leave at once.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.grid import program, programs
from moegauge.kernels.triton.matrix import add_bias, arrive, quads, rows_of_tile, silu
from moegauge.kernels.triton.span import wait_for_producers


@triton.jit
def finish_up(
    part, out, shadow, gate_bias, up_bias, pairs, pair_mask, token, column, row, rows, row_limit, parts_stride, splits,
    out_stride, gate_length, up_length, NT: tl.constexpr, GATED: tl.constexpr, SHADOW: tl.constexpr,
):  # fmt: skip
    """SwiGLU of 16 rows of NT pairs from their parts, written to out[token, column + row]."""
    there = (row < row_limit)[:, None] & pair_mask[None, :]
    at = pairs[None, :] * rows + row[:, None]
    gate = tl.zeros((16, NT), tl.float32)
    up = tl.zeros((16, NT), tl.float32)
    for z in range(0, splits):
        up += tl.load(part + z * parts_stride + at, mask=there, other=0.0, cache_modifier=".cg")
    up = add_bias(up, up_bias, up_length, row, row_limit)
    if GATED:
        for z in range(splits, 2 * splits):
            gate += tl.load(part + z * parts_stride + at, mask=there, other=0.0, cache_modifier=".cg")
        gate = add_bias(gate, gate_bias, gate_length, row, row_limit)
        value = silu(gate) * up
    else:
        value = silu(up)
    target = (token * out_stride + column)[None, :] + row[:, None]
    tl.store(out + target, value, mask=there)
    if SHADOW:
        tl.store(shadow + target, value.to(tl.bfloat16), mask=there)


@triton.jit(
    do_not_specialize=[
        "gate_w", "gate_s", "gate_t", "up_w", "up_s", "up_t", "w_stride", "s_stride", "t_stride", "bias_stride",
        "shared_gate_w", "shared_gate_s", "shared_gate_t", "shared_up_w", "shared_up_s", "shared_up_t", "rows",
        "shared_rows", "tiles", "tiles_per_split", "shared_tiles", "shared_tiles_per_split", "splits", "batch",
        "x_stride8", "out_stride", "gate_length", "up_length", "experts_most",
    ]
)  # fmt: skip
def experts_up(
    w_pool, s_pool, t_pool, shared_w_pool, shared_s_pool, shared_t_pool,
    x, out, shadow, part, counters, gate_bias, up_bias, slots, counts, members, distinct,
    gate_w, gate_s, gate_t, up_w, up_s, up_t, w_stride, s_stride, t_stride, bias_stride,
    shared_gate_w, shared_gate_s, shared_gate_t, shared_up_w, shared_up_s, shared_up_t,
    rows, shared_rows, tiles, tiles_per_split, shared_tiles, shared_tiles_per_split, splits, batch, x_stride8,
    out_stride, gate_length, up_length, experts_most,
    FORMAT: tl.constexpr, SHARED: tl.constexpr, TOPK: tl.constexpr, NT: tl.constexpr, TILES: tl.constexpr,
    EVEN: tl.constexpr, SHARED_TILES: tl.constexpr, SHARED_EVEN: tl.constexpr, QUAD: tl.constexpr, ASM: tl.constexpr,
    PDL: tl.constexpr, GATED: tl.constexpr, SHADOW: tl.constexpr, at=None,
):  # fmt: skip
    """out[token, choice * rows + i] = silu(W_gate x) * (W_up x) of every pair, and the shared expert's behind them.

    Grid (row tiles, parts, distinct experts at most + shared). Part z < splits is up, z >= splits gate. SHARED is the
    shared expert's format or "".
    """
    row_tile = program(at, 0)
    z = program(at, 1)
    j = program(at, 2)
    split = z % splits
    gate = z >= splits
    token, k = quads(NT)
    row = row_tile * 16 + tl.arange(0, 16)
    lane = tl.arange(0, NT)
    parts_stride = batch * (TOPK + 1) * rows if SHARED == "" else batch * (TOPK + 1) * tl.maximum(rows, shared_rows)
    height = rows if SHARED == "" else tl.maximum(rows, shared_rows)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    if PDL:
        wait_for_producers()
    if j < experts_most:
        if (j < tl.load(distinct)) & (row_tile * 16 < rows):
            slot = tl.load(slots + j).to(tl.int64)
            count = tl.load(counts + j)
            w = w_pool + (tl.where(gate, gate_w, up_w) + slot * w_stride) * 64
            s = s_pool + (tl.where(gate, gate_s, up_s) + slot * s_stride) * 64
            t = t_pool + (tl.where(gate, gate_t, up_t) + slot * t_stride) * 64
            for q in range(0, count, NT):
                pair = tl.load(members + j * batch + q + token, mask=q + token < count, other=0)
                acc = rows_of_tile(
                    w, s, t, x + pair // TOPK * (x_stride8 * 8) + k, q + token < count, row_tile, tiles, first, last,
                    FORMAT, NT, TILES, EVEN, QUAD, ASM, False,
                )  # fmt: skip
                there = q + lane < count
                pairs = tl.load(members + j * batch + q + lane, mask=there, other=0)
                tl.store(part + z * parts_stride + pairs[None, :] * height + row[:, None], acc, mask=there[None, :])
            if arrive(counters + j * programs(at, 0) + row_tile, 2 * splits if GATED else splits):
                for q in range(0, count, NT):
                    there = q + lane < count
                    pairs = tl.load(members + j * batch + q + lane, mask=there, other=0)
                    finish_up(
                        part, out, shadow, gate_bias + slot * bias_stride, up_bias + slot * bias_stride,
                        pairs, there, pairs // TOPK, pairs % TOPK * rows, row, height, rows, parts_stride, splits,
                        out_stride, gate_length, up_length, NT, GATED, SHADOW,
                    )  # fmt: skip
    elif SHARED != "":
        if row_tile * 16 < shared_rows:
            w = shared_w_pool + tl.where(gate, shared_gate_w, shared_up_w).to(tl.int64) * 64
            s = shared_s_pool + tl.where(gate, shared_gate_s, shared_up_s).to(tl.int64) * 64
            t = shared_t_pool + tl.where(gate, shared_gate_t, shared_up_t).to(tl.int64) * 64
            begin = split * shared_tiles_per_split
            for q in range(0, batch, NT):
                acc = rows_of_tile(
                    w, s, t, x + (q + token) * (x_stride8 * 8) + k, q + token < batch, row_tile,
                    shared_tiles, begin, tl.minimum(begin + shared_tiles_per_split, shared_tiles),
                    SHARED, NT, SHARED_TILES, SHARED_EVEN, QUAD, ASM, False,
                )  # fmt: skip
                there = q + lane < batch
                pairs = batch * TOPK + q + lane
                tl.store(part + z * parts_stride + pairs[None, :] * height + row[:, None], acc, mask=there[None, :])
            if arrive(counters + j * programs(at, 0) + row_tile, 2 * splits if GATED else splits):
                for q in range(0, batch, NT):
                    there = q + lane < batch
                    finish_up(
                        part, out, shadow, gate_bias, up_bias, batch * TOPK + q + lane, there, q + lane,
                        TOPK * rows + lane * 0, row, height, shared_rows, parts_stride, splits, out_stride, 0, 0,
                        NT, GATED, SHADOW,
                    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "rows", "shared_rows", "height", "batch", "bias_stride", "out_stride", "gate_length", "up_length",
    ]
)  # fmt: skip
def experts_up_finish(
    part, out, shadow, gate_bias, up_bias, slot_of, rows, shared_rows, height, batch, bias_stride, out_stride,
    gate_length, up_length,
    TOPK: tl.constexpr, GATED: tl.constexpr, SHADOW: tl.constexpr, PDL: tl.constexpr, at=None,
):  # fmt: skip
    """The end of `experts_up` alone, after `moegauge.kernels.triton.plain` made the parts.

    Grid (ceil(most rows / 16), pairs, then tokens of the shared expert).
    """
    if PDL:
        wait_for_producers()
    pair = program(at, 1)
    row = program(at, 0) * 16 + tl.arange(0, 16)
    lane = tl.arange(0, 8)
    there = lane < 1
    stride = batch * (TOPK + 1) * height
    if pair < batch * TOPK:
        slot = tl.load(slot_of + pair).to(tl.int64)
        finish_up(
            part, out, shadow, gate_bias + slot * bias_stride, up_bias + slot * bias_stride, pair + lane, there,
            pair // TOPK + lane, pair % TOPK * rows + lane * 0, row, height, rows, stride, 1, out_stride, gate_length,
            up_length, 8, GATED, SHADOW,
        )  # fmt: skip
    else:
        finish_up(
            part, out, shadow, gate_bias, up_bias, pair + lane, there, pair - batch * TOPK + lane,
            TOPK * rows + lane * 0, row, height, shared_rows, stride, 1, out_stride, 0, 0, 8, GATED, SHADOW,
        )  # fmt: skip
