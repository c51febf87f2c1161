"""Partial sums of a split product (split-K): who stores them, and how the last to arrive adds them up.

Most row tiles belong to one program. Where a share ends inside one, its programs write float32 partial sums [part,
token, row] and count in the turns they did; the last one to arrive adds the parts in their fixed order, so an answer
never depends on who was first. The counter is left at zero for the next launch.
"""

import triton
import triton.language as tl


@triton.jit
def arrive(counter, total, mine=1, ACQUIRE: tl.constexpr = False):
    """Count this program in with its `mine` of `total` turns (or parts); true for the last to arrive, which then sees
    what all of them stored if it reads it `volatile`, past the L1, or with ACQUIRE.

    An acquire drops the L1 of the whole multiprocessor (CCTL.IVALL), and with it the input that its programs share.
    This is the order of CUDA's sample threadFenceReduction: a fence, a relaxed atomic, volatile reads.
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
    """Sum of `count` parts, `stride` apart, at offsets `at` [rows, FEW] where `there`; [rows, NT], the FEW (tokens,
    pairs) in the first columns, which the others repeat.

    UNROLL parts are read at once: each is a trip to the L2 cache and back, which the last program of a row tile would
    otherwise make once per part, with nothing else to do.
    """
    ROWS: tl.constexpr = at.shape[0]
    at = tl.reshape(tl.broadcast_to(at[:, None, :], (ROWS, UNROLL, FEW)), (ROWS, UNROLL * FEW))
    there = tl.reshape(tl.broadcast_to(there[:, None, :], (ROWS, UNROLL, FEW)), (ROWS, UNROLL * FEW))
    z = tl.arange(0, UNROLL * FEW)[None, :] // FEW
    acc = tl.zeros((ROWS, UNROLL * FEW), tl.float32)
    for i in range(0, count, UNROLL):
        mask = there & (z * 0 + (count - i) > z)
        acc += tl.load(part + (i + z) * stride + at, mask=mask, other=0.0, volatile=True)
    if UNROLL > 1:
        acc = tl.sum(tl.reshape(acc, (ROWS, UNROLL, FEW)), 1)
    return tl.reshape(tl.broadcast_to(acc[:, None, :], (ROWS, NT // FEW, FEW)), (ROWS, NT))


@triton.jit
def first_bias(bias, length, column):
    """bias[column] where it reaches so far, as stored: asked for before the sums it is added to, so that nobody waits
    for memory that no kernel has touched."""
    return tl.load(bias + column, mask=column < length, other=0.0)


@triton.jit
def bias_rows(first, bias, length, column, width):
    """The sum of bias[i] over every i < length with i mod width = column, of the shape of `column`; the first of them
    are there."""
    acc = first.to(tl.float32)
    for start in range(width, length, width):
        index = column + start
        acc += tl.load(bias + index, mask=index < length, other=0.0).to(tl.float32)
    return acc


@triton.jit
def split_sides(sums):
    """(gate, up) of sums [2 rows, NT], gate first; both [rows, NT]."""
    ROWS: tl.constexpr = sums.shape[0] // 2
    return tl.split(tl.permute(tl.reshape(sums, (2, ROWS, sums.shape[1])), (1, 2, 0)))


@triton.jit
def silu(v):
    return v / (1.0 + tl.exp(-v))
