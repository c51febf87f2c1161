"""Segments summed to a step's time and its roof: lost cores are left out, or keep the whole apart."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from moegauge.bench.clock.pairs import CutStep as Beside
from moegauge.bench.clock.pairs import Limits, Taken, measure
from moegauge.bench.run.timer import COVERED, LOST, summed
from moegauge.kernels.backend import Segment


def segment(step_s: float = 0.01, lost: float = 0.0, roof_lost: float = 0.0, size: int = 300) -> Segment:
    """A part that reads `size` bytes, its slice read at 30 bytes a millisecond."""
    return Segment(step_s, size / 30e3, size, size, lost * step_s, roof_lost * size / 30e3)


def test_sums_of_bytes_and_of_seconds() -> None:
    found = summed([segment(0.01), segment(0.03), segment(0.02, size=600)], 2)
    assert found.seconds == pytest.approx(0.06 / 2)
    assert found.roof_bytes_per_s == pytest.approx(30e3)
    assert not found.disturbed


@pytest.mark.parametrize("where", ["lost", "roof_lost"])
def test_a_segment_that_lost_a_core_is_replaced_by_the_others_byte_for_byte(where: str) -> None:
    slow = segment(0.08, **{where: 2 * LOST})
    found = summed([segment(), segment(), slow, segment()], 1)
    assert found.seconds == pytest.approx(0.04)
    assert not found.disturbed
    assert summed([segment(), segment(0.08, **{where: LOST / 2}), segment()], 1).seconds == pytest.approx(0.1)


def test_a_step_most_of_which_was_disturbed_is_kept_apart_whole() -> None:
    bad = round(10 * (1 - COVERED)) + 1
    parts = [segment(0.02, lost=0.5)] * bad + [segment()] * (10 - bad)
    found = summed(parts, 1)
    assert found.disturbed
    assert found.seconds == pytest.approx(0.02 * bad + 0.01 * (10 - bad))


class Cutter:
    """Cuts a step of 0.1 s; which samples are disturbed is told beforehand."""

    def __init__(self, cut: Sequence[bool], lost: Sequence[bool]) -> None:
        self._cut, self._lost = iter(cut), iter(lost)

    def cut(self, times: int) -> Beside:
        return Beside(0.11 * times, 1e9, next(self._cut, False))

    def lost(self) -> bool:
        return next(self._lost, False)


def timed(cut: Sequence[bool], lost: Sequence[bool], **limits: float) -> tuple[list[Taken], object]:
    now = [0.0]

    def step(times: int) -> float:
        now[0] += 0.1 * times
        return 0.1 * times

    result = measure(
        step,
        lambda _: 1e9,
        limits=Limits(warmup_s=0.0, **limits),  # type: ignore[arg-type]
        clock=lambda: now[0],
        cut=Cutter(cut, lost),
    )
    return [
        Taken(*one) for one in zip(result.seconds, result.cut_seconds, result.roof_bytes_per_s, strict=True)
    ], result


def test_times_are_of_whole_steps_and_ratios_of_cut_ones() -> None:
    taken, result = timed([], [])
    assert {(one.seconds, one.cut_seconds) for one in taken} == {(0.1, 0.11)}
    assert result.fractions([11 * 10**7] * len(taken)) == pytest.approx([1.0] * len(taken))  # type: ignore[attr-defined]


def test_disturbed_samples_are_kept_apart_whichever_half_was_and_rounds_say_which_are_missing() -> None:
    taken, result = timed([False, True, False, False], [False, False, True])
    assert result.rounds == [0, 2, *range(4, 12)]  # type: ignore[attr-defined]
    assert result.disturbed_s == [0.1, 0.1]  # type: ignore[attr-defined]
    assert not result.all_disturbed  # type: ignore[attr-defined]
    assert len(taken) == 10


def test_a_machine_that_is_never_quiet_has_a_time_and_says_so() -> None:
    taken, result = timed([True] * 999, [], time_limit_s=1.0)
    assert result.all_disturbed  # type: ignore[attr-defined]
    assert len(taken) >= 3
    assert result.rounds == list(range(len(taken)))  # type: ignore[attr-defined]
    assert result.disturbed_s == []  # type: ignore[attr-defined]
