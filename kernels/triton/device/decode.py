"""Decode packed bits to bfloat16 pairs: e4m3, int8, int4, e2m1 weights; E8M0, E4M3 and bfloat16 scales.

A word holds the weights of one row that one lane feeds to the tensor core. `pairs_*` returns, for the k-th step of
16 columns, two int32 whose halves are bfloat16 numbers. The bit orders are those that
`moegauge.kernels.triton.lowering.layout` writes; why they are as they are stands in docs/kernels-triton.md.
"""

import triton
import triton.language as tl


@triton.jit
def unpack(pair):
    """[...] int32 of two bfloat16 -> [..., 2] bfloat16; costs no instruction, the halves stay where they are."""
    low = (pair & 0xFFFF).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    high = (pair >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return tl.join(low, high)


@triton.jit
def halves_of(a):
    """The two bfloat16 of every word as float32."""
    return (a << 16).to(tl.float32, bitcast=True), (a & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def words_of(low, high):
    """Inverse of `halves_of` for numbers bfloat16 holds exactly."""
    return (low.to(tl.uint32, bitcast=True) >> 16) | (high.to(tl.uint32, bitcast=True) & 0xFFFF0000)


@triton.jit
def times_pair(a, BITS: tl.constexpr, VALUE: tl.constexpr, ASM: tl.constexpr):
    """a * VALUE in each half; BITS is VALUE as two bfloat16. Subnormal inputs are kept (PTX ISA, fma).

    The form without ASM is for the interpreter: every product here is exact, so there is nothing to round.
    """
    if ASM:
        out = tl.inline_asm_elementwise(
            "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, BITS, 0x80008000], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        low, high = halves_of(a)
        out = words_of(low * VALUE, high * VALUE)
    return out


@triton.jit
def plus_pair(a, BITS: tl.constexpr, VALUE: tl.constexpr, ASM: tl.constexpr):
    """a + VALUE in each half, exact for the small integers used."""
    if ASM:
        out = tl.inline_asm_elementwise(
            "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, 0x3F803F80, BITS], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        low, high = halves_of(a)
        out = words_of(low + VALUE, high + VALUE)
    return out


@triton.jit
def minus_pair(a, b, ASM: tl.constexpr):
    """a - b in each half, exact for the small integers used."""
    if ASM:
        out = tl.inline_asm_elementwise(
            "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [b, 0xBF80BF80, a], dtype=tl.uint32, is_pure=True, pack=1
        )
    else:
        low, high = halves_of(a)
        less_low, less_high = halves_of(b)
        out = words_of(low - less_low, high - less_high)
    return out


@triton.jit
def pairs_fp4(w, ASM: tl.constexpr):
    """Eight e2m1 -> four pairs: 9 integer operations and 4 multiplies by 2^126 (0x7E80), which makes a subnormal
    bfloat16 of exponent bits 00..11 the number meant."""
    m: tl.constexpr = 0x81C081C0
    a = w & m
    b = ((w << 4) | (w >> 28)) & m
    c = ((w << 10) | (w >> 22)) & m
    d = ((w << 6) & 0x80C080C0) | ((w >> 2) & 0x01000100)
    return (
        times_pair(a, 0x7E807E80, 8.507059173023462e37, ASM),
        times_pair(b, 0x7E807E80, 8.507059173023462e37, ASM),
        times_pair(c, 0x7E807E80, 8.507059173023462e37, ASM),
        times_pair(d, 0x7E807E80, 8.507059173023462e37, ASM),
    )


@triton.jit
def pairs_int4(w, ASM: tl.constexpr):
    """Eight int4 stored as u = v + 8 -> four pairs: the bits of 128 + u are 0x4300 | u; then subtract 136 (0xC308)."""
    return (
        plus_pair((w & 0x000F000F) | 0x43004300, 0xC308C308, -136.0, ASM),
        plus_pair(((w >> 4) & 0x000F000F) | 0x43004300, 0xC308C308, -136.0, ASM),
        plus_pair(((w >> 8) & 0x000F000F) | 0x43004300, 0xC308C308, -136.0, ASM),
        plus_pair(((w >> 12) & 0x000F000F) | 0x43004300, 0xC308C308, -136.0, ASM),
    )


@triton.jit
def pairs_fp8(w, ASM: tl.constexpr):
    """Four e4m3 -> two pairs: 5 integer operations and 2 multiplies by 2^120 (0x7B80)."""
    a = w & 0x87F087F0
    b = ((w << 4) & 0x80F080F0) | ((w >> 4) & 0x07000700)
    return times_pair(a, 0x7B807B80, 1.329227995784916e36, ASM), times_pair(b, 0x7B807B80, 1.329227995784916e36, ASM)


@triton.jit
def pair_int8(q, ASM: tl.constexpr):
    """Bytes 0 and 2 of `q` as two's complement: (128 + low 7 bits) - (128 or 256), both exact in bfloat16."""
    low = (q & 0x007F007F) | 0x43004300
    return minus_pair(low, (q & 0x00800080) | 0x43004300, ASM)


@triton.jit
def pairs_int8(w, ASM: tl.constexpr):
    """Four int8 -> two pairs."""
    return pair_int8(w, ASM), pair_int8(w >> 8, ASM)


@triton.jit
def rows_scale(first, second, NT: tl.constexpr):
    """Scales [W, 8, 4] of rows r and of rows r + 8, the same in every c, as [W, 16, NT]."""
    W: tl.constexpr = first.shape[0]
    s = tl.permute(tl.join(first, second), (0, 3, 1, 2))  # w h r c
    s = tl.reshape(s, (W, 16, 1, 4, 1))
    return tl.reshape(tl.broadcast_to(s, (W, 16, NT // 8, 4, 2)), (W, 16, NT))


@triton.jit
def e8m0_rows(s, GROUP: tl.constexpr, NT: tl.constexpr):
    """Scales 2^(e - 127) of group GROUP (0, 1) of a tile from word [W, 8, 4], bytes (h, group); e = 0 is subnormal."""
    first = (s << (23 - 8 * GROUP)) & 0x7F800000
    second = ((s << 7) if GROUP == 0 else (s >> 1)) & 0x7F800000
    first = tl.maximum(first, 0x00400000)
    second = tl.maximum(second, 0x00400000)
    return rows_scale(first.to(tl.float32, bitcast=True), second.to(tl.float32, bitcast=True), NT)


@triton.jit
def bf16_rows(s, NT: tl.constexpr):
    """Scales of a group from word [W, 8, 4]: bfloat16 of row r in the low half, of row r + 8 in the high one."""
    first = (s << 16).to(tl.float32, bitcast=True)
    second = (s & 0xFFFF0000).to(tl.float32, bitcast=True)
    return rows_scale(first, second, NT)


@triton.jit
def e4m3_rows(s, ODD: tl.constexpr, NT: tl.constexpr, ASM: tl.constexpr):
    """Scales of a group from word [W, 8, 4]: bytes 0, 2 (even group) or 1, 3 (odd) are e4m3 of rows r, r + 8."""
    if ODD:
        pair = ((s >> 4) & 0x07F007F0) | (s & 0x80008000)
    else:
        pair = ((s << 4) & 0x07F007F0) | ((s << 8) & 0x80008000)
    return bf16_rows(times_pair(pair, 0x7B807B80, 1.329227995784916e36, ASM), NT)


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
