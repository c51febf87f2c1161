"""Small kernels between products: RMS norm into bfloat16, embedding rows, recurrent state."""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.formats import scales_matrix, weights_at
from moegauge.kernels.triton.device.row_tile import wait_for_producers


@triton.jit(do_not_specialize=["width", "x_stride", "out_stride"])
def prepare(
    x, gain, out, width, x_stride, out_stride,
    NORM: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[b] = bfloat16(x[b] / sqrt(mean(x[b]^2) + 1e-6) * gain), or bfloat16(x[b]) without NORM.

    Grid (tokens, parts): every part adds up all squares and writes its own blocks of columns.
    """
    if PDL:
        wait_for_producers()
    x += tl.program_id(0) * x_stride
    out += tl.program_id(0) * out_stride
    column = tl.arange(0, BLOCK)
    inverse = 1.0
    if NORM:
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, width, BLOCK):
            value = tl.load(x + start + column, mask=start + column < width, other=0.0)
            total += value * value
        inverse = 1.0 / tl.sqrt(tl.sum(total, 0) / width + 1e-6)
    for start in range(tl.program_id(1) * BLOCK, width, tl.num_programs(1) * BLOCK):
        there = start + column < width
        value = tl.load(x + start + column, mask=there, other=0.0) * inverse
        if NORM:
            value *= tl.load(gain + start + column, mask=there, other=0.0).to(tl.float32)
        tl.store(out + start + column, value.to(tl.bfloat16), mask=there)


@triton.jit(do_not_specialize=["w", "s", "t", "columns", "out_stride"])
def embed(
    w_pool, s_pool, t_pool, out, w, s, t, columns, out_stride,
    FORMAT: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out[b] = row b of a canonical table. Grid (tokens, ceil(columns / BLOCK))."""
    if PDL:
        wait_for_producers()
    b = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < columns
    at = tl.cast(w, tl.int64) * 256
    value = weights_at(w_pool + at, s_pool + tl.cast(s, tl.int64) * 256, b, column, there, columns, FORMAT)
    if scales_matrix(FORMAT):
        value *= tl.load(t_pool + tl.cast(t, tl.int64) * 64)
    tl.store(out + b * out_stride + column, value, mask=there)


@triton.jit(do_not_specialize=["elements", "x_width", "x_stride", "out_width", "out_stride"])
def state(
    pool, x, out, elements, x_width, x_stride, out_width, out_stride, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """s <- (s + x[i mod x_width]) / 2; out[c] = mean of the new s with i mod out_width = c.

    Grid (tokens, ceil(out_width / BLOCK)); pool: [tokens, elements] float32.
    """
    if PDL:
        wait_for_producers()
    b = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pool += b.to(tl.int64) * elements
    total = tl.zeros((BLOCK,), tl.float32)
    number = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, elements, out_width):
        index = start + column
        there = (column < out_width) & (index < elements)
        value = tl.load(pool + index, mask=there, other=0.0)
        value = 0.5 * value + 0.5 * tl.load(x + b * x_stride + index % x_width, mask=there, other=0.0)
        tl.store(pool + index, value, mask=there)
        total += tl.where(there, value, 0.0)
        number += tl.where(there, 1.0, 0.0)
    tl.store(out + b * out_stride + column, total / tl.maximum(number, 1.0), mask=column < out_width)
