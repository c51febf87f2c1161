"""Read-only stream kernel: measures the read roof of a GPU."""

import triton
import triton.language as tl


@triton.jit
def stream(buffer, out, words, BLOCK: tl.constexpr, UNROLL: tl.constexpr):
    """Read `words` 32-bit words once, BLOCK / lanes of them per load, UNROLL loads of each lane in flight; a persistent
    grid.

    out[program] = a checksum, so that nothing is optimised away. words: a multiple of BLOCK * UNROLL.
    """
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int32)
    step = tl.num_programs(0).to(tl.int64) * (BLOCK * UNROLL)
    for start in range(tl.program_id(0).to(tl.int64) * (BLOCK * UNROLL), words, step):
        for i in tl.static_range(UNROLL):
            total ^= tl.load(buffer + start + i * BLOCK + lane, eviction_policy="evict_first")
    tl.store(out + tl.program_id(0), tl.sum(total, 0))
