"""Tensor-core product of a packed row tile, and where group scales (E8M0, E4M3, bfloat16) are applied.

Legend: a tile is 16 rows x TILE columns in 512 bytes (64, 32 or 16 columns for 4, 8 or 16 bits), one 16-byte load of
each lane. Lane (r, c) of the 8 x 4 lanes holds rows r and r + 8 (axis h) and, in each step of 16 columns, the columns
4 c .. 4 c + 3: what `mma.m16n8k16` wants of it, so the words go from the load to the tensor core without a shuffle.
CHUNK = 4 tiles are in flight while 4 are multiplied.

The tensor core multiplies bfloat16 exactly and adds in float32. Scales touch the partial sum of their group, once.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.decode import pairs_fp4, pairs_fp8, pairs_int4, pairs_int8, times_pair, unpack


@triton.jit
def dot16(even, odd, x, acc, NT: tl.constexpr, QUAD: tl.constexpr, ASM: tl.constexpr):
    """acc + A x for one step of 16 columns.

    even, odd: [8, 4, 2] pairs (columns 4c, 4c+1 and 4c+2, 4c+3 of rows r + 8 h). x: [NT * 4, 4] bfloat16.
    The order of the 16 columns is free so long as both operands share it. QUAD picks the one in which Triton's layout
    of a dot operand gives a lane its own four columns (four neighbours up to 3.7, two and two from 3.8), so that no
    data moves; with the other one the answer is the same and the time is not.
    """
    a = tl.join(unpack(even), unpack(odd))  # r c h p q
    b = tl.reshape(x, (NT, 4, 2, 2))  # n c q p
    if QUAD:
        a = tl.permute(a, (2, 0, 1, 4, 3))  # h r (c q p)
        b = tl.permute(b, (1, 2, 3, 0))
    else:
        a = tl.permute(a, (2, 0, 4, 1, 3))  # h r (q c p)
        b = tl.permute(b, (2, 1, 3, 0))
    a = tl.reshape(a, (16, 16))
    b = tl.reshape(b, (16, NT))
    if not ASM:  # the interpreter multiplies the bits of bfloat16 as integers (3.6 to 3.9)
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def rows_scale(first, second, NT: tl.constexpr):
    """Scales [8, 4] of rows r and of rows r + 8, the same in every c, as [16, NT]."""
    s = tl.permute(tl.join(first, second), (2, 0, 1))  # h r c
    s = tl.reshape(s, (16, 1, 4, 1))
    return tl.reshape(tl.broadcast_to(s, (16, NT // 8, 4, 2)), (16, NT))


@triton.jit
def load_x(x, limit, live, OFFSET: tl.constexpr, EVEN: tl.constexpr):
    """Columns OFFSET .. + 16 of every token, [NT * 4, 4]. Absent tokens hold anything: a column of the product sees
    only its own token. From column `limit` on they are zeros, for the weights there are another tile's."""
    if EVEN:
        values = tl.load(x + OFFSET, mask=live)
    else:
        # Spread before it is compared: see span.before.
        values = tl.load(x + OFFSET, mask=live & (tl.broadcast_to(limit, live.shape) > OFFSET), other=0.0)
    return values


@triton.jit
def halves(w):
    """[32, 4] words of a tile -> the two words of every lane and row, each [8, 4, 2]."""
    return tl.split(tl.reshape(w, (8, 4, 2, 2)))


@triton.jit
def e8m0_rows(s, GROUP: tl.constexpr, NT: tl.constexpr):
    """Scales 2^(e - 127) of group GROUP (0, 1) of a tile from word [8, 4], bytes (h, group); e = 0 is subnormal."""
    first = (s << (23 - 8 * GROUP)) & 0x7F800000
    second = ((s << 7) if GROUP == 0 else (s >> 1)) & 0x7F800000
    first = tl.maximum(first, 0x00400000)
    second = tl.maximum(second, 0x00400000)
    return rows_scale(first.to(tl.float32, bitcast=True), second.to(tl.float32, bitcast=True), NT)


@triton.jit
def bf16_rows(s, NT: tl.constexpr):
    """Scales of a group from word [8, 4]: bfloat16 of row r in the low half, of row r + 8 in the high one."""
    first = (s << 16).to(tl.float32, bitcast=True)
    second = (s & 0xFFFF0000).to(tl.float32, bitcast=True)
    return rows_scale(first, second, NT)


@triton.jit
def e4m3_rows(s, ODD: tl.constexpr, NT: tl.constexpr, ASM: tl.constexpr):
    """Scales of a group from word [8, 4]: bytes 0, 2 (even group) or 1, 3 (odd) are e4m3 of rows r, r + 8."""
    if ODD:
        pair = ((s >> 4) & 0x07F007F0) | (s & 0x80008000)
    else:
        pair = ((s << 4) & 0x07F007F0) | ((s << 8) & 0x80008000)
    return bf16_rows(times_pair(pair, 0x7B807B80, 1.329227995784916e36, ASM), NT)


@triton.jit
def tile4(
    w,
    s,
    x,
    limit,
    live,
    acc,
    START: tl.constexpr,
    FORMAT: tl.constexpr,
    NT: tl.constexpr,
    EVEN: tl.constexpr,
    QUAD: tl.constexpr,
    ASM: tl.constexpr,
):
    """One tile of a 4-bit format. `s`: the tile's scale words, [32] (mxfp4), [32, 2] (int4, nvfp4); unused for
    int4_g128, whose groups span tiles."""
    u, v = halves(w)
    if FORMAT == "int4" or FORMAT == "int4_g128":
        a0, a1, a2, a3 = pairs_int4(u, ASM)
        b0, b1, b2, b3 = pairs_int4(v, ASM)
    else:
        a0, a1, a2, a3 = pairs_fp4(u, ASM)
        b0, b1, b2, b3 = pairs_fp4(v, ASM)
    x0 = load_x(x, limit, live, START, EVEN)
    x1 = load_x(x, limit, live, START + 16, EVEN)
    x2 = load_x(x, limit, live, START + 32, EVEN)
    x3 = load_x(x, limit, live, START + 48, EVEN)
    zero = tl.zeros((16, NT), tl.float32)
    if FORMAT == "int4_g128":
        acc = dot16(a0, a1, x0, acc, NT, QUAD, ASM)
        acc = dot16(a2, a3, x1, acc, NT, QUAD, ASM)
        acc = dot16(b0, b1, x2, acc, NT, QUAD, ASM)
        acc = dot16(b2, b3, x3, acc, NT, QUAD, ASM)
    elif FORMAT == "nvfp4":
        s0, s1 = tl.split(tl.reshape(s, (8, 4, 2)))
        acc += dot16(a0, a1, x0, zero, NT, QUAD, ASM) * e4m3_rows(s0, 0, NT, ASM)
        acc += dot16(a2, a3, x1, zero, NT, QUAD, ASM) * e4m3_rows(s0, 1, NT, ASM)
        acc += dot16(b0, b1, x2, zero, NT, QUAD, ASM) * e4m3_rows(s1, 0, NT, ASM)
        acc += dot16(b2, b3, x3, zero, NT, QUAD, ASM) * e4m3_rows(s1, 1, NT, ASM)
    else:
        p = dot16(a2, a3, x1, dot16(a0, a1, x0, zero, NT, QUAD, ASM), NT, QUAD, ASM)
        q = dot16(b2, b3, x3, dot16(b0, b1, x2, zero, NT, QUAD, ASM), NT, QUAD, ASM)
        if FORMAT == "mxfp4":
            e = tl.reshape(s, (8, 4))
            acc += p * e8m0_rows(e, 0, NT)
            acc += q * e8m0_rows(e, 1, NT)
        else:
            s0, s1 = tl.split(tl.reshape(s, (8, 4, 2)))
            acc += p * bf16_rows(s0, NT)
            acc += q * bf16_rows(s1, NT)
    return acc


@triton.jit
def tile(
    w,
    s,
    x,
    limit,
    live,
    acc,
    START: tl.constexpr,
    FORMAT: tl.constexpr,
    NT: tl.constexpr,
    EVEN: tl.constexpr,
    QUAD: tl.constexpr,
    ASM: tl.constexpr,
):
    """One tile of any format: acc [16, NT] plus W x, group scales applied where groups end inside a tile."""
    if FORMAT == "bf16":
        u, v = halves(w)
        acc = dot16(u, v, load_x(x, limit, live, START, EVEN), acc, NT, QUAD, ASM)
    elif FORMAT == "fp8" or FORMAT == "int8":
        u, v = halves(w)
        if FORMAT == "fp8":
            a0, a1 = pairs_fp8(u, ASM)
            b0, b1 = pairs_fp8(v, ASM)
        else:
            a0, a1 = pairs_int8(u, ASM)
            b0, b1 = pairs_int8(v, ASM)
        acc = dot16(a0, a1, load_x(x, limit, live, START, EVEN), acc, NT, QUAD, ASM)
        acc = dot16(b0, b1, load_x(x, limit, live, START + 16, EVEN), acc, NT, QUAD, ASM)
    else:
        acc = tile4(w, s, x, limit, live, acc, START, FORMAT, NT, EVEN, QUAD, ASM)
    return acc
