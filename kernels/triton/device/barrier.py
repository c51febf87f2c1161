"""Grid-wide barrier for kernels whose programs are all resident (a cooperative launch).

Programs count themselves in on SHARDS counters, each on a cache line of its own, so that no line takes more than
ceil(programs / SHARDS) atomics; the last of a shard counts it in on one more counter, and the last of those writes the
new generation to SHARDS flags, one for each shard's programs to wait on. Counters are zero again before any flag
changes, so any grid may follow any other on the same memory.

What a program stored before the barrier is seen by every program behind it: its threads meet, one counts it in with
acquire and release at device scope, the flags are written with release, and every thread acquires its own once open.
That drops the multiprocessor's L1, too, so plain loads behind the barrier are fresh.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.partial_sums import arrive

SHARDS = 32
LINE = 32  # int32 per cache line of 128 bytes
WORDS = (2 * SHARDS + 1) * LINE  # int32 of memory: counters of the shards, their counter, flags


@triton.jit
def members(shard, programs, SHARDS: tl.constexpr):
    """How many of `programs` have a number that is `shard` modulo SHARDS."""
    return (programs - shard + SHARDS - 1) // SHARDS


@triton.jit
def flag_of(barrier, SHARDS: tl.constexpr, LINE: tl.constexpr):
    """Where this program waits."""
    return barrier + (SHARDS + 1 + tl.program_id(0) % SHARDS) * LINE


@triton.jit
def generation_of(barrier, SHARDS: tl.constexpr, LINE: tl.constexpr):
    """The generation at the start of a launch. No flag can change before this program has counted itself in."""
    return tl.load(flag_of(barrier, SHARDS, LINE), cache_modifier=".cg")


@triton.jit
def peek(flag, ASM: tl.constexpr):
    """What `flag` holds now, and nothing else: polled with acquire, a waiting program would drop the L1 under the
    others of its multiprocessor again and again. Without ASM, for the interpreter, an addition of nothing."""
    if ASM:
        value = tl.inline_asm_elementwise(
            "ld.relaxed.gpu.global.u32 $0, [$1];", "=r,l", [flag], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        value = tl.atomic_add(flag, 0, sem="relaxed", scope="gpu")
    return value


@triton.jit
def acquire(flag, ASM: tl.constexpr):
    """What `flag` holds; every thread acquires."""
    if ASM:
        value = tl.inline_asm_elementwise(
            "ld.acquire.gpu.global.u32 $0, [$1];", "=r,l", [flag], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        value = tl.atomic_add(flag, 0, sem="acquire", scope="gpu")
    return value


@triton.jit
def count_in(barrier, generation, me, programs, SHARDS: tl.constexpr, LINE: tl.constexpr):
    """Count program `me` of `programs` in; the last one opens the barrier. Does not wait."""
    shard = me % SHARDS
    if arrive(barrier + shard * LINE, members(shard, programs, SHARDS), 1, True):
        if arrive(barrier + SHARDS * LINE, tl.minimum(programs, SHARDS), 1, True):
            lane = tl.arange(0, SHARDS)
            tl.debug_barrier()  # the counters are zero before any lane writes its flag
            tl.atomic_xchg(
                barrier + (SHARDS + 1 + lane) * LINE, lane * 0 + generation + 1, sem="release", scope="gpu"
            )  # fmt: skip


@triton.jit
def wait(barrier, generation, SHARDS: tl.constexpr, LINE: tl.constexpr, ASM: tl.constexpr):
    """Wait until the barrier opens; the new generation. It is compared for equality only, so it may wrap."""
    flag = flag_of(barrier, SHARDS, LINE)
    seen = peek(flag, ASM)
    while seen == generation:
        seen = peek(flag, ASM)
    # The flag cannot change again before this program is counted in: this reads what the last look saw, and acquires.
    seen = acquire(flag, ASM)
    tl.debug_barrier()
    return seen
