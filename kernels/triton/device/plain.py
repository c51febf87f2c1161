"""Plain product kernel, one program per output, for float32 and for shapes that do not fill tiles.

It serves matrices that do not fill tiles (a router of eight rows, odd shapes) and float32 ones, and is where the
lesson of docs/kernels-triton.md starts.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.grid import program
from moegauge.kernels.triton.device.row_tile import wait_for_producers


@triton.jit
def e4m3(code):
    """float32 of e4m3 codes (int32): the bits as bfloat16, times 2^120."""
    bits = ((code & 0x80) << 24) | ((code & 0x7F) << 20)
    return bits.to(tl.float32, bitcast=True) * 1.3292279957849159e36


@triton.jit
def e2m1(code):
    """float32 of e2m1 codes (int32): exponent and mantissa in place, times 2^126."""
    bits = ((code & 8) << 28) | ((code & 7) << 22)
    return bits.to(tl.float32, bitcast=True) * 8.507059173023462e37


@triton.jit
def weights_at(w, s, row, column, there, columns, FORMAT: tl.constexpr):
    """Elements (row, column) of a canonical matrix as float32, scaled but for nvfp4's tensor scale."""
    row = row.to(tl.int64)
    if FORMAT == "f32":
        value = tl.load(w.to(tl.pointer_type(tl.float32)) + row * columns + column, mask=there, other=0.0)
    elif FORMAT == "bf16":
        bits = tl.load(w.to(tl.pointer_type(tl.uint16)) + row * columns + column, mask=there, other=0)
        value = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif FORMAT == "fp8":
        value = e4m3(tl.load(w + row * columns + column, mask=there, other=0).to(tl.int32))
        scale = s.to(tl.pointer_type(tl.float32)) + row // 128 * ((columns + 127) // 128) + column // 128
        value *= tl.load(scale, mask=there, other=0.0)
    elif FORMAT == "int8":
        value = tl.load(w + row * columns + column, mask=there, other=0).to(tl.int8, bitcast=True).to(tl.float32)
        value *= tl.load(s.to(tl.pointer_type(tl.float32)) + row)
    else:
        byte = tl.load(w + row * ((columns + 1) // 2) + column // 2, mask=there, other=0).to(tl.int32)
        code = (byte >> (column % 2 * 4)) & 15
        if FORMAT == "mxfp4":
            scale = tl.load(s + row * ((columns + 31) // 32) + column // 32, mask=there, other=0).to(tl.int32)
            value = e2m1(code) * tl.maximum(scale << 23, 0x00400000).to(tl.float32, bitcast=True)
        elif FORMAT == "nvfp4":
            scale = tl.load(s + row * ((columns + 15) // 16) + column // 16, mask=there, other=0).to(tl.int32)
            value = e2m1(code) * e4m3(scale)
        else:
            GROUP: tl.constexpr = 32 if FORMAT == "int4" else 128
            at = s.to(tl.pointer_type(tl.uint16)) + row * ((columns + GROUP - 1) // GROUP) + column // GROUP
            scale = tl.load(at, mask=there, other=0).to(tl.uint32) << 16
            value = (code - 8).to(tl.float32) * scale.to(tl.float32, bitcast=True)
    return value


@triton.jit(
    do_not_specialize=[
        "w", "s", "t", "w_stride", "s_stride", "t_stride", "columns", "rows_per_block", "height", "row_offset",
        "part_first", "x_stride", "x_inner",
    ]
)  # fmt: skip
def plain(
    w_pool, s_pool, t_pool, x, part, slot_of, w, s, t, w_stride, s_stride, t_stride, columns, rows_per_block, height,
    row_offset, part_first, x_stride, x_inner,
    FORMAT: tl.constexpr, CHOICES: tl.constexpr, ROUTED: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr, at=None,
):  # fmt: skip
    """part[part_first + p, row_offset + row] = sum_k W[row, k] x[p // CHOICES, p % CHOICES, k]. Grid (rows, pairs).

    Offsets and strides of weights in 256 bytes. ROUTED: W is the matrix in slot slot_of[p]. height: rows of `part`.
    """
    if PDL:
        wait_for_producers()
    row = program(at, 0)
    p = program(at, 1)
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
    if FORMAT == "nvfp4":
        total *= tl.load(t_pool + (tl.cast(t, tl.int64) + slot * t_stride) * 64)
    tl.store(part + (part_first + p) * height + row_offset + row, total)
