"""Waves, tail and issue slots of a kernel case's launches, computed from grid, registers and instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moegauge.kernels.backend import LaunchProfile
from moegauge.record import KernelProfile, Profile

LANES = 128  # instructions a multiprocessor issues in a clock: four schedulers, one warp of 32 lanes each


def tail_share(programs: int, resident: int) -> float:
    """Empty places of the last wave over the places of all waves, programs lasting alike."""
    if programs < 1 or resident < 1:
        return 0.0
    waves = -(-programs // resident)
    return 1.0 - programs / (waves * resident)


def uneven(chunks: int, programs: int) -> float:
    """1 - mean / longest of the shares of `chunks` between `programs`."""
    return 1.0 - chunks / (-(-chunks // programs) * programs)


def idle_share(one: LaunchProfile) -> float:
    """What is idle at the end of a launch if work flows alike to every program: beside the longest share, where chunks
    are shared out between programs that are all resident, and in the last wave elsewhere."""
    if not one.chunks or one.programs > one.resident:
        return tail_share(one.programs, one.resident)
    return uneven(one.chunks, one.programs)


def make_profile(
    found: Sequence[LaunchProfile], total_bytes: int, seconds: float, telemetry: dict[str, Any] | None
) -> Profile:
    """The profile of a kernel case.

    Args:
        found: its distinct launches.
        total_bytes: bytes of one step of it.
        seconds: median time of one step of it.
        telemetry: clocks while it was sampled; `sm_clock_mhz` is a range, of which the middle is taken.
    """
    kernels = [
        KernelProfile(
            kernel=one.kernel,
            launches=one.launches,
            grid=one.grid,
            warps=one.warps,
            registers=one.registers,
            shared=one.shared,
            resident=one.resident,
            waves=one.programs / max(1, one.resident),
            tail=idle_share(one),
            instructions_per_weight=one.instructions_per_weight,
        )
        for one in found
    ]
    programs = sum(one.programs * one.launches for one in found)
    clock = (telemetry or {}).get("sm_clock_mhz")
    mhz = sum(clock) / len(clock) if clock else None
    issued = sum((one.instructions_per_weight or 0.0) * one.weights * one.launches for one in found)
    share = None
    if mhz and issued:
        share = issued / (seconds * mhz * 1e6 * LANES * max(one.processors for one in found))
    return Profile(
        kernels=kernels,
        programs=programs,
        bytes_per_program=total_bytes / max(1, programs),
        issue_share=share,
        sm_clock_mhz=mhz,
    )
