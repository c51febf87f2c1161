"""Compiling side by side: what fails is told, and the next compilation is not its victim."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")
mode = pytest.importorskip("triton.runtime._async_compile")

from moegauge.kernels.triton.launching.precompile import side_by_side  # noqa: E402


def submit(number: int, found: list[int], fails: bool = False) -> None:
    """As a kernel's `warmup` does."""

    def made() -> int:
        if fails:
            raise ValueError("ptxas died")
        return number

    mode.active_mode.get().submit(f"key {number}", made, found.append)


def test_a_kernel_that_does_not_compile_is_told_and_leaves_no_mode_behind():
    found: list[int] = []
    with pytest.raises(ValueError, match="ptxas died"):
        side_by_side([lambda: submit(1, found, fails=True)])
    assert mode.active_mode.get() is None
    side_by_side([lambda: submit(2, found), lambda: submit(3, found)])
    assert sorted(found) == [2, 3]


def test_leniently_the_others_are_compiled():
    found: list[int] = []
    side_by_side([lambda: submit(1, found, fails=True), lambda: submit(2, found)], lenient=True)
    assert found == [2]
    assert mode.active_mode.get() is None
