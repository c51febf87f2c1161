"""Share a product's chunks of weights out evenly between programs (Stream-K).

A launch has as many programs as are resident at once. The chunks of all its matrices (TILES tiles of one row tile each,
2 KB of weights) stand in one line, and each of `grid` programs takes a run of neighbours, as many as every other give
or take one: no wave of programs is half empty, and none is left alone at the end with a whole row tile. A run begins
and ends anywhere in a row tile; what it sums of one is a *part*, and the parts of a row tile are numbered by program.
(Osama et al., Stream-K, PPoPP 2023, cut matrix products so.)
"""

import triton
import triton.language as tl


@triton.jit
def share_of(me, grid, total):
    """[first, end) of the chunks of program `me`; the first `total` mod `grid` programs have one more."""
    each = total // grid
    more = total - each * grid
    first = me * each + tl.minimum(me, more)
    return first, (me + 1) * each + tl.minimum(me + 1, more)


@triton.jit
def owner_of(chunk, grid, total):
    """The program whose share holds `chunk`, any shape."""
    each = total // grid
    more = total - each * grid
    long = more * (each + 1)
    return tl.where(chunk < long, chunk // (each + 1), more + (chunk - long) // tl.maximum(each, 1))


@triton.jit
def parts_of(first, length, grid, total):
    """How many programs hold any of the chunks [first, first + length), any shape."""
    return owner_of(first + length - 1, grid, total) - owner_of(first, grid, total) + 1
