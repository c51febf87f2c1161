"""Experts kernel, second launch of a layer: down projection, weighted sum over experts, residual.

Legend as in `experts_up`.

Here the turns of one row tile, of every expert and the shared one, stand together in line. A single token's program so
adds up the experts it passes, weighted, and most row tiles need no parts; of several tokens every pair has its own.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.normalised import write_normalised
from moegauge.kernels.triton.device.partial_sums import add_parts, arrive
from moegauge.kernels.triton.device.row_tile import WARPS, add_warps, beside, quads, rows_of_tile, wait_for_producers
from moegauge.kernels.triton.device.work_split import owner_of, parts_of, share_of


@triton.jit
def slot_biases(bias, slot, bias_stride, row, rows, start, length):
    """Biases of rows `row` [16] of the experts in slots `slot` [n], [16, n], as stored; those from `start` on."""
    index = (row + start)[:, None] + (slot * bias_stride)[None, :]
    seen = ((row < rows) & (row + start < length))[:, None]
    return tl.load(bias + index, mask=tl.broadcast_to(seen, index.shape), other=0.0)


@triton.jit
def finish_batch1(
    acc, added, residual, out, shadow, target, alone, gain, normalised, next_squares, row,
    SHADOW: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """A single token's sums, weighted already, with biases `added` [16] and the residual, are written."""
    acc += added[:, None] + residual
    tl.store(out + target, acc, mask=alone)
    if SHADOW:
        tl.store(shadow + target, acc.to(tl.bfloat16), mask=alone)
    if NORMALISED:
        write_normalised(acc, gain, normalised, next_squares, row)


@triton.jit
def finish_down(
    part, out, shadow, bias, share, slot_of, number_of, row_tile, rows, batch, out_stride, bias_stride, length,
    turns, routed, tall, grid, total,
    TOPK: tl.constexpr, NT: tl.constexpr, SHARED: tl.constexpr, SHADOW: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """out[b, row] += sum_i share[b, i] (parts of pair (b, i) + bias) + parts of the shared expert, choices in order.

    turns, routed, tall: of a row tile, those of one routed expert, of all of them, with the shared one too. Without
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
                parts = parts_of(row_tile * tall + j * turns, turns, grid, total)
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
    part, counters,  # scratch: partial sums, turns that have arrived
    bias,
    slots, counts, members, distinct, share, slot_of, number_of,  # routing: which experts, of which tokens, how much
    next_gain, normalised, next_squares,  # the next normalised input
    down_w, down_s, down_t, w_stride, s_stride, t_stride, bias_stride, shared_w, shared_s, shared_t,  # where they lie
    rows, width8, tiles, shared_tiles, batch, x_stride8, out_stride, length,  # shape
    # Compile-time: formats and how they are cut, the compiler and the launch, what follows the sums.
    FORMAT: tl.constexpr, SHARED: tl.constexpr, TOPK: tl.constexpr, TOPK2: tl.constexpr, NT: tl.constexpr,
    UNROLL: tl.constexpr, ACROSS: tl.constexpr, TILES: tl.constexpr, RAGGED: tl.constexpr, SHARED_TILES: tl.constexpr,
    SHARED_RAGGED: tl.constexpr, QUAD: tl.constexpr, ASM: tl.constexpr, BATCH1: tl.constexpr, PDL: tl.constexpr,
    SHADOW: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """out[b] += sum_i share[b, i] (W_down x[b, i] + bias) + W_shared x_shared. width8: rows of an up projection / 8.

    BATCH1: a single token; part is [parts, rows] then, [parts, pairs + tokens, rows] otherwise. Under programmatic
    launch its slots and shares are read before the wait: `route` ended before `experts_up` could let this kernel start.
    NORMALISED, of a single token: the next normalised input is written too (`normalised`).
    """
    grid = tl.num_programs(0)
    me = tl.program_id(0)
    token, k = quads(NT)
    lane = tl.arange(0, NT)
    choice = tl.arange(0, TOPK2)
    stride = batch * (TOPK + 1) * rows
    turns = tl.cdiv(tiles, TILES * ACROSS)
    if PDL and not BATCH1:
        wait_for_producers()  # the way from it to the first input would be long, with pairs to be looked up
    found = TOPK if BATCH1 else tl.load(distinct)
    routed = found * turns
    tall = routed
    if SHARED != "":
        tall += tl.cdiv(shared_tiles, SHARED_TILES * ACROSS)
    total = rows // 16 * tall
    begin, end = share_of(me, grid, total)
    if PDL and BATCH1:
        if begin == end:
            wait_for_producers()
    for row_tile in range(begin // tall, tl.cdiv(end, tall)):
        row = row_tile * 16 + tl.arange(0, 16)
        rows_of = beside(ACROSS) * 0 + row_tile
        base = row_tile * tall
        low = tl.maximum(begin - base, 0)
        high = tl.minimum(end - base, tall)
        sums = tl.zeros((WARPS, 16, NT), tl.float32)
        if BATCH1:
            # A slot is asked for one expert ahead: its weights' address waits for it.
            following = tl.load(slots + tl.minimum(low // turns, found - 1))
            # What does not depend on the sums is asked for before them: nobody has touched biases and gains.
            weights = tl.load(share + choice, mask=choice < TOPK, other=0.0)
            slot_of_choice = tl.load(slot_of + choice, mask=choice < TOPK, other=0)
            biases = slot_biases(bias, slot_of_choice, bias_stride, row, rows, 0, length)
            gain = tl.load(next_gain + row) if NORMALISED else row
        for j in range(low // turns, tl.cdiv(tl.minimum(high, routed), turns)):
            first = tl.maximum(low - j * turns, 0)
            last = tl.minimum(high - j * turns, turns)
            if BATCH1:
                slot = tl.cast(following, tl.int64) + rows_of * 0
                following = tl.load(slots + tl.minimum(j + 1, found - 1))
            else:
                slot = tl.load(slots + j).to(tl.int64) + rows_of * 0
            w = w_pool + (down_w + slot * w_stride) * 64
            s = s_pool + (down_s + slot * s_stride) * 64
            t = t_pool + (down_t + slot * t_stride) * 64
            if BATCH1:
                weight = tl.load(share + j)
                acc = rows_of_tile(
                    w, s, t, x + token * 0 + j * (width8 * 8) + k, token < 1, rows_of, first, last, tiles,
                    FORMAT, NT, ACROSS, TILES, RAGGED, QUAD, ASM, PDL,
                )  # fmt: skip
                sums += acc * weight
            else:
                count = tl.load(counts + j)
                z = me - owner_of(base + j * turns, grid, total)
                for q in range(0, count, NT):
                    pair = tl.load(members + j * batch + q + token, mask=q + token < count, other=0)
                    acc = rows_of_tile(
                        w, s, t, x + pair // TOPK * (x_stride8 * 8) + pair % TOPK * (width8 * 8) + k,
                        q + token < count, rows_of, first, last, tiles,
                        FORMAT, NT, ACROSS, TILES, RAGGED, QUAD, ASM, False,
                    )  # fmt: skip
                    there = q + lane < count
                    pairs = tl.load(members + j * batch + q + lane, mask=there, other=0)
                    at = part + z * stride + pairs[None, :] * rows + row[:, None]
                    tl.store(at, add_warps(acc, ACROSS), mask=there[None, :])
        if SHARED != "":
            if high > routed:
                first = tl.maximum(low - routed, 0)
                last = high - routed
                w = shared_w_pool + (tl.cast(shared_w, tl.int64) + rows_of * 0) * 64
                s = shared_s_pool + (tl.cast(shared_s, tl.int64) + rows_of * 0) * 64
                t = shared_t_pool + (tl.cast(shared_t, tl.int64) + rows_of * 0) * 64
                z = me - owner_of(base + routed, grid, total)
                for q in range(0, batch, NT):
                    acc = rows_of_tile(
                        w, s, t, x + (q + token) * (x_stride8 * 8) + TOPK * (width8 * 8) + k, q + token < batch,
                        rows_of, first, last, shared_tiles,
                        SHARED, NT, ACROSS, SHARED_TILES, SHARED_RAGGED, QUAD, ASM, PDL and BATCH1,
                    )  # fmt: skip
                    if BATCH1:
                        sums += acc
                    else:
                        pairs = batch * TOPK + q + lane
                        at = part + z * stride + pairs[None, :] * rows + row[:, None]
                        tl.store(at, add_warps(acc, ACROSS), mask=(q + lane < batch)[None, :])
        if BATCH1:
            target = row[:, None] + lane[None, :] * 0
            alone = tl.broadcast_to((lane < 1)[None, :], target.shape)
            residual = tl.load(out + target, mask=alone, other=0.0)
            added = tl.sum(biases.to(tl.float32) * weights[None, :], 1)
            for start in range(rows, length, rows):
                more = slot_biases(bias, slot_of_choice, bias_stride, row, rows, start, length).to(tl.float32)
                added += tl.sum(more * weights[None, :], 1)
            acc = add_warps(sums, ACROSS)
            if high - low == tall:
                finish_batch1(
                    acc, added, residual, out, shadow, target, alone, gain, normalised, next_squares, row, SHADOW,
                    NORMALISED,
                )  # fmt: skip
            else:
                z = me - owner_of(base, grid, total)
                tl.store(part + z * rows + target, acc, mask=alone)
                if arrive(counters + row_tile, tall, high - low):
                    at = row[:, None] + tl.zeros((1, 1), tl.int32)
                    parts = parts_of(base, tall, grid, total)
                    whole = add_parts(part, rows, parts, at, at >= 0, NT, 1, UNROLL)
                    finish_batch1(
                        whole, added, residual, out, shadow, target, alone, gain, normalised, next_squares, row, SHADOW,
                        NORMALISED,
                    )  # fmt: skip
        elif arrive(counters + row_tile, tall, high - low):
            finish_down(
                part, out, shadow, bias, share, slot_of, number_of, row_tile, rows, batch, out_stride, bias_stride,
                length, turns, routed, tall, grid, total, TOPK, 8, SHARED != "", SHADOW, True,
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
