"""Partial sums of a split product (split-K): who stores them, and how the last to arrive adds them up.

Programs that work on parts of one sum (column ranges, gate and up, experts of one token) write float32 partial sums
[part, token, row] and count in the chunks they did; the last one to arrive adds the parts in their fixed order, so an
answer never depends on who was first. The counter is left at zero for the next launch.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.formats import scales_before, scales_matrix, scales_row
from moegauge.kernels.triton.device.row_tile import span


@triton.jit
def rows_of_tile(
    w, s, tensor, x, live, row_tile, tiles, first, last,
    FORMAT: tl.constexpr, NT: tl.constexpr, TILES: tl.constexpr, EVEN: tl.constexpr, QUAD: tl.constexpr,
    ASM: tl.constexpr, WAIT: tl.constexpr,
):  # fmt: skip
    """Tiles [first, last) of row tile `row_tile` times the tokens behind `x`, [16, NT], all scales applied."""
    words = w + tl.cast(row_tile, tl.int64) * tiles * 128
    scales = s + scales_before(row_tile, tiles, FORMAT)
    acc = span(words, scales, x, live, first, last, FORMAT, NT, TILES, EVEN, QUAD, ASM, WAIT)
    if scales_row(FORMAT):
        row_scales = tl.load(s + row_tile * 16 + tl.arange(0, 16)).to(tl.float32, bitcast=True)
        acc = acc * row_scales[:, None]
    if scales_matrix(FORMAT):
        acc = acc * tl.load(tensor)
    return acc


@triton.jit
def quads(NT: tl.constexpr):
    """(token [NT * 4, 1], columns [NT * 4, 4]) of the lanes that feed the tokens to the tensor core."""
    lane = tl.arange(0, NT * 4)[:, None]
    return lane // 4, lane % 4 * 4 + tl.arange(0, 4)[None, :]


@triton.jit
def arrive(counter, total, mine=1, ACQUIRE: tl.constexpr = False):
    """Count this program in with its `mine` of `total` chunks (or parts); true for the last to arrive, which then sees
    what all of them stored if it reads it `volatile`, past the L1, or with ACQUIRE.

    An acquire drops the L1 of the whole multiprocessor (CCTL.IVALL), and with it the input that its programs share:
    from the L2 cache that is a byte for every eight of 8-bit weights, for every four of 4-bit ones. This is the order
    of CUDA's sample threadFenceReduction: a fence, a relaxed atomic, volatile reads.
    """
    tl.debug_barrier()
    if ACQUIRE:
        last = tl.atomic_add(counter, mine, sem="acq_rel", scope="gpu") == total - mine
    else:
        last = tl.atomic_add(counter, mine, sem="release", scope="gpu") == total - mine
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def add_parts(part, stride, count, at, there, NT: tl.constexpr, FEW: tl.constexpr, UNROLL: tl.constexpr):
    """Sum of `count` parts, `stride` apart, at offsets `at` [16, FEW] where `there`; [16, NT], the FEW (tokens, pairs)
    in the first columns, which the others repeat.

    UNROLL parts are read at once: each is a trip to the L2 cache and back, which the last program of a row tile would
    otherwise make once per part, with nothing else to do.
    """
    at = tl.reshape(tl.broadcast_to(at[:, None, :], (16, UNROLL, FEW)), (16, UNROLL * FEW))
    there = tl.reshape(tl.broadcast_to(there[:, None, :], (16, UNROLL, FEW)), (16, UNROLL * FEW))
    z = tl.arange(0, UNROLL * FEW)[None, :] // FEW
    acc = tl.zeros((16, UNROLL * FEW), tl.float32)
    for i in range(0, count, UNROLL):
        mask = there & (z * 0 + (count - i) > z)
        acc += tl.load(part + (i + z) * stride + at, mask=mask, other=0.0, volatile=True)
    if UNROLL > 1:
        acc = tl.sum(tl.reshape(acc, (16, UNROLL, FEW)), 1)
    return tl.reshape(tl.broadcast_to(acc[:, None, :], (16, NT // FEW, FEW)), (16, NT))


@triton.jit
def add_bias(acc, bias, length, column, width):
    """acc [rows, tokens] + bias[i] for every i < length with i mod width = column [rows]."""
    for start in range(0, length, width):
        index = column + start
        acc += tl.load(bias + index, mask=index < length, other=0.0).to(tl.float32)[:, None]
    return acc


@triton.jit
def silu(v):
    return v / (1.0 + tl.exp(-v))
