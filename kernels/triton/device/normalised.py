"""RMS norm fused into the neighbouring kernels, for a single token.

rms_norm(x) * gain = (x * gain) / root, with one root for the whole row, and a product is linear: so the kernel that
writes x writes bfloat16(x * gain) beside it, and of every row tile the sum of its 16 squares; the kernel that reads
it divides its sums by the root at the end. Rounding to bfloat16 is relative, so it is as far off as if it had been
rounded after the division.
"""

import triton
import triton.language as tl

EPSILON = tl.constexpr(1e-6)


@triton.jit
def load_squares(squares, width, TILES2: tl.constexpr):
    """The sums of squares of a row's tiles of 16, [TILES2], a power of two; asked for before they are needed. Nothing
    where TILES2 is 0: the input is no such one."""
    if TILES2 > 0:
        tile = tl.arange(0, TILES2)
        found = tl.load(squares + tile, mask=tile * 16 < width, other=0.0)
    else:
        found = width
    return found


@triton.jit
def inverse_root(squares, width):
    """1 / sqrt(mean(x^2) + epsilon) of a row of `width` numbers."""
    return 1.0 / tl.sqrt(tl.sum(squares, 0) / width + EPSILON)


@triton.jit
def write_normalised(acc, gain, normalised, squares, row):
    """Beside outputs acc [rows, NT] of rows `row`, whole row tiles, of which the first column is the token."""
    TILES: tl.constexpr = acc.shape[0] // 16
    lane = tl.arange(0, acc.shape[1])[None, :]
    value = acc * gain.to(tl.float32)[:, None]
    tl.store(normalised + row[:, None] + lane * 0, value.to(tl.bfloat16), mask=(lane < 1) & (row >= 0)[:, None])
    sums = tl.sum(tl.reshape(acc * acc, (TILES, 16, acc.shape[1])), 1)
    tile = tl.min(row, 0) // 16 + tl.arange(0, TILES)[:, None]
    tl.store(squares + tile + lane * 0, sums, mask=(lane < 1) & (tile >= 0))
