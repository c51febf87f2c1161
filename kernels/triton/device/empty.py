"""An empty kernel, launched to measure what one kernel boundary costs."""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.row_tile import wait_for_producers


@triton.jit
def node(out, PDL: tl.constexpr):
    """out[program] += 1, once what the node before it wrote can be seen. Grid: any."""
    if PDL:
        wait_for_producers()
    place = out + tl.program_id(0)
    tl.store(place, tl.load(place) + 1)
