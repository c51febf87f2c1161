"""Load and multiply row tiles: 16 rows by a range of columns, four warps side by side, as scaled float32 sums.

A program is WARPS warps. In one *turn* each of them multiplies a chunk of its own, TILES tiles of one row tile: ACROSS
warps stand side by side along the columns of a row tile, and DOWN = WARPS / ACROSS row tiles lie side by side (of one
matrix, or of gate and up). The words of the next chunk are asked for before those of this one are multiplied, so 2 KB
per warp are always on their way; 16 resident warps keep 32 KB per multiprocessor in flight, above the 18-25 KB that
4.2 TB/s at a loaded latency near 0.8 us needs of each of 132. Warps are added up once, on chip, behind the last turn.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.decode import rows_scale
from moegauge.kernels.triton.device.formats import (
    row_scales,
    scale_tiles,
    scale_words,
    scales_before,
    scales_matrix,
    scales_row,
    sum_tiles,
    tile_columns,
)
from moegauge.kernels.triton.device.tiles import tile

WARPS = tl.constexpr(4)


@triton.jit
def load_words(w, t, tiles, I: tl.constexpr, RAGGED: tl.constexpr):
    """The words of tile t + I, [32 W, 4]: one 16-byte load per lane, 512 contiguous bytes per warp."""
    if RAGGED == 2:
        there = tl.broadcast_to(t + I < tiles, w.shape)
        words = tl.load(w + t * 128 + I * 128, mask=there, other=0, eviction_policy="evict_first")
    else:
        words = tl.load(w + t * 128 + I * 128, eviction_policy="evict_first")
    return words


@triton.jit
def load_scales(s, t, tiles, I: tl.constexpr, FORMAT: tl.constexpr, RAGGED: tl.constexpr):
    """The scale words of tile t + I and those they were stored with, [32 W] or [32 W, 2]; lanes of one row read the
    same words, and of a tile that is none those of the last."""
    if scale_words(FORMAT) == 16:
        t = tl.reshape(t, (t.shape[0], 1))
    if RAGGED == 2:
        words = tl.load(s + tl.minimum(t + I, tiles - 1) // scale_tiles(FORMAT) * scale_words(FORMAT))
    else:
        words = tl.load(s + (t + I) // scale_tiles(FORMAT) * scale_words(FORMAT))
    return words


@triton.jit
def place(t, chunk, tiles, TILES: tl.constexpr, RAGGED: tl.constexpr):
    """The first tile of each lane's chunk in the turn at tile t, [32 W]; a warp that has none takes the last one."""
    at = t + chunk
    if RAGGED == 1:
        at = tl.minimum(at, tiles - TILES)
    return at


@triton.jit
def load_chunk(w, s, t, tiles, FORMAT: tl.constexpr, TILES: tl.constexpr, RAGGED: tl.constexpr):
    """Words and scale words of the tiles from t [32 W] on, four each; what is not there repeats another."""
    SPAN: tl.constexpr = scale_tiles(FORMAT)
    at = t[:, None]
    w0 = load_words(w, at, tiles, 0, RAGGED)
    w1 = load_words(w, at, tiles, 1, RAGGED)
    w2 = load_words(w, at, tiles, 2, RAGGED)
    w3 = load_words(w, at, tiles, 3, RAGGED) if TILES == 4 else w2
    s0 = load_scales(s, t, tiles, 0, FORMAT, RAGGED) if SPAN > 0 else t
    s1 = load_scales(s, t, tiles, 1, FORMAT, RAGGED) if SPAN == 1 else s0
    s2 = load_scales(s, t, tiles, 2, FORMAT, RAGGED) if SPAN == 1 or SPAN == 2 else s0
    s3 = load_scales(s, t, tiles, 3, FORMAT, RAGGED) if SPAN == 1 and TILES == 4 else s2
    return w0, w1, w2, w3, s0, s1, s2, s3


@triton.jit
def wait_for_producers():
    """Programmatic dependent launch: nothing the kernel before this one wrote may be read above this line. It may be
    passed more than once."""
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def beside(ACROSS: tl.constexpr):
    """Which of the row tiles that lie side by side every lane multiplies, [32 W]."""
    return tl.arange(0, WARPS * 32) // (32 * ACROSS)


@triton.jit
def quads(NT: tl.constexpr):
    """(token [W * NT * 4, 1], columns [W * NT * 4, 4]) of the lanes that feed the tokens to the tensor core."""
    lane = tl.arange(0, WARPS * NT * 4)[:, None]
    return lane // 4 % NT, lane % 4 * 4 + tl.arange(0, 4)[None, :]


@triton.jit
def span(
    w, s, x, live, first, last, tiles,
    FORMAT: tl.constexpr, NT: tl.constexpr, ACROSS: tl.constexpr, TILES: tl.constexpr, RAGGED: tl.constexpr,
    QUAD: tl.constexpr, ASM: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """Sum over turns [first, last) of W x, at least one of them, a sum for each warp: [W, 16, NT].

    w, s: [32 W] word pointers to the weights and scales of each lane's row tile, of `tiles` tiles. x: [W * NT * 4, 4]
    pointers to columns 4c.. of each token. live: [W * NT * 4, 1], which tokens are there. TILES (4 or 3) are a chunk
    (scales that are loaded for several tiles at once need 4). RAGGED: 0, every warp has a whole chunk in every turn; 1,
    some have none in the last; 2, the last chunk is not whole. WAIT: weights are asked for before the wait for the
    kernel that makes x.
    """
    TILE: tl.constexpr = tile_columns(FORMAT)
    SUMMED: tl.constexpr = sum_tiles(FORMAT)
    STEP: tl.constexpr = ACROSS * TILES
    lane = tl.arange(0, WARPS * 32)
    within = lane % 32
    chunk = lane // 32 % ACROSS * TILES
    x_chunk = tl.arange(0, WARPS * NT * 4)[:, None] // (NT * 4) % ACROSS * TILES
    w = w[:, None] + within[:, None] * 4 + tl.arange(0, 4)[None, :]
    if scale_words(FORMAT) == 8:
        s = s + within // 4
    elif scale_words(FORMAT) == 16:
        s = s[:, None] + within[:, None] // 4 * 2 + tl.arange(0, 2)[None, :]
    x = x + x_chunk * TILE
    w0, w1, w2, w3, s0, s1, s2, s3 = load_chunk(
        w, s, place(first * STEP, chunk, tiles, TILES, RAGGED), tiles, FORMAT, TILES, RAGGED
    )  # fmt: skip
    if WAIT:
        wait_for_producers()
    acc = tl.zeros((WARPS, 16, NT), tl.float32)
    for turn in range(first, last):
        t = turn * STEP
        # Past the end the last chunk is asked for once more: it is in the cache.
        n = place(tl.minimum(turn + 1, last - 1) * STEP, chunk, tiles, TILES, RAGGED)
        v0, v1, v2, v3, r0, r1, r2, r3 = load_chunk(w, s, n, tiles, FORMAT, TILES, RAGGED)
        xk = x + t * TILE
        limit = (tiles - t - x_chunk) * TILE
        here = live
        if RAGGED == 1:
            here = live & (limit > 0)
        p = tl.zeros((WARPS, 16, NT), tl.float32) if SUMMED > 0 else acc
        p = tile(w0, s0, xk, limit, here, p, 0, FORMAT, NT, RAGGED, QUAD, ASM)
        p = tile(w1, s1, xk, limit, here, p, TILE, FORMAT, NT, RAGGED, QUAD, ASM)
        if SUMMED == 2:
            acc += p * row_scales(s0, FORMAT, 0, NT, ASM)
            p = tl.zeros((WARPS, 16, NT), tl.float32)
        p = tile(w2, s2, xk, limit, here, p, 2 * TILE, FORMAT, NT, RAGGED, QUAD, ASM)
        if TILES == 4:
            p = tile(w3, s3, xk, limit, here, p, 3 * TILE, FORMAT, NT, RAGGED, QUAD, ASM)
        if SUMMED > 0:
            acc += p * row_scales(s2, FORMAT, 0, NT, ASM)
        else:
            acc = p
        w0, w1, w2, w3 = v0, v1, v2, v3
        s0, s1, s2, s3 = r0, r1, r2, r3
    return acc


@triton.jit
def rows_of_tile(
    w, s, t, x, live, row_tile, first, last, tiles,
    FORMAT: tl.constexpr, NT: tl.constexpr, ACROSS: tl.constexpr, TILES: tl.constexpr, RAGGED: tl.constexpr,
    QUAD: tl.constexpr, ASM: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """As `span`, of row tile `row_tile` [32 W] of the matrices at w, s and t [32 W], all scales applied."""
    words = w + tl.cast(row_tile, tl.int64) * tiles * 128
    scales = s + scales_before(row_tile, tiles, FORMAT)
    acc = span(words, scales, x, live, first, last, tiles, FORMAT, NT, ACROSS, TILES, RAGGED, QUAD, ASM, WAIT)
    if scales_row(FORMAT):
        place = s + row_tile * 16 + tl.arange(0, WARPS * 32) % 32 // 4
        upper = tl.reshape(tl.load(place).to(tl.float32, bitcast=True), (WARPS, 8, 4))
        lower = tl.reshape(tl.load(place + 8).to(tl.float32, bitcast=True), (WARPS, 8, 4))
        acc = acc * rows_scale(upper, lower, NT)
    if scales_matrix(FORMAT):
        own = tl.reshape(tl.load(t), (WARPS, 8, 4))
        acc = acc * rows_scale(own, own, NT)
    return acc


@triton.jit
def add_warps(acc, ACROSS: tl.constexpr):
    """Sums [W, 16, NT] of warps -> [16 DOWN, NT] of row tiles, through shared memory."""
    NT: tl.constexpr = acc.shape[2]
    DOWN: tl.constexpr = WARPS // ACROSS
    return tl.reshape(tl.sum(tl.reshape(acc, (DOWN, ACROSS, 16, NT)), 1), (DOWN * 16, NT))
