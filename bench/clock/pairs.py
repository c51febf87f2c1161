"""Time one point: warm up, then sample the step and the read roof in turn until the interval is narrow.

Each sample of a step has a sample of the read roof beside it, so that a machine whose bandwidth drifts (a shared
host, a warm GPU) is divided out of the ratio. The order inside a pair alternates, so that a slow drift does not favour
either. Nothing here knows what is timed: steps and roofs are callables, the clock is the caller's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from moegauge.bench.clock.statistics import block_length, relative_half_width
from moegauge.errors import DeviceError

# Samples between two looks at the intervals grow by a quarter: who looks after every sample stops on the luckiest one.
LOOK = 1.25
BLOCKS = 6  # runs of alike neighbours below which an interval says nothing
FEWEST = 3  # samples a median is given of


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop.

    Attributes:
        relative_half_width: stop once the 95 % interval of the median time and of the median paired ratio are both
            this narrow, as a share of the median.
        min_samples, max_samples: bounds on the number of samples that count.
        time_limit_s: stop after this long, settled or not, though never below three that count; where throttling
            leaves fewer in three times as long, there is no time.
        warmup_s: warm up until the device has worked this long, at least one step.
        sample_s: one sample lasts at least this long; short steps are repeated inside a sample.
        max_roof_s: a roof sample lasts about as long as the step beside it, up to this.
        backoff_s: pause after a throttled sample.
    """

    relative_half_width: float = 0.01
    min_samples: int = 10
    max_samples: int = 400
    time_limit_s: float = 20.0
    warmup_s: float = 0.5
    sample_s: float = 0.02
    max_roof_s: float = 1.0
    backoff_s: float = 0.05


class Throttle(Protocol):
    """Tells whether the device is holding itself back now."""

    def read(self) -> dict[str, Any]:
        """State now: at least `throttled` (bool)."""
        ...


class NoThrottle:
    """A device that does not tell."""

    def read(self) -> dict[str, Any]:
        """Never throttled, nothing known."""
        return {"throttled": False}


@dataclass(slots=True)
class Measurement:
    """All samples of one point.

    Attributes:
        seconds: time of one step, one entry per sample that counts.
        roof_bytes_per_s: the roof beside each.
        throttled_s: samples left out because the device was throttled while they ran.
        steps_per_sample: steps one sample ran.
        settled: True when the intervals were narrow enough, False when a limit stopped it.
        states: what the throttle probe said after each sample, throttled ones included.
        elapsed_s: time spent sampling.
    """

    seconds: list[float] = field(default_factory=list)
    roof_bytes_per_s: list[float] = field(default_factory=list)
    throttled_s: list[float] = field(default_factory=list)
    steps_per_sample: int = 1
    settled: bool = False
    states: list[dict[str, Any]] = field(default_factory=list)
    elapsed_s: float = 0.0

    def fractions(self, step_bytes: Sequence[int]) -> list[float]:
        """bytes / (time x roof beside it), one per sample, of the bytes each sample's step read."""
        return [b / (t * r) for b, t, r in zip(step_bytes, self.seconds, self.roof_bytes_per_s, strict=True)]


def measure(
    step: Callable[[int], float],
    roof: Callable[[float], float],
    *,
    limits: Limits,
    clock: Callable[[], float] = time.perf_counter,
    throttle: Throttle | None = None,
    after: Callable[[bool, int], None] = lambda *_: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Measurement:
    """Time a step beside the roof.

    Args:
        step: runs that many steps and returns the seconds they took together, measured on the device.
        roof: reads for about that many seconds and returns bytes/s.
        limits: when to stop.
        clock: seconds; only differences count.
        throttle: asked after each pair.
        after: called after each pair, outside the timing, with whether its sample counts and how many steps it ran.
        sleep: used to back off after a throttled sample.

    Returns:
        every sample, in order.

    Raises:
        DeviceError: a time was not above 0, or throttling left fewer than three samples.
    """
    probe = throttle or NoThrottle()
    pairs = Pairs(step, roof, limits)
    result = pairs.result
    start = clock()
    pair, look = 0, limits.min_samples
    while True:
        seconds, rate = pairs.take(step_first=pair % 2 == 0)
        pair += 1
        state = probe.read()
        pairs.keep(seconds, rate, state)
        after(not state.get("throttled"), pairs.result.steps_per_sample)
        if state.get("throttled"):
            sleep(limits.backoff_s)
        result.elapsed_s = clock() - start
        count = len(result.seconds)
        if count >= look:
            if settled(result, limits.relative_half_width):
                result.settled = True
                return result
            look = math.ceil(LOOK * count)
        late = result.elapsed_s >= limits.time_limit_s
        if count >= limits.max_samples or (late and count >= FEWEST):
            return result
        if pair >= FEWEST and result.elapsed_s >= 3 * limits.time_limit_s:
            raise DeviceError(
                f"{pair - count} of {pair} samples were taken while the device was throttling.",
                advice="Let it cool, or give it power, and run again.",
            )


class Pairs:
    """Samples of one step, each with a sample of the roof beside it. Warms up when made.

    Args:
        step, roof, limits: as `measure`.
        rest: called after every sample but those of the warm-up, outside the timing.

    Attributes:
        result: what has been kept so far.

    Raises:
        DeviceError: a time was not above 0.
    """

    def __init__(
        self,
        step: Callable[[int], float],
        roof: Callable[[float], float],
        limits: Limits,
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        self._step, self._roof, self._rest = step, roof, rest
        steps, self._roof_s = _warm_up(step, roof, limits)
        self.result = Measurement(steps_per_sample=steps)

    def take(self, *, step_first: bool) -> tuple[float, float]:
        """(seconds of one step, bytes/s of the roof beside it).

        Raises:
            DeviceError: a time was not above 0.
        """
        if step_first:
            seconds, rate = self._time_step(), self._time_roof()
        else:
            rate, seconds = self._time_roof(), self._time_step()
        _check(seconds, rate)
        return seconds, rate

    def _time_step(self) -> float:
        steps = self.result.steps_per_sample
        seconds = self._step(steps) / steps
        self._rest()
        return seconds

    def _time_roof(self) -> float:
        rate = self._roof(self._roof_s)
        self._rest()
        return rate

    def keep(self, seconds: float, rate: float, state: dict[str, Any]) -> None:
        """Note a pair: as a sample, or beside them where the device was throttled."""
        self.result.states.append(state)
        if state.get("throttled"):
            self.result.throttled_s.append(seconds)
        else:
            self.result.seconds.append(seconds)
            self.result.roof_bytes_per_s.append(rate)


def all_throttled(pairs: int) -> DeviceError:
    """The error of a point none of whose samples counts."""
    return DeviceError(
        f"all {pairs} samples were taken while the device was throttling.",
        advice="Let it cool, or give it power, and run again.",
    )


def _warm_up(step: Callable[[int], float], roof: Callable[[float], float], limits: Limits) -> tuple[int, float]:
    """Run until the device has worked for `warmup_s`; returns steps per sample and seconds per roof sample."""
    warmed = 0.0
    while True:
        once = step(1)
        beside = min(once, limits.max_roof_s)
        _check(once, roof(beside))
        warmed += once + beside
        if warmed >= limits.warmup_s:
            break
    steps = max(1, math.ceil(limits.sample_s / once))
    return steps, min(once * steps, limits.max_roof_s)


def _check(seconds: float, rate: float) -> None:
    if not (seconds > 0 and rate > 0 and math.isfinite(seconds) and math.isfinite(rate)):
        raise DeviceError(
            f"the device's clock gave {seconds!r} s and {rate!r} bytes/s.", advice="Run again; report it if it stays."
        )


def settled(result: Measurement, wanted: float) -> bool:
    """True when the intervals of the median time and of the median paired ratio are both within `wanted`."""
    ratios = [t * r for t, r in zip(result.seconds, result.roof_bytes_per_s, strict=True)]
    return all(
        len(values) >= BLOCKS * block_length(values) and relative_half_width(values) <= wanted
        for values in (result.seconds, ratios)
    )


def telemetry(states: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Range of every number the probe told and all reasons it gave, for the record; None when it told nothing."""
    found: dict[str, Any] = {}
    for key in ("sm_clock_mhz", "memory_clock_mhz", "power_w", "temperature_c"):
        values = [s[key] for s in states if s.get(key) is not None]
        if values:
            found[key] = [min(values), max(values)]
    reasons = sorted({reason for s in states for reason in s.get("reasons") or ()})
    if reasons:
        found["reasons"] = reasons
    return found or None
