"""Empty kernels, launched to measure what one kernel boundary costs."""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.partial_sums import arrive
from moegauge.kernels.triton.device.row_tile import wait_for_producers


@triton.jit
def node(out, PDL: tl.constexpr):
    """out[program] += 1, once what the node before it wrote can be seen. Grid: any."""
    if PDL:
        wait_for_producers()
    place = out + tl.program_id(0)
    tl.store(place, tl.load(place) + 1)


@triton.jit
def counted_node(out, counters, total, PDL: tl.constexpr):
    """As `node`, and programs count in as partial sums do; the last adds to out[total]. Grid: total."""
    if PDL:
        wait_for_producers()
    place = out + tl.program_id(0)
    tl.store(place, tl.load(place) + 1)
    if arrive(counters, total):
        tl.store(out + total, tl.load(out + total) + 1)
