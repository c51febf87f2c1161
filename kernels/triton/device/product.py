"""Dense product kernel: all matrices that read the same input, for every token, in one launch.

Grid (programs): each takes an equal share of the turns of all matrices (`work_split`). Offsets into the arena are in
its alignment of 256 bytes (64 words).
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.formats import tile_columns
from moegauge.kernels.triton.device.normalised import inverse_root, load_squares, write_normalised
from moegauge.kernels.triton.device.partial_sums import add_parts, arrive, bias_rows, first_bias, silu, split_sides
from moegauge.kernels.triton.device.route import choose_for
from moegauge.kernels.triton.device.row_tile import WARPS, add_warps, beside, quads, rows_of_tile, wait_for_producers
from moegauge.kernels.triton.device.work_split import owner_of, parts_of, share_of


@triton.jit
def write_product(
    sums, bias, residual, out, shadow, target, there, GATED: tl.constexpr, SILU: tl.constexpr, SHADOW: tl.constexpr
):
    """Gate sums [rows, NT] ([2 rows, NT] with GATED), add bias [rows] and residual, write them to `target` of `out`;
    what was written, [rows, NT]."""
    if GATED:
        gate, up = split_sides(sums)
        acc = silu(gate) * up
    elif SILU:
        acc = silu(sums)
    else:
        acc = sums
    acc += bias[:, None] + residual
    tl.store(out + target, acc, mask=there)
    if SHADOW:
        tl.store(shadow + target, acc.to(tl.bfloat16), mask=there)
    return acc


@triton.jit
def finish_product(
    sums, roots, x_width, added, residual, out, shadow, target, there, gain, normalised, next_squares, row,
    GATED: tl.constexpr, SILU: tl.constexpr, SHADOW: tl.constexpr, TILES2: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """Sums of a unit become outputs and, with NORMALISED, a single token's next normalised input."""
    if TILES2 > 0:
        sums *= inverse_root(roots, x_width)
    done = write_product(sums, added, residual, out, shadow, target, there, GATED, SILU, SHADOW)
    if NORMALISED:
        write_normalised(done, gain, normalised, next_squares, row)


@triton.jit
def first_biases(bias, bias_f32, column, bias0, length0, bias1, length1, bias2, length2):
    """The first of each of a product's biases in columns `column` of its output: two of bfloat16, one of float32."""
    b0 = first_bias(bias + bias0, length0, column)
    b1 = first_bias(bias + bias1, length1, column)
    return b0, b1, first_bias(bias_f32 + bias2, length2, column)


@triton.jit
def add_biases(b0, b1, b2, bias, bias_f32, column, width, bias0, length0, bias1, length1, bias2, length2):
    """The sum of a product's biases in columns `column` of its output of `width`; `first_biases` are there."""
    acc = bias_rows(b0, bias + bias0, length0, column, width) + bias_rows(b1, bias + bias1, length1, column, width)
    return acc + bias_rows(b2, bias_f32 + bias2, length2, column, width)


@triton.jit
def load_residual(out, target, there, ACCUMULATE: tl.constexpr):
    """What the output held, to be added to."""
    if ACCUMULATE:
        held = tl.load(out + target, mask=there, other=0.0)
    else:
        held = tl.zeros(target.shape, tl.float32)
    return held


# Triton would compile a kernel anew where one of these happens to be 1 or a multiple of 16; none gains by being known.
_INTEGERS = [
    "w0", "w1", "w2", "w3", "s0", "s1", "s2", "s3", "t0", "t1", "t2", "t3", "end0", "end1", "end2", "rows", "column",
    "width", "tiles", "batch", "x_stride8", "out_stride", "row_tiles_per_block", "bias0", "length0", "bias1",
    "length1", "bias2", "length2", "x_width", "experts", "slot_stride", "slot_count",
]  # fmt: skip


@triton.jit(do_not_specialize=_INTEGERS)
def product(
    w_pool, s_pool, t_pool,  # weights: elements, scales, matrices' own scales
    x, squares,  # input, and its root where it is still to be divided by it
    out, shadow,  # output, float32 and bfloat16
    part, counters,  # scratch: partial sums, turns that have arrived
    bias, bias_f32,
    next_gain, normalised, next_squares,  # the next normalised input
    prior, ids, share, slot_of, slots, counts, members, distinct, slope, experts, slot_stride, slot_count,  # routing
    x_width,
    w0, w1, w2, w3, s0, s1, s2, s3, t0, t1, t2, t3, end0, end1, end2,  # where up to four matrices lie
    rows, column, width, tiles, batch, x_stride8, out_stride, row_tiles_per_block,  # shape
    bias0, length0, bias1, length1, bias2, length2,  # biases
    # Compile-time: the format and how it is cut,
    FORMAT: tl.constexpr, NT: tl.constexpr, FEW: tl.constexpr, UNROLL: tl.constexpr, ACROSS: tl.constexpr,
    TILES: tl.constexpr, RAGGED: tl.constexpr,
    # the compiler and the launch,
    QUAD: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr,
    # what follows the sums.
    GATED: tl.constexpr, SILU: tl.constexpr, ACCUMULATE: tl.constexpr, SHADOW: tl.constexpr, TILES2: tl.constexpr,
    NORMALISED: tl.constexpr, TOPK: tl.constexpr, E2: tl.constexpr,
):  # fmt: skip
    """out[b, column + i] (+)= sum_k W[i, k] x[b, k] + bias, or silu(gate) * up with GATED (w0 = gate, w1 = up),
    or silu(up) with SILU.

    w0..w3, s0.., t0..: up to four matrices of `FORMAT`, their weights, scales and tensor scales; end0..end2: the row
    tile at which the next one begins. rows: of all of them together, of one side with GATED. x: [batch, 8 x_stride8]
    bfloat16; row tiles of block b read x from column b * tiles * TILE on. part: [parts, batch, sides * rows]. A unit is
    the row tiles that a program's warps have side by side (`row_tile`), with GATED one of the gate and its of the up.
    FEW, UNROLL: tokens there may be, and parts, added up at a time. TILES2 > 0: x is still to be divided by the root
    that `squares` [x_width / 16] give. NORMALISED: of a single token, the next normalised input is written too
    (`normalised`). TOPK > 0: these are a router's outputs, and the last program to finish some of them chooses the
    experts (`route.choose_for`), among E2 in powers of two.
    """
    COLUMNS: tl.constexpr = tile_columns(FORMAT)
    SIDES: tl.constexpr = 2 if GATED else 1
    DOWN: tl.constexpr = WARPS // ACROSS // SIDES  # row tiles of the output in a unit
    grid = tl.num_programs(0)
    me = tl.program_id(0)
    length = tl.cdiv(tiles, TILES * ACROSS)
    units = rows // (16 * DOWN)
    total = units * length
    begin, end = share_of(me, grid, total)
    token, k = quads(NT)
    lane = tl.arange(0, NT)
    i = tl.arange(0, 16 * DOWN * SIDES)
    chooses = me * 0
    if PDL:
        if begin == end:
            wait_for_producers()
    for unit in range(begin // length, tl.cdiv(end, length)):
        first = tl.maximum(begin - unit * length, 0)
        last = tl.minimum(end - unit * length, length)
        top = unit * DOWN
        if GATED:
            second = beside(ACROSS) == 1
            w = tl.where(second, w1, w0)
            s = tl.where(second, s1, s0)
            t = tl.where(second, t1, t0)
            local = beside(ACROSS) * 0 + top
        else:
            past = tl.where(top < end1, end0, tl.where(top < end2, end1, end2))
            local = beside(ACROSS) + (top - tl.where(top < end0, 0, past))
            w = tl.where(top < end0, w0, tl.where(top < end1, w1, tl.where(top < end2, w2, w3))) + local * 0
            s = tl.where(top < end0, s0, tl.where(top < end1, s1, tl.where(top < end2, s2, s3))) + local * 0
            t = tl.where(top < end0, t0, tl.where(top < end1, t1, tl.where(top < end2, t2, t3))) + local * 0
        row = top * 16 + tl.arange(0, 16 * DOWN)
        # What does not depend on the sums is asked for before them: it comes from memory that nobody has touched.
        b0, b1, b2 = first_biases(bias, bias_f32, column + row, bias0, length0, bias1, length1, bias2, length2)
        gain = tl.load(next_gain + row) if NORMALISED else row
        block = top // row_tiles_per_block
        acc = rows_of_tile(
            w_pool + w.to(tl.int64) * 64, s_pool + s.to(tl.int64) * 64, t_pool + t.to(tl.int64) * 64,
            x + token * (x_stride8 * 8) + block * (tiles * COLUMNS) + k, token < batch,
            local, first, last, tiles, FORMAT, NT, ACROSS, TILES, RAGGED, QUAD, ASM, PDL,
        )  # fmt: skip
        target = lane[None, :] * out_stride + (column + row)[:, None]
        there = tl.broadcast_to((lane < batch)[None, :], target.shape)
        residual = load_residual(out, target, there, ACCUMULATE)
        roots = load_squares(squares, x_width, TILES2)
        added = add_biases(
            b0, b1, b2, bias, bias_f32, column + row, width, bias0, length0, bias1, length1, bias2, length2
        )  # fmt: skip
        sums = add_warps(acc, ACROSS)
        # Two ways to the end, not one: Triton's compiler (3.7) fails on sums that are one of two things.
        if last - first == length:
            finish_product(
                sums, roots, x_width, added, residual, out, shadow, target, there, gain, normalised, next_squares, row,
                GATED, SILU, SHADOW, TILES2, NORMALISED,
            )  # fmt: skip
            if TOPK > 0:
                if arrive(counters + units, units, 1, True):
                    chooses += 1
        else:
            z = me - owner_of(unit * length, grid, total)
            place = i // (16 * DOWN) * rows + top * 16 + i % (16 * DOWN)
            mask = tl.broadcast_to((lane < batch)[None, :], sums.shape)
            tl.store(part + (z * batch + lane)[None, :] * (SIDES * rows) + place[:, None], sums, mask=mask)
            if arrive(counters + unit, length, last - first):
                few = tl.arange(0, FEW)
                at = few[None, :] * (SIDES * rows) + place[:, None]
                seen = tl.broadcast_to((few < batch)[None, :], at.shape)
                count = parts_of(unit * length, length, grid, total)
                whole = add_parts(part, batch * SIDES * rows, count, at, seen, NT, FEW, UNROLL)
                finish_product(
                    whole, roots, x_width, added, residual, out, shadow, target, there, gain, normalised, next_squares,
                    row, GATED, SILU, SHADOW, TILES2, NORMALISED,
                )  # fmt: skip
                if TOPK > 0:
                    if arrive(counters + units, units, 1, True):
                        chooses += 1
    if TOPK > 0:
        if chooses > 0:
            choose_for(
                0, out + column, prior, ids, share, slot_of, slots, counts, members, distinct, ids, experts, out_stride,
                slot_stride, slot_count, slope, TOPK, E2, True,
            )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "rows", "column", "width", "batch", "out_stride", "bias0", "length0", "bias1", "length1", "bias2", "length2",
    ]
)  # fmt: skip
def product_finish(
    part, out, shadow, bias, bias_f32, rows, column, width, batch, out_stride,
    bias0, length0, bias1, length1, bias2, length2,
    NT: tl.constexpr, PDL: tl.constexpr, GATED: tl.constexpr, SILU: tl.constexpr,
    ACCUMULATE: tl.constexpr, SHADOW: tl.constexpr,
):  # fmt: skip
    """The end of `product` alone, after `device.plain` made the parts, [sides, batch, rows]. Grid: ceil(rows / 16)."""
    if PDL:
        wait_for_producers()
    SIDES: tl.constexpr = 2 if GATED else 1
    i = tl.arange(0, 16 * SIDES)
    lane = tl.arange(0, NT)
    row = tl.program_id(0) * 16 + tl.arange(0, 16)
    place = tl.program_id(0) * 16 + i % 16
    seen = (place < rows)[:, None] & (lane < batch)[None, :]
    sums = tl.load(part + (i // 16 * batch * rows + place)[:, None] + (lane * rows)[None, :], mask=seen, other=0.0)
    b0, b1, b2 = first_biases(bias, bias_f32, column + row, bias0, length0, bias1, length1, bias2, length2)
    added = add_biases(b0, b1, b2, bias, bias_f32, column + row, width, bias0, length0, bias1, length1, bias2, length2)
    target = lane[None, :] * out_stride + (column + row)[:, None]
    there = (row < rows)[:, None] & (lane < batch)[None, :]
    residual = load_residual(out, target, there, ACCUMULATE)
    write_product(sums, added, residual, out, shadow, target, there, GATED, SILU, SHADOW)
