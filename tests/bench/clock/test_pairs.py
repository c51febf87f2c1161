"""Timing logic on a clock that passes only when something runs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from moegauge.bench.clock import pairs
from moegauge.bench.clock.pairs import Limits, measure, telemetry
from moegauge.errors import DeviceError


class Bench:
    """A step and a roof on a made-up clock, both logged."""

    def __init__(self, step_s: Any = 0.1, rate: Any = 1e9) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.step_s = step_s if hasattr(step_s, "__next__") else itertools.repeat(step_s)
        self.rate = rate if hasattr(rate, "__next__") else itertools.repeat(rate)
        self.roof_lengths: list[float] = []
        self.steps: list[int] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.log.append("sleep")
        self.now += seconds

    def step(self, times: int) -> float:
        self.log.append("step")
        self.steps.append(times)
        seconds = next(self.step_s) * times
        self.now += seconds
        return seconds

    def roof(self, seconds: float) -> float:
        self.log.append("roof")
        self.roof_lengths.append(seconds)
        self.now += seconds
        return float(next(self.rate))

    def measure(self, **limits: Any) -> Any:
        throttle = limits.pop("throttle", None)
        return measure(
            self.step, self.roof, limits=Limits(**limits), clock=self.clock, sleep=self.sleep, throttle=throttle
        )


def test_a_steady_step_settles_at_the_fewest_samples() -> None:
    result = Bench().measure(min_samples=10)
    assert result.settled
    assert result.seconds == [0.1] * 10
    assert result.fractions([10**8] * 10) == pytest.approx([1.0] * 10)


def test_the_order_inside_a_pair_alternates() -> None:
    bench = Bench()
    bench.measure(min_samples=4, warmup_s=0.0)
    assert bench.log[:2] == ["step", "roof"]  # warm-up
    assert bench.log[2:10] == ["step", "roof", "roof", "step", "step", "roof", "roof", "step"]


def test_warm_up_lasts_as_long_as_asked_and_is_not_sampled() -> None:
    slow_start = itertools.chain([0.5, 0.4, 0.3], itertools.repeat(0.1))
    result = Bench(slow_start).measure(warmup_s=2.0, min_samples=5)
    assert set(result.seconds) == {0.1}


def test_a_noisy_step_runs_to_the_time_limit_and_keeps_every_sample() -> None:
    noise = itertools.cycle([0.1, 0.2])
    result = Bench(noise).measure(time_limit_s=10.0, warmup_s=0.0)
    assert not result.settled
    assert result.elapsed_s >= 10.0
    assert len(result.seconds) > 10
    assert set(result.seconds) == {0.1, 0.2}


def test_never_fewer_than_three_samples_however_long_they_take() -> None:
    assert len(Bench(100.0).measure(time_limit_s=1.0, warmup_s=0.0).seconds) == 3


def test_short_steps_are_repeated_inside_a_sample() -> None:
    bench = Bench(0.001)
    result = bench.measure(sample_s=0.02, warmup_s=0.0)
    assert result.steps_per_sample == 20
    assert result.seconds[0] == pytest.approx(0.001)
    assert bench.steps[-1] == 20


def test_a_roof_sample_is_as_long_as_the_step_beside_it_up_to_its_limit() -> None:
    short, long = Bench(0.1), Bench(2.0)
    short.measure(warmup_s=0.0)
    long.measure(warmup_s=0.0, max_roof_s=0.3)
    assert short.roof_lengths[-1] == pytest.approx(0.1)
    assert long.roof_lengths[-1] == 0.3


def test_drift_shared_by_step_and_roof_leaves_the_ratio_alone() -> None:
    speeds = [1.0 + 0.5 * (i % 7) / 7 for i in range(2000)]
    result = Bench((0.1 / s for s in iter(speeds)), (1e9 * s for s in iter(speeds))).measure(
        warmup_s=0.0, time_limit_s=3.0
    )
    assert result.fractions([10**8] * len(result.seconds)) == pytest.approx([1.0] * len(result.seconds))
    assert max(result.seconds) / min(result.seconds) > 1.2


class Every:
    """Throttled on every `n`-th reading."""

    def __init__(self, n: int) -> None:
        self.n, self.count = n, 0

    def read(self) -> dict[str, Any]:
        self.count += 1
        return {"throttled": self.count % self.n == 0, "reasons": ["hw_slowdown"] if self.count % self.n == 0 else []}


def test_throttled_samples_are_left_out_and_kept_apart() -> None:
    bench = Bench()
    result = bench.measure(min_samples=6, throttle=Every(3))
    assert len(result.seconds) == 6
    assert len(result.throttled_s) == 2
    assert bench.log.count("sleep") == 2
    assert telemetry(result.states) == {"reasons": ["hw_slowdown"]}


def test_a_device_that_always_throttles_gives_no_time() -> None:
    with pytest.raises(DeviceError, match="throttling"):
        Bench().measure(time_limit_s=1.0, throttle=Every(1))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_cannot_be_is_refused(bad: float) -> None:
    with pytest.raises(DeviceError):
        Bench(iter([0.1] * 6 + [bad] * 9)).measure(warmup_s=0.0)


def test_telemetry_gives_ranges_and_nothing_where_nothing_is_known() -> None:
    assert telemetry([{"throttled": False}]) is None
    states = [{"sm_clock_mhz": 1980, "power_w": None}, {"sm_clock_mhz": 1700}]
    assert telemetry(states) == {"sm_clock_mhz": [1700, 1980]}


def test_throttling_that_leaves_too_few_samples_gives_no_time_and_ends() -> None:
    class Mostly:
        count = 0

        def read(self) -> dict[str, Any]:
            self.count += 1
            return {"throttled": self.count > 2}

    bench = Bench()
    with pytest.raises(DeviceError, match=r"\d+ of \d+ samples were taken while the device was throttling"):
        bench.measure(time_limit_s=1.0, throttle=Mostly())
    assert bench.now < 10


def test_the_interval_is_looked_at_whenever_a_quarter_more_samples_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def look(result: Any, _: float) -> bool:
        looks.append(len(result.seconds))
        return len(looks) == 5

    monkeypatch.setattr(pairs, "settled", look)
    assert Bench().measure(min_samples=10, time_limit_s=1e9).settled
    assert looks == [10, 13, 17, 22, 28]
