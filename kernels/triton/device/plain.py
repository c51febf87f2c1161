"""Plain product kernel, one program per output, for float32 and for shapes that do not fill tiles.

It serves matrices that do not fill tiles (a router of eight rows, odd shapes) and float32 ones, and is where the
lesson of docs/kernels-triton.md starts.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.formats import scales_matrix, weights_at
from moegauge.kernels.triton.device.row_tile import wait_for_producers


@triton.jit(
    do_not_specialize=[
        "w", "s", "t", "w_stride", "s_stride", "t_stride", "columns", "rows_per_block", "height", "row_offset",
        "part_first", "x_stride", "x_inner",
    ]
)  # fmt: skip
def plain(
    w_pool, s_pool, t_pool,  # weights: elements, scales, matrices' own scales
    x, part, slot_of,  # input, output, routing
    w, s, t, w_stride, s_stride, t_stride,  # where the matrices lie
    columns, rows_per_block, height, row_offset, part_first, x_stride, x_inner,  # shape
    FORMAT: tl.constexpr, CHOICES: tl.constexpr, ROUTED: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """part[part_first + p, row_offset + row] = sum_k W[row, k] x[p // CHOICES, p % CHOICES, k]. Grid (rows, pairs).

    Offsets and strides of weights in 256 bytes. ROUTED: W is the matrix in slot slot_of[p]. height: rows of `part`.
    """
    if PDL:
        wait_for_producers()
    row = tl.program_id(0)
    p = tl.program_id(1)
    slot = tl.load(slot_of + p).to(tl.int64) if ROUTED else p.to(tl.int64) * 0
    w_pool += (tl.cast(w, tl.int64) + slot * w_stride) * 256
    s_pool += (tl.cast(s, tl.int64) + slot * s_stride) * 256
    x += p // CHOICES * x_stride + p % CHOICES * x_inner + row // rows_per_block * columns
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        there = column < columns
        value = weights_at(w_pool, s_pool, row, column, there, columns, FORMAT)
        total += value * tl.load(x + column, mask=there, other=0.0).to(tl.float32)
    total = tl.sum(total, 0)
    if scales_matrix(FORMAT):
        total *= tl.load(t_pool + (tl.cast(t, tl.int64) + slot * t_stride) * 64)
    tl.store(part + (part_first + p) * height + row_offset + row, total)
