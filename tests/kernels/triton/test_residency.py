"""How many programs of a kernel are resident; no GPU, no launch."""

from __future__ import annotations

import pytest

from moegauge.errors import DeviceError
from moegauge.kernels.triton.launching.launch import BATCH_PROGRAMS, BATCH_REGISTERS, PROGRAMS, REGISTERS, WARPS
from moegauge.kernels.triton.launching.residency import resident


def test_residency_follows_registers_memory_and_the_limit_of_programs():
    h100 = (9, 0)
    assert resident(128, 1024, 1, 228 << 10, h100) == 16
    assert resident(REGISTERS, 4096, WARPS, 228 << 10, h100) == PROGRAMS
    assert resident(BATCH_REGISTERS, 4096, WARPS, 228 << 10, h100) == BATCH_PROGRAMS
    assert resident(169, 1024, 1, 228 << 10, h100) == 8  # three warps of 176 no longer fit a quarter
    assert resident(32, 0, 1, 228 << 10, h100) == 32
    assert resident(32, 0, 1, 228 << 10, (8, 6)) == 16
    assert resident(32, 0, 1, 228 << 10, (11, 0)) == 16  # one nobody has told us of
    assert resident(64, 50 << 10, 1, 100 << 10, h100) == 1
    assert resident(64, 0, 4, 228 << 10, h100) == 8


def test_a_kernel_no_multiprocessor_holds_is_refused():
    with pytest.raises(DeviceError, match="no multiprocessor holds one"):
        resident(64, 100 << 10, 1, 100 << 10, (9, 0))
