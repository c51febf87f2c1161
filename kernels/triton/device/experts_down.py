"""Experts kernel, second launch of a layer: down projection, weighted sum over experts, residual.

Legend as in `experts_up`.

Here the chunks of one row tile, of every expert and the shared one, stand together in line. A single token's program so
adds up the experts it passes, weighted, before it writes a part: one per program and row tile, not one per expert.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.normalised import write_normalised
from moegauge.kernels.triton.device.partial_sums import add_parts, arrive, quads, rows_of_tile
from moegauge.kernels.triton.device.row_tile import wait_for_producers
from moegauge.kernels.triton.device.work_split import owner_of, parts_of, share_of


@triton.jit
def finish_batch1(
    part, count, out, shadow, bias, share, slot_of, next_gain, normalised, next_squares, row, rows, bias_stride, length,
    TOPK: tl.constexpr, TOPK2: tl.constexpr, UNROLL: tl.constexpr, SHADOW: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """out[0, row] += `count` parts, which are weighted already, + sum_i share[i] bias of choice i, all choices at once.

    TOPK2: the next power of two. UNROLL: parts added up at a time.
    """
    there = (row < rows)[:, None]
    target = row[:, None]
    # Every column holds the sum; the first one is written.
    total = add_parts(part, rows, count, target, there, 8, 1, UNROLL)
    first = there & (tl.arange(0, 8) < 1)[None, :]
    total += tl.load(out + target + tl.zeros((16, 8), tl.int32), mask=first, other=0.0)
    if length > 0:
        i = tl.arange(0, TOPK2)
        weight = tl.load(share + i, mask=i < TOPK, other=0.0)
        slot = tl.load(slot_of + i, mask=i < TOPK, other=0)
        for start in range(0, length, rows):
            index = (row + start)[:, None] + (slot * bias_stride)[None, :]
            seen = (there & (row + start < length)[:, None]) & (i < TOPK)[None, :]
            values = tl.load(bias + index, mask=seen, other=0.0).to(tl.float32)
            total += tl.sum(values * weight[None, :], 1)[:, None]
    tl.store(out + target + tl.zeros((16, 8), tl.int32), total, mask=first)
    if SHADOW:
        tl.store(shadow + target + tl.zeros((16, 8), tl.int32), total.to(tl.bfloat16), mask=first)
    if NORMALISED:
        write_normalised(total, next_gain, normalised, next_squares, row, 8)


@triton.jit
def finish_down(
    part, out, shadow, bias, share, slot_of, number_of, row_tile, rows, batch, out_stride, bias_stride, length,
    chunks, routed, tall, grid, total,
    TOPK: tl.constexpr, NT: tl.constexpr, SHARED: tl.constexpr, SHADOW: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """out[b, row] += sum_i share[b, i] (parts of pair (b, i) + bias) + parts of the shared expert, choices in order.

    chunks, routed, tall: of a row tile, those of one routed expert, of all of them, with the shared one too. Without
    SPLIT every pair has one part and nobody asks for them.
    """
    lane = tl.arange(0, NT)
    row = row_tile * 16 + tl.arange(0, 16)
    stride = batch * (TOPK + 1) * rows
    for q in range(0, batch, NT):
        token = q + lane
        there = (row < rows)[:, None] & (token < batch)[None, :]
        target = token[None, :] * out_stride + row[:, None]
        sums = tl.load(out + target, mask=there, other=0.0)
        for i in range(0, TOPK):
            pair = token * TOPK + i
            weight = tl.load(share + pair, mask=token < batch, other=0.0)
            parts = lane * 0 + 1
            if SPLIT:
                j = tl.load(number_of + pair, mask=token < batch, other=0)
                parts = parts_of(row_tile * tall + j * chunks, chunks, grid, total)
            acc = tl.zeros((16, NT), tl.float32)
            for z in range(0, tl.max(parts, 0)):
                at = part + z * stride + pair[None, :] * rows + row[:, None]
                mask = there & (parts > lane * 0 + z)[None, :]
                acc += tl.load(at, mask=mask, other=0.0, volatile=True)
            slot = tl.load(slot_of + pair, mask=token < batch, other=0)
            for start in range(0, length, rows):
                index = (row + start)[:, None] + (slot * bias_stride)[None, :]
                seen = there & (row + start < length)[:, None]
                acc += tl.load(bias + index, mask=seen, other=0.0).to(tl.float32)
            sums += acc * weight[None, :]
        if SHARED:
            # A single part where nothing is split: the unit of the whole row tile is then a program's own.
            count = parts_of(row_tile * tall + routed, tall - routed, grid, total)
            for z in range(0, count):
                at = part + z * stride + (batch * TOPK + token)[None, :] * rows + row[:, None]
                sums += tl.load(at, mask=there, other=0.0, volatile=True)
        tl.store(out + target, sums, mask=there)
        if SHADOW:
            tl.store(shadow + target, sums.to(tl.bfloat16), mask=there)


@triton.jit(
    do_not_specialize=[
        "down_w", "down_s", "down_t", "w_stride", "s_stride", "t_stride", "bias_stride", "shared_w", "shared_s",
        "shared_t", "rows", "width8", "tiles", "shared_tiles", "batch", "x_stride8", "out_stride", "length",
    ]
)  # fmt: skip
def experts_down(
    w_pool, s_pool, t_pool, shared_w_pool, shared_s_pool, shared_t_pool,  # weights: elements, scales, own scales
    x,  # input
    out, shadow,  # output, float32 and bfloat16
    part, counters,  # scratch: partial sums, chunks that have arrived
    bias,
    slots, counts, members, distinct, share, slot_of, number_of,  # routing: which experts, of which tokens, how much
    next_gain, normalised, next_squares,  # the next normalised input
    down_w, down_s, down_t, w_stride, s_stride, t_stride, bias_stride, shared_w, shared_s, shared_t,  # where they lie
    rows, width8, tiles, shared_tiles, batch, x_stride8, out_stride, length,  # shape
    # Compile-time: formats and how they are cut, the compiler and the launch, what follows the sums.
    FORMAT: tl.constexpr, SHARED: tl.constexpr, TOPK: tl.constexpr, TOPK2: tl.constexpr, NT: tl.constexpr,
    UNROLL: tl.constexpr, TILES: tl.constexpr, EVEN: tl.constexpr, SHARED_TILES: tl.constexpr,
    SHARED_EVEN: tl.constexpr, QUAD: tl.constexpr, ASM: tl.constexpr, BATCH1: tl.constexpr, PDL: tl.constexpr,
    SHADOW: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """out[b] += sum_i share[b, i] (W_down x[b, i] + bias) + W_shared x_shared. width8: rows of an up projection / 8.

    BATCH1: a single token; part is [depth, rows] then, [depth, pairs + tokens, rows] otherwise. Under programmatic
    launch the slots are read before the wait: `route` ended before `experts_up` could let this kernel start.
    NORMALISED, of a single token: the next normalised input is written too (`normalised`).
    """
    grid = tl.num_programs(0)
    me = tl.program_id(0)
    token, k = quads(NT)
    lane = tl.arange(0, NT)
    stride = batch * (TOPK + 1) * rows
    chunks = tl.cdiv(tiles, TILES)
    found = TOPK if BATCH1 else tl.load(distinct)
    routed = found * chunks
    tall = routed
    if SHARED != "":
        tall += tl.cdiv(shared_tiles, SHARED_TILES)
    total = rows // 16 * tall
    begin, end = share_of(me, grid, total)
    if PDL:
        if begin == end:
            wait_for_producers()
    for row_tile in range(begin // tall, tl.cdiv(end, tall)):
        row = row_tile * 16 + tl.arange(0, 16)
        base = row_tile * tall
        low = tl.maximum(begin - base, 0)
        high = tl.minimum(end - base, tall)
        sums = tl.zeros((16, NT), tl.float32)
        for j in range(low // chunks, tl.cdiv(tl.minimum(high, routed), chunks)):
            first = tl.maximum(low - j * chunks, 0) * TILES
            last = tl.minimum(tl.minimum(high - j * chunks, chunks) * TILES, tiles)
            slot = tl.load(slots + j).to(tl.int64)
            w = w_pool + (down_w + slot * w_stride) * 64
            s = s_pool + (down_s + slot * s_stride) * 64
            t = t_pool + (down_t + slot * t_stride) * 64
            if BATCH1:
                weight = tl.load(share + j)
                acc = rows_of_tile(
                    w, s, t, x + token * 0 + j * (width8 * 8) + k, token < 1, row_tile, tiles, first, last,
                    FORMAT, NT, TILES, EVEN, QUAD, ASM, PDL,
                )  # fmt: skip
                sums += acc * weight
            else:
                count = tl.load(counts + j)
                z = me - owner_of(base + j * chunks, grid, total)
                for q in range(0, count, NT):
                    pair = tl.load(members + j * batch + q + token, mask=q + token < count, other=0)
                    acc = rows_of_tile(
                        w, s, t, x + pair // TOPK * (x_stride8 * 8) + pair % TOPK * (width8 * 8) + k,
                        q + token < count, row_tile, tiles, first, last, FORMAT, NT, TILES, EVEN, QUAD, ASM, PDL,
                    )  # fmt: skip
                    there = q + lane < count
                    pairs = tl.load(members + j * batch + q + lane, mask=there, other=0)
                    tl.store(part + z * stride + pairs[None, :] * rows + row[:, None], acc, mask=there[None, :])
        if SHARED != "":
            if high > routed:
                first = tl.maximum(low - routed, 0) * SHARED_TILES
                last = tl.minimum((high - routed) * SHARED_TILES, shared_tiles)
                w = shared_w_pool + tl.cast(shared_w, tl.int64) * 64
                s = shared_s_pool + tl.cast(shared_s, tl.int64) * 64
                t = shared_t_pool + tl.cast(shared_t, tl.int64) * 64
                z = me - owner_of(base + routed, grid, total)
                for q in range(0, batch, NT):
                    acc = rows_of_tile(
                        w, s, t, x + (q + token) * (x_stride8 * 8) + TOPK * (width8 * 8) + k, q + token < batch,
                        row_tile, shared_tiles, first, last, SHARED, NT, SHARED_TILES, SHARED_EVEN, QUAD, ASM, PDL,
                    )  # fmt: skip
                    if BATCH1:
                        sums += acc
                    else:
                        pairs = batch * TOPK + q + lane
                        mask = (q + lane < batch)[None, :]
                        tl.store(part + z * stride + pairs[None, :] * rows + row[:, None], acc, mask=mask)
        if BATCH1:
            z = me - owner_of(base, grid, total)
            tl.store(part + (z * rows + lane * 0)[None, :] + row[:, None], sums, mask=(lane < 1)[None, :])
        if arrive(counters + row_tile, tall, high - low):
            if BATCH1:
                count = parts_of(base, tall, grid, total)
                finish_batch1(
                    part, count, out, shadow, bias, share, slot_of, next_gain, normalised, next_squares, row, rows,
                    bias_stride, length, TOPK, TOPK2, UNROLL, SHADOW, NORMALISED,
                )  # fmt: skip
            else:
                finish_down(
                    part, out, shadow, bias, share, slot_of, number_of, row_tile, rows, batch, out_stride, bias_stride,
                    length, chunks, routed, tall, grid, total, TOPK, 8, SHARED != "", SHADOW, True,
                )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "batch", "out_stride", "bias_stride", "length"])
def experts_down_finish(
    part, out, shadow, bias, share, slot_of, rows, batch, out_stride, bias_stride, length,
    TOPK: tl.constexpr, SHARED: tl.constexpr, SHADOW: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The end of `experts_down` alone, after `device.plain` made the parts. Grid: ceil(rows / 16)."""
    if PDL:
        wait_for_producers()
    finish_down(
        part, out, shadow, bias, share, slot_of, slot_of, tl.program_id(0), rows, batch, out_stride, bias_stride,
        length, 1, 0, 1, 1, tl.cdiv(rows, 16), TOPK, 8, SHARED, SHADOW, False,
    )  # fmt: skip
