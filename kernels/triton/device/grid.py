"""Program number and grid of a kernel, whether launched alone or played by the persistent kernel.

Every kernel takes a last parameter `at`. Launched alone it is None, and the hardware says which program this is; the
persistent kernel (docs/kernels-triton.md) calls the same kernel as a function and passes six numbers. So no arithmetic
is written twice.
"""

import triton
import triton.language as tl


@triton.jit
def program(at, AXIS: tl.constexpr):
    """`tl.program_id(AXIS)` of the program played."""
    if at is None:
        number = tl.program_id(AXIS)
    else:
        number = at[AXIS]
    return number


@triton.jit
def programs(at, AXIS: tl.constexpr):
    """`tl.num_programs(AXIS)` of the grid played."""
    if at is None:
        number = tl.num_programs(AXIS)
    else:
        number = at[3 + AXIS]
    return number
