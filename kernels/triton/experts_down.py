"""Routed and shared experts, second launch of a layer: down, weighted sum, residual. Legend as in `experts_up`."""

import triton
import triton.language as tl

from moegauge.kernels.triton.grid import program
from moegauge.kernels.triton.matrix import arrive, quads, rows_of_tile
from moegauge.kernels.triton.span import wait_for_producers


@triton.jit
def finish_down(
    part, out, shadow, bias, share, slot_of, row, rows, splits, batch, out_stride, bias_stride, length,
    TOPK: tl.constexpr, NT: tl.constexpr, SHARED: tl.constexpr, SHADOW: tl.constexpr,
):  # fmt: skip
    """out[b, row] += sum_i share[b, i] (parts of pair (b, i) + bias) + parts of the shared expert, choices in order."""
    lane = tl.arange(0, NT)
    stride = batch * (TOPK + 1) * rows
    for q in range(0, batch, NT):
        token = q + lane
        there = (row < rows)[:, None] & (token < batch)[None, :]
        target = token[None, :] * out_stride + row[:, None]
        total = tl.load(out + target, mask=there, other=0.0)
        for i in range(0, TOPK):
            pair = token * TOPK + i
            weight = tl.load(share + pair, mask=token < batch, other=0.0)
            acc = tl.zeros((16, NT), tl.float32)
            for z in range(0, splits):
                at = part + z * stride + pair[None, :] * rows + row[:, None]
                acc += tl.load(at, mask=there, other=0.0, cache_modifier=".cg")
            slot = tl.load(slot_of + pair, mask=token < batch, other=0)
            for start in range(0, length, rows):
                index = (row + start)[:, None] + (slot * bias_stride)[None, :]
                seen = there & (row + start < length)[:, None]
                acc += tl.load(bias + index, mask=seen, other=0.0).to(tl.float32)
            total += acc * weight[None, :]
        if SHARED:
            for z in range(0, splits):
                at = part + z * stride + (batch * TOPK + token)[None, :] * rows + row[:, None]
                total += tl.load(at, mask=there, other=0.0, cache_modifier=".cg")
        tl.store(out + target, total, mask=there)
        if SHADOW:
            tl.store(shadow + target, total.to(tl.bfloat16), mask=there)


@triton.jit(
    do_not_specialize=[
        "down_w", "down_s", "down_t", "w_stride", "s_stride", "t_stride", "bias_stride", "shared_w", "shared_s",
        "shared_t", "rows", "width8", "tiles", "tiles_per_split", "shared_tiles", "shared_tiles_per_split", "splits",
        "batch", "x_stride8", "out_stride", "length", "experts_most",
    ]
)  # fmt: skip
def experts_down(
    w_pool, s_pool, t_pool, shared_w_pool, shared_s_pool, shared_t_pool,
    x, out, shadow, part, counters, bias, slots, counts, members, distinct, share, slot_of,
    down_w, down_s, down_t, w_stride, s_stride, t_stride, bias_stride, shared_w, shared_s, shared_t,
    rows, width8, tiles, tiles_per_split, shared_tiles, shared_tiles_per_split, splits, batch, x_stride8, out_stride,
    length, experts_most,
    FORMAT: tl.constexpr, SHARED: tl.constexpr, TOPK: tl.constexpr, NT: tl.constexpr, TILES: tl.constexpr,
    EVEN: tl.constexpr, SHARED_TILES: tl.constexpr, SHARED_EVEN: tl.constexpr, QUAD: tl.constexpr, ASM: tl.constexpr,
    PDL: tl.constexpr, SHADOW: tl.constexpr, at=None,
):  # fmt: skip
    """out[b] += sum_i share[b, i] (W_down x[b, i] + bias) + W_shared x_shared. width8: rows of an up projection / 8.

    Grid (row tiles, splits, distinct experts at most + shared). Under programmatic launch the slots are read before
    the wait: `route` ended before `experts_up` could let this kernel start.
    """
    row_tile = program(at, 0)
    z = program(at, 1)
    j = program(at, 2)
    token, k = quads(NT)
    row = row_tile * 16 + tl.arange(0, 16)
    lane = tl.arange(0, NT)
    stride = batch * (TOPK + 1) * rows
    found = tl.load(distinct)
    working = found >= 0
    if j < experts_most:
        working = j < found
        if working:
            slot = tl.load(slots + j).to(tl.int64)
            count = tl.load(counts + j)
            first = z * tiles_per_split
            w = w_pool + (down_w + slot * w_stride) * 64
            s = s_pool + (down_s + slot * s_stride) * 64
            t = t_pool + (down_t + slot * t_stride) * 64
            for q in range(0, count, NT):
                pair = tl.load(members + j * batch + q + token, mask=q + token < count, other=0)
                acc = rows_of_tile(
                    w, s, t, x + pair // TOPK * (x_stride8 * 8) + pair % TOPK * (width8 * 8) + k, q + token < count,
                    row_tile, tiles, first, tl.minimum(first + tiles_per_split, tiles),
                    FORMAT, NT, TILES, EVEN, QUAD, ASM, PDL,
                )  # fmt: skip
                there = q + lane < count
                pairs = tl.load(members + j * batch + q + lane, mask=there, other=0)
                tl.store(part + z * stride + pairs[None, :] * rows + row[:, None], acc, mask=there[None, :])
    elif SHARED != "":
        first = z * shared_tiles_per_split
        w = shared_w_pool + tl.cast(shared_w, tl.int64) * 64
        s = shared_s_pool + tl.cast(shared_s, tl.int64) * 64
        t = shared_t_pool + tl.cast(shared_t, tl.int64) * 64
        for q in range(0, batch, NT):
            acc = rows_of_tile(
                w, s, t, x + (q + token) * (x_stride8 * 8) + TOPK * (width8 * 8) + k, q + token < batch,
                row_tile, shared_tiles, first, tl.minimum(first + shared_tiles_per_split, shared_tiles),
                SHARED, NT, SHARED_TILES, SHARED_EVEN, QUAD, ASM, PDL,
            )  # fmt: skip
            there = q + lane < batch
            pairs = batch * TOPK + q + lane
            tl.store(part + z * stride + pairs[None, :] * rows + row[:, None], acc, mask=there[None, :])
    if working:
        if arrive(counters + row_tile, (found + (1 if SHARED != "" else 0)) * splits):
            finish_down(
                part, out, shadow, bias, share, slot_of, row, rows, splits, batch, out_stride, bias_stride, length,
                TOPK, NT, SHARED != "", SHADOW,
            )  # fmt: skip
    elif PDL:
        wait_for_producers()


@triton.jit(do_not_specialize=["rows", "batch", "out_stride", "bias_stride", "length"])
def experts_down_finish(
    part, out, shadow, bias, share, slot_of, rows, batch, out_stride, bias_stride, length,
    TOPK: tl.constexpr, SHARED: tl.constexpr, SHADOW: tl.constexpr, PDL: tl.constexpr, at=None,
):  # fmt: skip
    """The end of `experts_down` alone, after `moegauge.kernels.triton.plain` made the parts. Grid: ceil(rows / 16)."""
    if PDL:
        wait_for_producers()
    row = program(at, 0) * 16 + tl.arange(0, 16)
    finish_down(
        part, out, shadow, bias, share, slot_of, row, rows, 1, batch, out_stride, bias_stride, length,
        TOPK, 8, SHARED, SHADOW,
    )  # fmt: skip
