"""scripts/disturb.py on a clock of its own: what counts as a burst, as marked, and as off."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from moegauge.bench.run.timer import LOST
from moegauge.kernels.backend import Segment


def script() -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "scripts" / "disturb.py"
    spec = importlib.util.spec_from_file_location("disturb", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["disturb"] = module
    spec.loader.exec_module(module)
    return module


disturb = script()


class Clock:
    """Passes only when something sleeps or works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("stop_at", [0.05, 4.0, 30.0])
def test_bursts_are_as_long_as_said_with_gaps_between_and_none_is_told_that_did_not_run(stop_at: float) -> None:
    clock = Clock()
    bursts = disturb.plant(
        "work",
        (0.2, 0.4),
        random.Random(1),
        stop=lambda: clock.now >= stop_at,
        clock=clock,
        sleep=clock.spend,
        work={"work": lambda: clock.spend(0.003)},
    )
    assert clock.now < stop_at + 0.01
    low, high = disturb.BURST_S
    ended = [one for one in bursts if one.end < stop_at]
    assert all(low <= one.end - one.begin <= high + 0.004 for one in ended)
    times = [0.0, *(t for one in bursts for t in (one.begin, one.end))]
    assert all(0.2 <= times[i + 1] - times[i] <= 0.41 for i in range(0, len(times) - 1, 2))
    assert len(bursts) == 0 if stop_at < 0.2 else len(bursts) >= stop_at / 1.0


def test_segments_are_placed_one_after_the_other_up_to_the_end() -> None:
    segments = [
        Segment(0.01, 0.02, 9, 9, 0.0, 0.0),
        Segment(0.03, 0.01, 9, 9, 0.03 * 1.1 * LOST, 0.0),
        Segment(0.02, 0.01, 9, 9, 0.0, 0.01 * 1.1 * LOST),
    ]
    parts = disturb.placed(segments, 10.0)
    assert [part.lost for part in parts] == [False, True, True]
    assert [part.begin for part in parts] == pytest.approx([9.9, 9.93, 9.97])
    assert [part.end for part in parts] == pytest.approx([9.93, 9.97, 10.0])


class Bully:
    """Plants a burst a turn, over all of it."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.planting = clock, False

    def on(self) -> None:
        assert not self.planting
        self.planting, self.begin = True, self.clock.now

    def off(self) -> list[object]:
        assert self.planting
        self.planting = False
        return [disturb.Span(self.begin, self.clock.now)]


def found(*, marks: bool, slower: float) -> object:
    """Eight pairs of turns of two points; a disturbed sample is `slower` by the old way, and 1 % slower by the new."""
    clock = Clock()
    bully = Bully(clock)

    def take(disturbed: bool) -> object:
        assert disturbed == bully.planting
        begin = clock.now
        clock.spend(0.1)
        lost = disturbed and marks
        half = begin + 0.05
        parts = (disturb.Part(begin, half, lost), disturb.Part(half, clock.now, False))
        return disturb.Sample(
            disturbed=disturbed,
            now=0.792 if disturbed else 0.8,
            before=0.8 * (slower if disturbed else 1.0),
            kept=not (lost and int(10 * begin) % 2),
            parts=parts,
        )

    return disturb.alternate({"a": take, "b": take}, bully, enough=lambda pairs: pairs == 8, shuffle=random.Random(0))


def test_quiet_and_disturbed_turns_are_paired_and_shown_side_by_side() -> None:
    result = found(marks=True, slower=0.8)
    for name in ("a", "b"):
        assert [one.disturbed for one in result.samples[name]].count(True) == 8
        for first, second in zip(result.samples[name][::2], result.samples[name][1::2], strict=True):
            assert first.disturbed != second.disturbed
    lines = disturb.table(result)
    assert lines[2].startswith("| a | 0.800 | 0.792 | -1.0 % |")
    assert "| 0.800 | 0.640 | -20.0 % |" in lines[3]
    text = "\n".join(lines)
    assert "8 quiet turns and 8 disturbed ones. Worst ratio off by 1.0 % (before: 20.0 %): goal 3 % met." in text
    assert "8 bursts planted, 8 beside samples; 100 % of these marked: goal at least 50 % met." in text
    assert "Segments and whole steps that lost a core: 50.0 % disturbed, 0.0 % quiet." in text


def test_what_is_not_marked_is_said_to_be_missed() -> None:
    text = "\n".join(disturb.table(found(marks=False, slower=1.0)))
    assert "0 % of these marked: goal at least 50 % missed." in text
    assert "Samples kept apart: 0 % in disturbed turns: goal at most 40 % met; 0 % in quiet ones." in text


def test_a_burst_beside_no_sample_is_not_counted_as_missed() -> None:
    result = found(marks=True, slower=1.0)
    result.bursts.append(disturb.Span(1e6, 1e6 + 1))
    assert len(result.bursts_met()) == 8
    assert len(result.bursts_marked()) == 8
