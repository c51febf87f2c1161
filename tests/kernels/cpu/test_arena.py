"""Where the CPU arena's memory lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from moegauge.kernels.cpu.backend import CpuBackend
from moegauge.kernels.cpu.core import library


@pytest.mark.skipif(library() is None, reason="installed without a C++ compiler")
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/self/smaps here")
def test_the_arena_is_private_and_asks_for_huge_pages() -> None:
    """Anonymous shared memory, Python's default, gets no huge pages whatever is asked; a private mapping may."""
    arena = CpuBackend(1).arena({"bf16.weight": 8 << 20})
    address, flags, inside = arena.address("bf16.weight"), "", False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= address < high
        elif inside and line.startswith("VmFlags:"):
            flags = line
    arena.close()
    assert flags
    assert " sh" not in flags
    assert " hg" in flags
