"""Load and multiply one row tile: 16 rows over a range of column tiles, prefetched, as scaled float32 sums.

Chunks of 4 tiles: the words of the next chunk are asked for before those of this one are multiplied, so 2 KB per warp
are always on their way; 16 resident warps keep 32 KB per multiprocessor in flight, above the 18-25 KB that 4.2 TB/s at
a loaded latency near 0.8 us needs of each of 132.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.tiles import bf16_rows, tile


@triton.jit
def before(tile, last, like):
    """tile < last as a mask of the shape of `like`. Both are spread before they are compared: the interpreter keeps a
    scalar comparison as an int32, which spread afterwards is no mask to Triton 3.9."""
    return tl.broadcast_to(last, like.shape) > tile


@triton.jit
def load_words(w, t, last, I: tl.constexpr, EVEN: tl.constexpr):
    """The words of tile t + I, [32, 4]: one 16-byte load per lane, 512 contiguous bytes per warp."""
    if EVEN:
        words = tl.load(w + t * 128 + I * 128, eviction_policy="evict_first")
    else:
        there = before(t + I, last, w)
        words = tl.load(w + t * 128 + I * 128, mask=there, other=0, eviction_policy="evict_first")
    return words


@triton.jit
def load_scales(s, t, last, I: tl.constexpr, FORMAT: tl.constexpr, EVEN: tl.constexpr):
    """The scale words of tile t + I, where groups end inside a tile; lanes of one row read the same words."""
    SIZE: tl.constexpr = 8 if FORMAT == "mxfp4" else 16
    if FORMAT != "mxfp4" and FORMAT != "int4" and FORMAT != "nvfp4":
        words = t
    elif EVEN:
        words = tl.load(s + t * SIZE + I * SIZE)
    else:
        words = tl.load(s + t * SIZE + I * SIZE, mask=before(t + I, last, s), other=0)
    return words


@triton.jit
def load_chunk_scale(s, t, last, I: tl.constexpr, FORMAT: tl.constexpr):
    """The scale of tiles t + I .., where groups span tiles: a 128 x 128 block of fp8, 128 columns of int4_g128."""
    if FORMAT == "fp8":
        words = tl.load(s + tl.minimum(t, last - 1) // 4)
    elif FORMAT == "int4_g128":
        words = tl.load(s + tl.minimum(t + I, last - 1) // 2 * 8)
    else:
        words = t
    return words


@triton.jit
def wait_for_producers():
    """Programmatic dependent launch: nothing the kernel before this one wrote may be read above this line."""
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def span(
    w, s, x, live, first, last,
    FORMAT: tl.constexpr, NT: tl.constexpr, TILES: tl.constexpr, EVEN: tl.constexpr, QUAD: tl.constexpr,
    ASM: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """Sum over tiles [first, last) of W x, [16, NT].

    w, s: word pointers of this row tile's weights and scales. x: [NT * 4, 4] pointers to columns 4c.. of each token.
    live: [NT * 4, 1], which tokens are there. TILES (4 or 3) are multiplied at a time; `first` is a multiple of it,
    EVEN says that last - first is too (int4_g128 and fp8 need 4: their groups span tiles).
    WAIT: weights are asked for before the wait for the kernel that makes x.
    """
    TILE: tl.constexpr = 16 if FORMAT == "bf16" else (32 if FORMAT == "fp8" or FORMAT == "int8" else 64)
    lane = tl.arange(0, 32)
    w = w + lane[:, None] * 4 + tl.arange(0, 4)[None, :]
    if FORMAT == "mxfp4" or FORMAT == "int4_g128":
        s = s + lane // 4
    elif FORMAT == "int4" or FORMAT == "nvfp4":
        s = s + lane[:, None] // 4 * 2 + tl.arange(0, 2)[None, :]
    start = tl.minimum(first, last - TILES) if EVEN else first  # an empty range asks for tiles that exist
    w0 = load_words(w, start, last, 0, EVEN)
    w1 = load_words(w, start, last, 1, EVEN)
    w2 = load_words(w, start, last, 2, EVEN)
    w3 = load_words(w, start, last, 3, EVEN) if TILES == 4 else w2
    s0 = load_scales(s, start, last, 0, FORMAT, EVEN)
    s1 = load_scales(s, start, last, 1, FORMAT, EVEN)
    s2 = load_scales(s, start, last, 2, FORMAT, EVEN)
    s3 = load_scales(s, start, last, 3, FORMAT, EVEN) if TILES == 4 else s2
    g0 = load_chunk_scale(s, start, last, 0, FORMAT)
    g1 = load_chunk_scale(s, start, last, 2, FORMAT) if FORMAT == "int4_g128" else g0
    if WAIT:
        wait_for_producers()
    acc = tl.zeros((16, NT), tl.float32)
    for t in range(first, last, TILES):
        # Past the end the last chunk is asked for once more: it is in the cache.
        n = tl.minimum(t + TILES, last - TILES) if EVEN else t + TILES
        v0 = load_words(w, n, last, 0, EVEN)
        v1 = load_words(w, n, last, 1, EVEN)
        v2 = load_words(w, n, last, 2, EVEN)
        v3 = load_words(w, n, last, 3, EVEN) if TILES == 4 else v2
        r0 = load_scales(s, n, last, 0, FORMAT, EVEN)
        r1 = load_scales(s, n, last, 1, FORMAT, EVEN)
        r2 = load_scales(s, n, last, 2, FORMAT, EVEN)
        r3 = load_scales(s, n, last, 3, FORMAT, EVEN) if TILES == 4 else r2
        h0 = load_chunk_scale(s, n, last, 0, FORMAT)
        h1 = load_chunk_scale(s, n, last, 2, FORMAT) if FORMAT == "int4_g128" else h0
        xk = x + t * TILE
        limit = (last - t) * TILE
        p = tl.zeros((16, NT), tl.float32) if FORMAT == "fp8" or FORMAT == "int4_g128" else acc
        p = tile(w0, s0, xk, limit, live, p, 0, FORMAT, NT, EVEN, QUAD, ASM)
        p = tile(w1, s1, xk, limit, live, p, TILE, FORMAT, NT, EVEN, QUAD, ASM)
        if FORMAT == "int4_g128":
            acc += p * bf16_rows(tl.reshape(g0, (8, 4)), NT)
            p = tl.zeros((16, NT), tl.float32)
        p = tile(w2, s2, xk, limit, live, p, 2 * TILE, FORMAT, NT, EVEN, QUAD, ASM)
        if TILES == 4:
            p = tile(w3, s3, xk, limit, live, p, 3 * TILE, FORMAT, NT, EVEN, QUAD, ASM)
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
