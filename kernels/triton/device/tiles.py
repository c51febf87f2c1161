"""Tensor-core product of a packed tile; the group scales (E8M0, E4M3, bfloat16) are applied to its sums here.

Legend: a tile is 16 rows x TILE columns in 512 bytes (64, 32 or 16 columns for 4, 8 or 16 bits), one 16-byte load of
each lane. Lane (r, c) of the 8 x 4 lanes holds rows r and r + 8 (axis h) and, in each step of 16 columns, the columns
4 c .. 4 c + 3: what `mma.m16n8k16` wants of it, so the words go from the load to the tensor core without a shuffle.
CHUNK = 4 tiles are in flight while 4 are multiplied.

The tensor core multiplies bfloat16 exactly and adds in float32. Scales touch the partial sum of their group, once.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.decode import unpack
from moegauge.kernels.triton.device.formats import first_group, pairs, row_scales, sum_steps, tile_columns


@triton.jit
def dot16(even, odd, x, acc, NT: tl.constexpr, QUAD: tl.constexpr, ASM: tl.constexpr):
    """acc + A x for one step of 16 columns.

    even, odd: [W, 8, 4, 2] pairs (columns 4c, 4c+1 and 4c+2, 4c+3 of rows r + 8 h), a tile of its own for each of W
    warps. x: [W * NT * 4, 4] bfloat16. acc: [W, 16, NT].
    The order of the 16 columns is free so long as both operands share it. QUAD picks the one in which Triton's layout
    of a dot operand gives a lane its own four columns (four neighbours up to 3.7, two and two from 3.8), so that no
    data moves. The other order is correct but slower.
    """
    W: tl.constexpr = even.shape[0]
    a = tl.join(unpack(even), unpack(odd))  # w r c h p q
    b = tl.reshape(x, (W, NT, 4, 2, 2))  # w n c q p
    if QUAD:
        a = tl.permute(a, (0, 3, 1, 2, 5, 4))  # w h r (c q p)
        b = tl.permute(b, (0, 2, 3, 4, 1))
    else:
        a = tl.permute(a, (0, 3, 1, 5, 2, 4))  # w h r (q c p)
        b = tl.permute(b, (0, 3, 2, 4, 1))
    a = tl.reshape(a, (W, 16, 16))
    b = tl.reshape(b, (W, 16, NT))
    if not ASM:  # the interpreter multiplies the bits of bfloat16 as integers (3.6 to 3.9)
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def load_x(x, limit, live, OFFSET: tl.constexpr, RAGGED: tl.constexpr):
    """Columns OFFSET .. + 16 of every token, [W * NT * 4, 4]. Absent tokens may hold anything: a column of the product
    sees only its own token. Where a warp has no weights of its own they are zeros, from column `limit` on."""
    if RAGGED == 0:
        values = tl.load(x + OFFSET, mask=live)
    elif RAGGED == 1:
        values = tl.load(x + OFFSET, mask=live, other=0.0)
    else:
        values = tl.load(x + OFFSET, mask=live & (limit > OFFSET), other=0.0)
    return values


@triton.jit
def halves(w):
    """[32 W, 4] words of W tiles -> the two words of every lane and row, each [W, 8, 4, 2]."""
    return tl.split(tl.reshape(w, (w.shape[0] // 32, 8, 4, 2, 2)))


@triton.jit
def narrow_tile(
    u, v, s, x, limit, live, acc,
    START: tl.constexpr, FORMAT: tl.constexpr, NT: tl.constexpr, RAGGED: tl.constexpr, QUAD: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """One tile of a 4-bit format from the two words of every lane and row, four steps."""
    a0, a1, a2, a3 = pairs(u, FORMAT, ASM)
    b0, b1, b2, b3 = pairs(v, FORMAT, ASM)
    x0 = load_x(x, limit, live, START, RAGGED)
    x1 = load_x(x, limit, live, START + 16, RAGGED)
    x2 = load_x(x, limit, live, START + 32, RAGGED)
    x3 = load_x(x, limit, live, START + 48, RAGGED)
    zero = tl.zeros(acc.shape, tl.float32)
    if sum_steps(FORMAT) == 0:
        acc = dot16(a0, a1, x0, acc, NT, QUAD, ASM)
        acc = dot16(a2, a3, x1, acc, NT, QUAD, ASM)
        acc = dot16(b0, b1, x2, acc, NT, QUAD, ASM)
        acc = dot16(b2, b3, x3, acc, NT, QUAD, ASM)
    elif sum_steps(FORMAT) == 1:
        acc += dot16(a0, a1, x0, zero, NT, QUAD, ASM) * row_scales(s, FORMAT, 0, NT, ASM)
        acc += dot16(a2, a3, x1, zero, NT, QUAD, ASM) * row_scales(s, FORMAT, 1, NT, ASM)
        acc += dot16(b0, b1, x2, zero, NT, QUAD, ASM) * row_scales(s, FORMAT, 2, NT, ASM)
        acc += dot16(b2, b3, x3, zero, NT, QUAD, ASM) * row_scales(s, FORMAT, 3, NT, ASM)
    else:
        p = dot16(a2, a3, x1, dot16(a0, a1, x0, zero, NT, QUAD, ASM), NT, QUAD, ASM)
        q = dot16(b2, b3, x3, dot16(b0, b1, x2, zero, NT, QUAD, ASM), NT, QUAD, ASM)
        acc += p * row_scales(s, FORMAT, 0, NT, ASM)
        acc += q * row_scales(s, FORMAT, 1, NT, ASM)
    return acc


@triton.jit
def tile(
    w, s, x, limit, live, acc,
    START: tl.constexpr, FORMAT: tl.constexpr, NT: tl.constexpr, RAGGED: tl.constexpr, QUAD: tl.constexpr,
    ASM: tl.constexpr,
):  # fmt: skip
    """One tile of any format: acc [W, 16, NT] plus W x, group scales applied where groups end inside a tile.

    s: the scale words loaded for the tile, [32 W] or [32 W, 2]; not used where groups span tiles.
    """
    u, v = halves(w)
    if tile_columns(FORMAT) == 16:
        acc = dot16(u, v, load_x(x, limit, live, START, RAGGED), acc, NT, QUAD, ASM)
    elif tile_columns(FORMAT) == 32:
        a0, a1 = pairs(u, FORMAT, ASM)
        b0, b1 = pairs(v, FORMAT, ASM)
        p = acc if sum_steps(FORMAT) == 0 else tl.zeros(acc.shape, tl.float32)
        p = dot16(a0, a1, load_x(x, limit, live, START, RAGGED), p, NT, QUAD, ASM)
        p = dot16(b0, b1, load_x(x, limit, live, START + 16, RAGGED), p, NT, QUAD, ASM)
        if sum_steps(FORMAT) == 0:
            acc = p
        else:
            acc += p * row_scales(s, FORMAT, first_group(FORMAT, START), NT, ASM)
    else:
        acc = narrow_tile(u, v, s, x, limit, live, acc, START, FORMAT, NT, RAGGED, QUAD, ASM)
    return acc
