"""A row tile times up to NT tokens over a range of column tiles, from memory to scaled float32 sums.

Chunks of 4 tiles: the words of the next chunk are asked for before those of this one are multiplied, so 2 KB per warp
are always on their way; 16 resident warps keep 32 KB per multiprocessor in flight, above the 18-25 KB that 4.2 TB/s at
a loaded latency near 0.8 us needs of each of 132.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.tiles import bf16_rows, tile


@triton.jit
def load_words(w, t):
    """The words of tile `t`, [32, 4]: one 16-byte load per lane, 512 contiguous bytes per warp."""
    offsets = tl.arange(0, 32)[:, None] * 4 + tl.arange(0, 4)[None, :]
    return tl.load(w + t * 128 + offsets, eviction_policy="evict_first")


@triton.jit
def load_scales(s, t, FORMAT: tl.constexpr):
    """The scale words of tile `t` where groups end inside a tile; lanes of one row read the same words."""
    row = tl.arange(0, 32) // 4
    if FORMAT == "mxfp4":
        words = tl.load(s + t * 8 + row)
    elif FORMAT == "int4" or FORMAT == "nvfp4":
        words = tl.load(s + t * 16 + row[:, None] * 2 + tl.arange(0, 2)[None, :])
    else:
        words = t
    return words


@triton.jit
def load_chunk_scale(s, g, FORMAT: tl.constexpr):
    """Scale number `g` where groups span tiles: 128 x 128 blocks of fp8, 128 columns of int4_g128."""
    if FORMAT == "fp8":
        words = tl.load(s + g)
    elif FORMAT == "int4_g128":
        words = tl.load(s + g * 8 + tl.arange(0, 32) // 4)
    else:
        words = g
    return words


@triton.jit
def wait_for_producers():
    """Programmatic dependent launch: nothing the kernel before this one wrote may be read above this line."""
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def span(
    w, s, x, live, columns, first, last,
    FORMAT: tl.constexpr, NT: tl.constexpr, EVEN: tl.constexpr, QUAD: tl.constexpr, ASM: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """Sum over tiles [first, last) of W x, [16, NT].

    w, s: word pointers of this row tile's weights and scales. x: [NT * 4, 4] pointers to columns 4c.. of each token.
    live: [NT * 4, 1], which tokens are there. first: a multiple of 4 tiles. EVEN: so is every last.
    WAIT: weights are asked for before the wait for the kernel that makes x.
    """
    TILE: tl.constexpr = 16 if FORMAT == "bf16" else (32 if FORMAT == "fp8" or FORMAT == "int8" else 64)
    end = last - 1
    t0 = first
    t1 = first + 1 if EVEN else tl.minimum(first + 1, end)
    t2 = first + 2 if EVEN else tl.minimum(first + 2, end)
    t3 = first + 3 if EVEN else tl.minimum(first + 3, end)
    w0 = load_words(w, t0)
    w1 = load_words(w, t1)
    w2 = load_words(w, t2)
    w3 = load_words(w, t3)
    s0 = load_scales(s, t0, FORMAT)
    s1 = load_scales(s, t1, FORMAT)
    s2 = load_scales(s, t2, FORMAT)
    s3 = load_scales(s, t3, FORMAT)
    g0 = load_chunk_scale(s, t0 // 4 if FORMAT == "fp8" else t0 // 2, FORMAT)
    g1 = load_chunk_scale(s, t2 // 2, FORMAT) if FORMAT == "int4_g128" else g0
    if WAIT:
        wait_for_producers()
    acc = tl.zeros((16, NT), tl.float32)
    for t in range(first, last, 4):
        n0 = tl.minimum(t + 4, end)
        n1 = tl.minimum(t + 5, end)
        n2 = tl.minimum(t + 6, end)
        n3 = tl.minimum(t + 7, end)
        if EVEN:
            n0 = tl.minimum(t + 4, end - 3)
            n1 = n0 + 1
            n2 = n0 + 2
            n3 = n0 + 3
        v0 = load_words(w, n0)
        v1 = load_words(w, n1)
        v2 = load_words(w, n2)
        v3 = load_words(w, n3)
        r0 = load_scales(s, n0, FORMAT)
        r1 = load_scales(s, n1, FORMAT)
        r2 = load_scales(s, n2, FORMAT)
        r3 = load_scales(s, n3, FORMAT)
        h0 = load_chunk_scale(s, n0 // 4 if FORMAT == "fp8" else n0 // 2, FORMAT)
        h1 = load_chunk_scale(s, n2 // 2, FORMAT) if FORMAT == "int4_g128" else h0
        k = t * TILE
        limit = tl.minimum(columns, last * TILE) - k
        if FORMAT == "fp8" or FORMAT == "int4_g128":
            p = tl.zeros((16, NT), tl.float32)
        else:
            p = acc
        p = tile(w0, s0, x + k, limit, live, p, FORMAT, NT, EVEN, QUAD, ASM)
        p = tile(w1, s1, x + (k + TILE), limit - TILE, live, p, FORMAT, NT, EVEN, QUAD, ASM)
        if FORMAT == "int4_g128":
            acc += p * bf16_rows(tl.reshape(g0, (8, 4)), NT)
            p = tl.zeros((16, NT), tl.float32)
        p = tile(w2, s2, x + (k + 2 * TILE), limit - 2 * TILE, live, p, FORMAT, NT, EVEN, QUAD, ASM)
        p = tile(w3, s3, x + (k + 3 * TILE), limit - 3 * TILE, live, p, FORMAT, NT, EVEN, QUAD, ASM)
        if FORMAT == "fp8":
            acc += p * g0.to(tl.float32, bitcast=True)
        elif FORMAT == "int4_g128":
            acc += p * bf16_rows(tl.reshape(g1, (8, 4)), NT)
        else:
            acc = p
        w0, w1, w2, w3 = v0, v1, v2, v3
        s0, s1, s2, s3 = r0, r1, r2, r3
        g0, g1 = h0, h1
    return acc
