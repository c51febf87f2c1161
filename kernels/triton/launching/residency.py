"""How many programs of a kernel are resident on the device at once, by registers and shared memory."""

from __future__ import annotations

from moegauge.errors import DeviceError

REGISTERS = (
    65536  # 32-bit registers of a multiprocessor, in four quarters (CUDA C programming guide, every one since 5.0)
)
RESERVED = 1024  # bytes of shared memory the system keeps per program, since 8.0
# Warps a multiprocessor holds at most (CUDA C programming guide, technical specifications per compute capability); 64
# elsewhere. And programs; others are taken to hold the fewest of these.
WARPS = {(8, 6): 48, (8, 7): 48, (8, 9): 48, (12, 0): 48}
PROGRAMS = {(8, 0): 32, (8, 6): 16, (8, 7): 16, (8, 9): 24, (9, 0): 32, (10, 0): 32, (12, 0): 24}


def resident(registers: int, shared: int, warps: int, memory: int, capability: tuple[int, int]) -> int:
    """Programs per multiprocessor.

    Args:
        registers: per thread; a warp takes them in units of 256.
        shared: bytes of shared memory per program.
        warps: per program.
        memory: bytes of shared memory per multiprocessor.
        capability: compute capability.

    Raises:
        DeviceError: not even one.
    """
    per_warp = -(-max(1, registers) * 32 // 256) * 256
    by_registers = REGISTERS // 4 // per_warp * 4 // warps
    by_memory = memory // (shared + RESERVED)
    by_warps = WARPS.get(capability, 64) // warps
    found = min(by_registers, by_memory, by_warps, PROGRAMS.get(capability, min(PROGRAMS.values())))
    if found < 1:
        raise DeviceError(
            f"a program of {warps} warps needs {registers} registers a thread and {shared} bytes of shared memory; "
            "no multiprocessor holds one.",
            advice="Please report this.",
        )
    return found
