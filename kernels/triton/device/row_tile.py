"""Load and multiply one row tile: 16 rows over a range of column tiles, prefetched, as scaled float32 sums.

Chunks of 4 tiles: the words of the next chunk are asked for before those of this one are multiplied, so 2 KB per warp
are always on their way; 16 resident warps keep 32 KB per multiprocessor in flight, above the 18-25 KB that 4.2 TB/s at
a loaded latency near 0.8 us needs of each of 132.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.formats import row_scales, scale_tiles, scale_words, sum_tiles, tile_columns
from moegauge.kernels.triton.device.tiles import tile


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
    """The scale words of tile t + I and those they were stored with; lanes of one row read the same words."""
    SPAN: tl.constexpr = scale_tiles(FORMAT)
    WORDS: tl.constexpr = scale_words(FORMAT)
    if SPAN == 0:
        words = t
    elif SPAN > 1:
        words = tl.load(s + tl.minimum(t + I, last - 1) // SPAN * WORDS)
    elif EVEN:
        words = tl.load(s + t * WORDS + I * WORDS)
    else:
        words = tl.load(s + t * WORDS + I * WORDS, mask=before(t + I, last, s), other=0)
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
    EVEN says that last - first is too (scales that are loaded for several tiles at once need 4).
    WAIT: weights are asked for before the wait for the kernel that makes x.
    """
    TILE: tl.constexpr = tile_columns(FORMAT)
    SPAN: tl.constexpr = scale_tiles(FORMAT)
    SUMMED: tl.constexpr = sum_tiles(FORMAT)
    lane = tl.arange(0, 32)
    w = w + lane[:, None] * 4 + tl.arange(0, 4)[None, :]
    if scale_words(FORMAT) == 8:
        s = s + lane // 4
    elif scale_words(FORMAT) == 16:
        s = s + lane[:, None] // 4 * 2 + tl.arange(0, 2)[None, :]
    start = tl.minimum(first, last - TILES) if EVEN else first  # an empty range asks for tiles that exist
    w0 = load_words(w, start, last, 0, EVEN)
    w1 = load_words(w, start, last, 1, EVEN)
    w2 = load_words(w, start, last, 2, EVEN)
    w3 = load_words(w, start, last, 3, EVEN) if TILES == 4 else w2
    s0 = load_scales(s, start, last, 0, FORMAT, EVEN)
    s1 = load_scales(s, start, last, 1, FORMAT, EVEN) if SPAN == 1 else s0
    s2 = load_scales(s, start, last, 2, FORMAT, EVEN) if SPAN == 1 or SPAN == 2 else s0
    s3 = load_scales(s, start, last, 3, FORMAT, EVEN) if SPAN == 1 and TILES == 4 else s2
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
        r1 = load_scales(s, n, last, 1, FORMAT, EVEN) if SPAN == 1 else r0
        r2 = load_scales(s, n, last, 2, FORMAT, EVEN) if SPAN == 1 or SPAN == 2 else r0
        r3 = load_scales(s, n, last, 3, FORMAT, EVEN) if SPAN == 1 and TILES == 4 else r2
        xk = x + t * TILE
        limit = (last - t) * TILE
        p = tl.zeros((16, NT), tl.float32) if SUMMED > 0 else acc
        p = tile(w0, s0, xk, limit, live, p, 0, FORMAT, NT, EVEN, QUAD, ASM)
        p = tile(w1, s1, xk, limit, live, p, TILE, FORMAT, NT, EVEN, QUAD, ASM)
        if SUMMED == 2:
            acc += p * row_scales(s0, FORMAT, 0, NT, ASM)
            p = tl.zeros((16, NT), tl.float32)
        p = tile(w2, s2, xk, limit, live, p, 2 * TILE, FORMAT, NT, EVEN, QUAD, ASM)
        if TILES == 4:
            p = tile(w3, s3, xk, limit, live, p, 3 * TILE, FORMAT, NT, EVEN, QUAD, ASM)
        if SUMMED > 0:
            acc += p * row_scales(s2, FORMAT, 0, NT, ASM)
        else:
            acc = p
        w0, w1, w2, w3 = v0, v1, v2, v3
        s0, s1, s2, s3 = r0, r1, r2, r3
    return acc
