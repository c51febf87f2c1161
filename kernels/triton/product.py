"""Products of every token with dense matrices, one launch for all that read the same input.

Grid (row tiles of all matrices, parts). Offsets into the arena are in its alignment of 256 bytes (64 words).
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.grid import program
from moegauge.kernels.triton.matrix import add_bias, arrive, quads, rows_of_tile, silu
from moegauge.kernels.triton.span import wait_for_producers


@triton.jit
def finish_product(
    part, out, shadow, bias, bias_f32, rows_first, rows, column, width, splits, batch, out_stride,
    bias0, length0, bias1, length1, bias2, length2,
    NT: tl.constexpr, GATED: tl.constexpr, SILU: tl.constexpr,
    ACCUMULATE: tl.constexpr, SHADOW: tl.constexpr,
):  # fmt: skip
    """Add up the parts of 16 rows, bias them, gate them, and write them to columns `column` + row of `out`.

    part: [splits or 2 splits, batch, rows] float32. width: columns of the output view, for biases that wrap; biases
    0 and 1 are bfloat16, 2 is float32.
    """
    row = rows_first + tl.arange(0, 16)
    token = tl.arange(0, NT)
    there = (row < rows)[:, None] & (token < batch)[None, :]
    at = token[None, :] * rows + row[:, None]
    acc = tl.zeros((16, NT), tl.float32)
    for z in range(0, splits):
        acc += tl.load(part + z * batch * rows + at, mask=there, other=0.0, cache_modifier=".cg")
    if GATED:
        up = tl.zeros((16, NT), tl.float32)
        for z in range(splits, 2 * splits):
            up += tl.load(part + z * batch * rows + at, mask=there, other=0.0, cache_modifier=".cg")
        acc = silu(acc) * up
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


_INTEGERS = [
    "w0", "w1", "w2", "w3", "s0", "s1", "s2", "s3", "t0", "t1", "t2", "t3", "end0", "end1", "end2", "rows", "column",
    "width", "tiles", "tiles_per_split", "splits", "batch", "x_stride8", "out_stride", "row_tiles_per_block",
    "bias0", "length0", "bias1", "length1", "bias2", "length2",
]  # fmt: skip


@triton.jit(do_not_specialize=_INTEGERS)
def product(
    w_pool, s_pool, t_pool, x, out, shadow, part, counters, bias, bias_f32,
    w0, w1, w2, w3, s0, s1, s2, s3, t0, t1, t2, t3, end0, end1, end2,
    rows, column, width, tiles, tiles_per_split, splits, batch, x_stride8, out_stride, row_tiles_per_block,
    bias0, length0, bias1, length1, bias2, length2,
    FORMAT: tl.constexpr, NT: tl.constexpr, TILES: tl.constexpr, EVEN: tl.constexpr, QUAD: tl.constexpr,
    ASM: tl.constexpr, PDL: tl.constexpr, GATED: tl.constexpr, SILU: tl.constexpr,
    ACCUMULATE: tl.constexpr, SHADOW: tl.constexpr, at=None,
):  # fmt: skip
    """out[b, column + i] (+)= sum_k W[i, k] x[b, k] + bias, or silu(gate) * up with GATED (w0 = gate, w1 = up),
    or silu(up) with SILU.

    w0..w3, s0.., t0..: up to four matrices of `FORMAT`, their weights, scales and tensor scales; end0..end2: the row
    tile at which the next one begins. rows: of all of them together. x: [batch, 8 x_stride8] bfloat16; row tiles of
    block b read x from column b * tiles * TILE on.
    """
    COLUMNS: tl.constexpr = 16 if FORMAT == "bf16" else (32 if FORMAT == "fp8" or FORMAT == "int8" else 64)
    row_tile = program(at, 0)
    z = program(at, 1)
    local = row_tile
    if GATED:
        split = z % splits
        second = z >= splits
        w = tl.where(second, w1, w0)
        s = tl.where(second, s1, s0)
        t = tl.where(second, t1, t0)
    else:
        split = z
        w = tl.where(row_tile < end0, w0, tl.where(row_tile < end1, w1, tl.where(row_tile < end2, w2, w3)))
        s = tl.where(row_tile < end0, s0, tl.where(row_tile < end1, s1, tl.where(row_tile < end2, s2, s3)))
        t = tl.where(row_tile < end0, t0, tl.where(row_tile < end1, t1, tl.where(row_tile < end2, t2, t3)))
        begin = tl.where(row_tile < end0, 0, tl.where(row_tile < end1, end0, tl.where(row_tile < end2, end1, end2)))
        local = row_tile - begin
    token, k = quads(NT)
    block = local // row_tiles_per_block
    first = split * tiles_per_split
    acc = rows_of_tile(
        w_pool + w.to(tl.int64) * 64, s_pool + s.to(tl.int64) * 64, t_pool + t.to(tl.int64) * 64,
        x + token * (x_stride8 * 8) + block * (tiles * COLUMNS) + k, token < batch,
        local, tiles, first, tl.minimum(first + tiles_per_split, tiles),
        FORMAT, NT, TILES, EVEN, QUAD, ASM, PDL,
    )  # fmt: skip
    row = row_tile * 16 + tl.arange(0, 16)
    tokens = tl.arange(0, NT)
    at = (z * batch + tokens)[None, :] * rows + row[:, None]
    tl.store(part + at, acc, mask=(tokens < batch)[None, :])
    if arrive(counters + row_tile, 2 * splits if GATED else splits):
        finish_product(
            part, out, shadow, bias, bias_f32, row_tile * 16, rows, column, width, splits, batch, out_stride,
            bias0, length0, bias1, length1, bias2, length2, NT, GATED, SILU, ACCUMULATE, SHADOW,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "rows", "column", "width", "splits", "batch", "out_stride",
        "bias0", "length0", "bias1", "length1", "bias2", "length2",
    ]
)  # fmt: skip
def product_finish(
    part, out, shadow, bias, bias_f32, rows, column, width, splits, batch, out_stride,
    bias0, length0, bias1, length1, bias2, length2,
    NT: tl.constexpr, PDL: tl.constexpr, GATED: tl.constexpr, SILU: tl.constexpr,
    ACCUMULATE: tl.constexpr, SHADOW: tl.constexpr, at=None,
):  # fmt: skip
    """The end of `product` alone, after `moegauge.kernels.triton.plain` made the parts. Grid: ceil(rows / 16)."""
    if PDL:
        wait_for_producers()
    finish_product(
        part, out, shadow, bias, bias_f32, program(at, 0) * 16, rows, column, width, splits, batch, out_stride,
        bias0, length0, bias1, length1, bias2, length2, NT, GATED, SILU, ACCUMULATE, SHADOW,
    )  # fmt: skip
