"""Traits of each weight format on the GPU (element, scale, block), and its packed words as weights and scales.

A format's name is asked for here alone; the other kernels ask its traits.

A tile is 16 rows of 512 bytes (`moegauge.kernels.triton.lowering.layout`), multiplied in steps of 16 columns.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.decode import (
    bf16_rows,
    e2m1,
    e4m3,
    e4m3_rows,
    e8m0_rows,
    pairs_fp4,
    pairs_fp8,
    pairs_int4,
    pairs_int8,
    rows_scale,
)


@triton.constexpr_function
def traits(FORMAT):
    """(type of an element, type of a scale, rows and columns of the block that shares one, whether the matrix has a
    scale of its own); 0 columns are a whole row.

    The rows of `moegauge.formats.FORMATS`, written out: Triton's cache of compiled kernels sees the source of what a
    kernel calls and no table outside it. A test compares the two.
    """
    return {
        "f32": ("f32", "", 1, 0, False),
        "bf16": ("bf16", "", 1, 0, False),
        "fp8": ("e4m3", "f32", 128, 128, False),
        "int8": ("int8", "f32", 1, 0, False),
        "int4": ("int4", "bf16", 1, 32, False),
        "int4_g128": ("int4", "bf16", 1, 128, False),
        "mxfp4": ("e2m1", "e8m0", 1, 32, False),
        "mxfp8": ("e4m3", "e8m0", 1, 32, False),
        "nvfp4": ("e2m1", "e4m3", 1, 16, True),
    }[FORMAT]


@triton.constexpr_function
def element(FORMAT):
    """The type of an element."""
    return traits(FORMAT)[0]


@triton.constexpr_function
def scale(FORMAT):
    """The type of a scale, "" without one."""
    return traits(FORMAT)[1]


@triton.constexpr_function
def group(FORMAT):
    """Columns that share a scale; 0 where all do, or there is none."""
    return traits(FORMAT)[3]


@triton.constexpr_function
def tile_columns(FORMAT):
    """Columns of a tile."""
    return {"f32": 8, "bf16": 16, "e4m3": 32, "int8": 32, "int4": 64, "e2m1": 64}[element(FORMAT)]


@triton.constexpr_function
def scale_tiles(FORMAT):
    """Tiles whose scales are loaded at once; 0 where the sums of a row tile need none.

    A block of 128 rows has one float32. Else a word for each row pair (r, r + 8) holds two bytes or four: two groups of
    1-byte scales, one group of bfloat16.
    """
    kind, rows, columns = traits(FORMAT)[1:4]
    if rows == 1 and kind in ("e8m0", "e4m3"):
        columns *= 2
    return max(columns, tile_columns(FORMAT)) // tile_columns(FORMAT) if columns else 0


@triton.constexpr_function
def scale_words(FORMAT):
    """Words of the scales that are loaded at once."""
    kind, rows, columns = traits(FORMAT)[1:4]
    if not columns or rows > 1:
        return 1 if columns else 0
    groups = scale_tiles(FORMAT) * tile_columns(FORMAT) // columns
    return groups * 16 * (2 if kind == "bf16" else 1) // 4


@triton.constexpr_function
def sum_tiles(FORMAT):
    """Tiles that are summed before their scale is applied; 0 where it is applied inside the tile, or there is none."""
    return group(FORMAT) // tile_columns(FORMAT) if group(FORMAT) > tile_columns(FORMAT) else 0


@triton.constexpr_function
def sum_steps(FORMAT):
    """Steps of a tile that are summed before their scale is applied; 0 where that is not done inside the tile."""
    return group(FORMAT) // 16 if 0 < group(FORMAT) <= tile_columns(FORMAT) else 0


@triton.constexpr_function
def first_group(FORMAT, START):
    """The group that column START of a chunk lies in, of those whose scales were loaded with it."""
    return START % (scale_tiles(FORMAT) * tile_columns(FORMAT)) // group(FORMAT)


@triton.constexpr_function
def scales_row(FORMAT):
    """Whether every row has one scale, for its whole sum."""
    return scale(FORMAT) != "" and group(FORMAT) == 0


@triton.constexpr_function
def scales_matrix(FORMAT):
    """Whether the matrix has a scale of its own."""
    return traits(FORMAT)[4]


@triton.jit
def scales_before(row_tile, tiles, FORMAT: tl.constexpr):
    """Words before the scales of row tile `row_tile` in a matrix of `tiles` column tiles."""
    row_tile = tl.cast(row_tile, tl.int64)
    ROWS: tl.constexpr = (traits(FORMAT)[2] + 15) // 16
    if scale_tiles(FORMAT) == 0:
        words = row_tile * 0
    else:
        words = row_tile // ROWS * tl.cdiv(tiles, scale_tiles(FORMAT)) * scale_words(FORMAT)
    return words


@triton.jit
def pairs(w, FORMAT: tl.constexpr, ASM: tl.constexpr):
    """The weights of a word: a pair of bfloat16 for every two columns that a lane has of each step."""
    if element(FORMAT) == "e4m3":
        out = pairs_fp8(w, ASM)
    elif element(FORMAT) == "int8":
        out = pairs_int8(w, ASM)
    elif element(FORMAT) == "int4":
        out = pairs_int4(w, ASM)
    else:
        out = pairs_fp4(w, ASM)
    return out


@triton.jit
def row_scales(s, FORMAT: tl.constexpr, GROUP: tl.constexpr, NT: tl.constexpr, ASM: tl.constexpr):
    """Scales of group GROUP of those loaded at once, `s` [32 W] or [32 W, 2], for the sums [W, 16, NT]."""
    W: tl.constexpr = s.shape[0] // 32
    if scale(FORMAT) == "f32":
        block = tl.reshape(s, (W, 8, 4)).to(tl.float32, bitcast=True)
        out = rows_scale(block, block, NT)
    elif scale(FORMAT) == "e8m0":
        out = e8m0_rows(tl.reshape(s, (W, 8, 4)), GROUP, NT)
    elif scale_words(FORMAT) == 8:
        out = bf16_rows(tl.reshape(s, (W, 8, 4)), NT)
    else:
        s0, s1 = tl.split(tl.reshape(s, (W, 8, 4, 2)))
        if scale(FORMAT) == "bf16":
            out = bf16_rows(s0 if GROUP == 0 else s1, NT)
        else:
            out = e4m3_rows(s0 if GROUP < 2 else s1, GROUP % 2, NT, ASM)
    return out


@triton.jit
def element_at(w, row, column, there, columns, FORMAT: tl.constexpr):
    """Elements (row, column) of a canonical matrix as float32, not scaled."""
    if element(FORMAT) == "f32":
        value = tl.load(w.to(tl.pointer_type(tl.float32)) + row * columns + column, mask=there, other=0.0)
    elif element(FORMAT) == "bf16":
        bits = tl.load(w.to(tl.pointer_type(tl.uint16)) + row * columns + column, mask=there, other=0)
        value = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif element(FORMAT) == "e4m3":
        value = e4m3(tl.load(w + row * columns + column, mask=there, other=0).to(tl.int32))
    elif element(FORMAT) == "int8":
        value = tl.load(w + row * columns + column, mask=there, other=0).to(tl.int8, bitcast=True).to(tl.float32)
    else:
        byte = tl.load(w + row * ((columns + 1) // 2) + column // 2, mask=there, other=0).to(tl.int32)
        code = (byte >> (column % 2 * 4)) & 15
        if element(FORMAT) == "e2m1":
            value = e2m1(code)
        else:
            value = (code - 8).to(tl.float32)
    return value


@triton.jit
def scale_at(s, row, column, there, columns, FORMAT: tl.constexpr):
    """Scales of elements (row, column) of a canonical matrix that has some, as float32."""
    if scales_row(FORMAT):
        value = tl.load(s.to(tl.pointer_type(tl.float32)) + row)
    else:
        at = row // traits(FORMAT)[2] * tl.cdiv(columns, group(FORMAT)) + column // group(FORMAT)
        if scale(FORMAT) == "f32":
            value = tl.load(s.to(tl.pointer_type(tl.float32)) + at, mask=there, other=0.0)
        elif scale(FORMAT) == "bf16":
            bits = tl.load(s.to(tl.pointer_type(tl.uint16)) + at, mask=there, other=0).to(tl.uint32)
            value = (bits << 16).to(tl.float32, bitcast=True)
        else:
            code = tl.load(s + at, mask=there, other=0).to(tl.int32)
            if scale(FORMAT) == "e8m0":
                value = tl.maximum(code << 23, 0x00400000).to(tl.float32, bitcast=True)
            else:
                value = e4m3(code)
    return value


@triton.jit
def weights_at(w, s, row, column, there, columns, FORMAT: tl.constexpr):
    """Elements (row, column) of a canonical matrix as float32, scaled but for the matrix's own scale."""
    row = row.to(tl.int64)
    value = element_at(w, row, column, there, columns, FORMAT)
    if scale(FORMAT) != "":
        value *= scale_at(s, row, column, there, columns, FORMAT)
    return value
