"""Dense product kernel: all matrices that read the same input, for every token, in one launch.

Grid (programs): each takes an equal share of the chunks of all matrices (`share`). Offsets into the arena are in its
alignment of 256 bytes (64 words).
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.formats import tile_columns
from moegauge.kernels.triton.device.normalised import inverse_root, load_squares, write_normalised
from moegauge.kernels.triton.device.partial_sums import add_bias, add_parts, arrive, quads, rows_of_tile, silu
from moegauge.kernels.triton.device.route import choose_for
from moegauge.kernels.triton.device.row_tile import wait_for_producers
from moegauge.kernels.triton.device.work_split import owner_of, parts_of, share_of


@triton.jit
def write_product(
    acc, out, shadow, bias, bias_f32, row, rows, column, width, q, batch, out_stride,
    bias0, length0, bias1, length1, bias2, length2,
    NT: tl.constexpr, SILU: tl.constexpr, ACCUMULATE: tl.constexpr, SHADOW: tl.constexpr,
):  # fmt: skip
    """Bias the sums of rows `row` [16] and tokens from `q` on, gate and write them to columns `column` + row of `out`;
    what was written, [16, NT].

    acc: [16, NT]. width: columns of the output view, for biases that wrap; biases 0 and 1 are bfloat16, 2 is float32.
    """
    token = q + tl.arange(0, NT)
    there = (row < rows)[:, None] & (token < batch)[None, :]
    if SILU:
        acc = silu(acc)
    acc = add_bias(acc, bias + bias0, length0, column + row, width)
    acc = add_bias(acc, bias + bias1, length1, column + row, width)
    acc = add_bias(acc, bias_f32 + bias2, length2, column + row, width)
    target = token[None, :] * out_stride + (column + row)[:, None]
    if ACCUMULATE:
        acc += tl.load(out + target, mask=there, other=0.0)
    tl.store(out + target, acc, mask=there)
    if SHADOW:
        tl.store(shadow + target, acc.to(tl.bfloat16), mask=there)
    return acc


@triton.jit
def sum_parts(part, row, rows, q, batch, count, NT: tl.constexpr, FEW: tl.constexpr, UNROLL: tl.constexpr):
    """Sum of `count` parts [batch, rows] of rows `row` [16] and FEW tokens from `q` on; [16, NT]."""
    token = q + tl.arange(0, FEW)
    there = (row < rows)[:, None] & (token < batch)[None, :]
    return add_parts(part, batch * rows, count, token[None, :] * rows + row[:, None], there, NT, FEW, UNROLL)


@triton.jit
def finish_product(
    acc,  # the sums
    out, shadow, bias, bias_f32, next_gain, normalised, next_squares,  # output, and the next normalised input
    row, rows, column, width, q, batch, out_stride,  # shape
    bias0, length0, bias1, length1, bias2, length2,  # biases
    NT: tl.constexpr, SILU: tl.constexpr, ACCUMULATE: tl.constexpr, SHADOW: tl.constexpr, NORMALISED: tl.constexpr,
):  # fmt: skip
    """The sums of 16 rows become outputs and, with NORMALISED, a single token's next normalised input."""
    acc = write_product(
        acc, out, shadow, bias, bias_f32, row, rows, column, width, q, batch, out_stride,
        bias0, length0, bias1, length1, bias2, length2, NT, SILU, ACCUMULATE, SHADOW,
    )  # fmt: skip
    if NORMALISED:
        write_normalised(acc, next_gain, normalised, next_squares, row, NT)


_INTEGERS = [
    "w0", "w1", "w2", "w3", "s0", "s1", "s2", "s3", "t0", "t1", "t2", "t3", "end0", "end1", "end2", "rows", "column",
    "width", "tiles", "depth", "batch", "x_stride8", "out_stride", "row_tiles_per_block",
    "bias0", "length0", "bias1", "length1", "bias2", "length2", "x_width", "experts", "slot_stride", "slot_count",
]  # fmt: skip


@triton.jit(do_not_specialize=_INTEGERS)
def product(
    w_pool, s_pool, t_pool,  # weights: elements, scales, matrices' own scales
    x, squares,  # input, and its root where it is still to be divided by it
    out, shadow,  # output, float32 and bfloat16
    part, counters,  # scratch: partial sums, chunks that have arrived
    bias, bias_f32,
    next_gain, normalised, next_squares,  # the next normalised input
    prior, ids, share, slot_of, slots, counts, members, distinct, slope, experts, slot_stride, slot_count,  # routing
    x_width,
    w0, w1, w2, w3, s0, s1, s2, s3, t0, t1, t2, t3, end0, end1, end2,  # where up to four matrices lie
    rows, column, width, tiles, depth, batch, x_stride8, out_stride, row_tiles_per_block,  # shape
    bias0, length0, bias1, length1, bias2, length2,  # biases
    # Compile-time: the format and how it is cut,
    FORMAT: tl.constexpr, NT: tl.constexpr, FEW: tl.constexpr, UNROLL: tl.constexpr, TILES: tl.constexpr,
    EVEN: tl.constexpr,
    # the compiler and the launch,
    QUAD: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr,
    # what follows the sums.
    GATED: tl.constexpr, SILU: tl.constexpr, ACCUMULATE: tl.constexpr, SHADOW: tl.constexpr, TILES2: tl.constexpr,
    NORMALISED: tl.constexpr, TOPK: tl.constexpr, E2: tl.constexpr,
):  # fmt: skip
    """out[b, column + i] (+)= sum_k W[i, k] x[b, k] + bias, or silu(gate) * up with GATED (w0 = gate, w1 = up),
    or silu(up) with SILU.

    w0..w3, s0.., t0..: up to four matrices of `FORMAT`, their weights, scales and tensor scales; end0..end2: the row
    tile at which the next one begins. rows: of all of them together. x: [batch, 8 x_stride8] bfloat16; row tiles of
    block b read x from column b * tiles * TILE on. part: [sides, depth, batch, rows], depth: most parts of a row tile.
    FEW, UNROLL: tokens there may be, and parts, added up at a time. TILES2 > 0: x is still to be divided by the root
    that `squares` [x_width / 16] give. NORMALISED: see `finish_product`. TOPK > 0: these are a router's outputs, and
    the last program to finish 16 of them chooses the experts (`route.choose`), among E2 in powers of two.

    The chunks of a row tile of `up` stand behind those of its gate.
    """
    COLUMNS: tl.constexpr = tile_columns(FORMAT)
    SIDES: tl.constexpr = 2 if GATED else 1
    ENDED: tl.constexpr = NT if NT < 64 else 16  # tokens finished at a time: sums of 64 do not fit beside the rest
    grid = tl.num_programs(0)
    me = tl.program_id(0)
    length = tl.cdiv(tiles, TILES)
    total = rows // 16 * SIDES * length
    begin, end = share_of(me, grid, total)
    token, k = quads(NT)
    lane = tl.arange(0, NT)
    chooses = me * 0
    if PDL:
        if begin == end:
            wait_for_producers()
    for unit in range(begin // length, tl.cdiv(end, length)):
        row_tile = unit // SIDES
        first = tl.maximum(begin - unit * length, 0)
        last = tl.minimum(end - unit * length, length)
        local = row_tile
        if GATED:
            second = unit % 2 == 1
            w = tl.where(second, w1, w0)
            s = tl.where(second, s1, s0)
            t = tl.where(second, t1, t0)
        else:
            w = tl.where(row_tile < end0, w0, tl.where(row_tile < end1, w1, tl.where(row_tile < end2, w2, w3)))
            s = tl.where(row_tile < end0, s0, tl.where(row_tile < end1, s1, tl.where(row_tile < end2, s2, s3)))
            t = tl.where(row_tile < end0, t0, tl.where(row_tile < end1, t1, tl.where(row_tile < end2, t2, t3)))
            past = tl.where(row_tile < end1, end0, tl.where(row_tile < end2, end1, end2))
            local -= tl.where(row_tile < end0, 0, past)
        block = local // row_tiles_per_block
        acc = rows_of_tile(
            w_pool + w.to(tl.int64) * 64, s_pool + s.to(tl.int64) * 64, t_pool + t.to(tl.int64) * 64,
            x + token * (x_stride8 * 8) + block * (tiles * COLUMNS) + k, token < batch,
            local, tiles, first * TILES, tl.minimum(last * TILES, tiles),
            FORMAT, NT, TILES, EVEN, QUAD, ASM, PDL,
        )  # fmt: skip
        row = row_tile * 16 + tl.arange(0, 16)
        whole = False
        if not GATED and NT < 64 and TOPK == 0:
            whole = last - first == length
        if whole:
            if TILES2 > 0:
                acc *= inverse_root(load_squares(squares, x_width, TILES2), x_width)
            finish_product(
                acc, out, shadow, bias, bias_f32, next_gain, normalised, next_squares, row, rows, column, width, 0,
                batch, out_stride, bias0, length0, bias1, length1, bias2, length2,
                NT, SILU, ACCUMULATE, SHADOW, NORMALISED,
            )  # fmt: skip
        else:
            z = me - owner_of(unit * length, grid, total)
            if GATED:
                z += unit % 2 * depth
            mask = (lane < batch)[None, :]
            tl.store(part + (z * batch + lane)[None, :] * rows + row[:, None], acc, mask=mask)
            if arrive(counters + row_tile, SIDES * length, last - first):
                count = parts_of(row_tile * SIDES * length, length, grid, total)
                second_count = parts_of((row_tile * SIDES + SIDES - 1) * length, length, grid, total)
                if TILES2 > 0:
                    loaded = load_squares(squares, x_width, TILES2)
                for q in range(0, NT, ENDED):
                    sums = sum_parts(part, row, rows, q, batch, count, ENDED, FEW, UNROLL)
                    if GATED:
                        up = part + depth * batch * rows
                        up = sum_parts(up, row, rows, q, batch, second_count, ENDED, FEW, UNROLL)
                        if TILES2 > 0:
                            inverse = inverse_root(loaded, x_width)
                            up *= inverse
                            sums *= inverse
                        sums = silu(sums) * up
                    elif TILES2 > 0:
                        sums *= inverse_root(loaded, x_width)
                    finish_product(
                        sums, out, shadow, bias, bias_f32, next_gain, normalised, next_squares, row, rows, column,
                        width, q, batch, out_stride, bias0, length0, bias1, length1, bias2, length2,
                        ENDED, SILU, ACCUMULATE, SHADOW, NORMALISED,
                    )  # fmt: skip
                if TOPK > 0:
                    if arrive(counters + rows // 16, rows // 16, 1, True):
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
    """The end of `product` alone, after `device.plain` made the parts. Grid: ceil(rows / 16)."""
    if PDL:
        wait_for_producers()
    row = tl.program_id(0) * 16 + tl.arange(0, 16)
    acc = sum_parts(part, row, rows, 0, batch, 1, NT, NT, 1)
    if GATED:
        acc = silu(acc) * sum_parts(part + batch * rows, row, rows, 0, batch, 1, NT, NT, 1)
    write_product(
        acc, out, shadow, bias, bias_f32, row, rows, column, width, 0, batch, out_stride,
        bias0, length0, bias1, length1, bias2, length2, NT, SILU, ACCUMULATE, SHADOW,
    )  # fmt: skip
