"""Time one point: warm up, then sample the step and the read roof in turn until the interval is narrow.

Each sample of a step has a sample of the read roof beside it, so that a machine whose bandwidth drifts (a shared
host, a warm GPU) is divided out of the ratio. Where a step can be cut, the roof is read between its segments and the
ratio is that of their sums; the time is that of a whole step beside them. The order inside a pair alternates, so that a
slow drift does not favour either. Nothing here knows what is timed: steps and roofs are callables, the clock is the
caller's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from moegauge.bench.clock.statistics import effective, relative_half_width
from moegauge.errors import DeviceError

# Samples between two looks at the intervals grow by a quarter: who looks after every sample stops on the luckiest one.
LOOK = 1.25
BLOCKS = 6  # independent samples' worth below which an interval says nothing
FEWEST = 3  # samples a median is given of


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop.

    Attributes:
        relative_half_width: stop once the 95 % interval of the median paired ratio is this narrow, as a share of it.
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


class CutStep(NamedTuple):
    """A step run in segments, the roof read between them.

    Attributes:
        seconds: of one step, all its segments together.
        roof_bytes_per_s: bytes of all slices over their seconds.
        disturbed: whether too much of it was run without a core of its own.
    """

    seconds: float
    roof_bytes_per_s: float
    disturbed: bool = False


class Cutter(Protocol):
    """What runs a step in segments."""

    def cut(self, times: int) -> CutStep:
        """So many steps in segments, the roof between them."""
        ...

    def lost(self) -> bool:
        """Whether the whole steps timed last lost a core."""
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
        seconds: time of one whole step, one entry per sample that counts.
        cut_seconds: time of the same step in segments; of the whole one where steps are not cut.
        roof_bytes_per_s: the roof beside the latter.
        rounds: which pair each was, counting from 0 and those that do not count too.
        throttled_s: samples left out because the device was throttled while they ran.
        disturbed_s: samples left out because a thread had lost its core while they ran.
        all_disturbed: no three samples were without disturbance, so that `seconds` are the disturbed ones.
        steps_per_sample: steps one sample ran.
        settled: True when the intervals were narrow enough, False when a limit stopped it.
        states: what the throttle probe said after each sample, throttled ones included.
        elapsed_s: time spent sampling.
    """

    seconds: list[float] = field(default_factory=list)
    roof_bytes_per_s: list[float] = field(default_factory=list)
    cut_seconds: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    throttled_s: list[float] = field(default_factory=list)
    disturbed_s: list[float] = field(default_factory=list)
    all_disturbed: bool = False
    steps_per_sample: int = 1
    settled: bool = False
    states: list[dict[str, Any]] = field(default_factory=list)
    elapsed_s: float = 0.0

    def fractions(self, step_bytes: Sequence[int]) -> list[float]:
        """bytes / (time x roof beside it), one per sample, of the bytes each sample's step read."""
        return [b / (t * r) for b, t, r in zip(step_bytes, self.cut_seconds, self.roof_bytes_per_s, strict=True)]


def measure(
    step: Callable[[int], float],
    roof: Callable[[float], float],
    *,
    limits: Limits,
    clock: Callable[[], float] = time.perf_counter,
    throttle: Throttle | None = None,
    after: Callable[[bool, int], None] = lambda *_: None,
    sleep: Callable[[float], None] = time.sleep,
    cut: Cutter | None = None,
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
        cut: runs the same steps in segments; None where steps are not cut.

    Returns:
        every sample, in order.

    Raises:
        DeviceError: a time was not above 0, or throttling left fewer than three samples.
    """
    probe = throttle or NoThrottle()
    pairs = Pairs(step, roof, limits, cut=cut)
    result = pairs.result
    start = clock()
    pair, look = 0, limits.min_samples
    while True:
        taken = pairs.take(step_first=pair % 2 == 0)
        pair += 1
        state = {**probe.read(), "disturbed": taken.disturbed}
        pairs.keep(taken, state)
        after(counts(state), pairs.result.steps_per_sample)
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
        if late and pair >= FEWEST and len(result.seconds) < FEWEST and pairs.take_disturbed():
            return result
        if count >= limits.max_samples or (late and count >= FEWEST):
            return result
        if pair >= FEWEST and result.elapsed_s >= 3 * limits.time_limit_s:
            raise DeviceError(
                f"{pair - count} of {pair} samples were taken while the device was throttling.",
                advice="Let it cool, or give it power, and run again.",
            )


class Taken(NamedTuple):
    """One pair.

    Attributes:
        seconds: of one whole step.
        cut_seconds: of one step in segments; the same where steps are not cut.
        roof_bytes_per_s: the roof beside it.
        disturbed: whether either was disturbed.
    """

    seconds: float
    cut_seconds: float
    roof_bytes_per_s: float
    disturbed: bool = False


class Pairs:
    """Samples of one step, each with a sample of the roof beside it. Warms up when made.

    Args:
        step, roof, limits, cut: as `measure`.
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
        cut: Cutter | None = None,
    ) -> None:
        self._step, self._roof, self._rest, self._cut = step, roof, rest, cut
        self._apart: list[tuple[Taken, int]] = []
        self._taken = 0
        steps, self._roof_s = _warm_up(step, roof, limits)
        self.result = Measurement(steps_per_sample=steps)

    def take(self, *, step_first: bool) -> Taken:
        """A sample of the step and one of the roof beside it, in segments or as a whole.

        Raises:
            DeviceError: a time was not above 0.
        """
        if step_first:
            seconds, beside = self._time_step(), self._time_beside()
        else:
            beside, seconds = self._time_beside(), self._time_step()
        disturbed = beside.disturbed or (self._cut is not None and self._cut.lost())
        taken = Taken(seconds, beside.seconds or seconds, beside.roof_bytes_per_s, disturbed)
        _check(taken.seconds, taken.roof_bytes_per_s)
        _check(taken.cut_seconds, taken.roof_bytes_per_s)
        return taken

    def _time_step(self) -> float:
        steps = self.result.steps_per_sample
        seconds = self._step(steps) / steps
        self._rest()
        return seconds

    def _time_beside(self) -> CutStep:
        """The step in segments; the roof alone, with no time of a step, where steps are not cut."""
        beside = self._cut.cut(self.result.steps_per_sample) if self._cut else CutStep(0.0, self._roof(self._roof_s))
        self._rest()
        return beside

    def keep(self, taken: Taken, state: dict[str, Any]) -> None:
        """Note a pair: as a sample, or beside them where the device was throttled or a core taken away."""
        self.result.states.append(state)
        if state.get("throttled"):
            self.result.throttled_s.append(taken.seconds)
        elif state.get("disturbed"):
            self.result.disturbed_s.append(taken.seconds)
            self._apart.append((taken, self._taken))
        else:
            self._count(taken, self._taken)
        self._taken += 1

    def _count(self, taken: Taken, turn: int) -> None:
        result = self.result
        result.seconds.append(taken.seconds)
        result.cut_seconds.append(taken.cut_seconds)
        result.roof_bytes_per_s.append(taken.roof_bytes_per_s)
        result.rounds.append(turn)

    def take_disturbed(self) -> bool:
        """Where fewer than three samples count, let the disturbed ones count too: a machine that is never quiet still
        has a time, with a warning. Whether any did."""
        if len(self.result.seconds) >= FEWEST or not self._apart:
            return False
        kept = [
            *zip(map(Taken, *self._lists()), self.result.rounds, strict=True),
            *self._apart,
        ]
        for values in (*self._lists(), self.result.rounds, self.result.disturbed_s):
            values.clear()
        self._apart.clear()
        for taken, turn in sorted(kept, key=lambda one: one[1]):
            self._count(taken, turn)
        self.result.all_disturbed = True
        return True

    def _lists(self) -> tuple[list[float], list[float], list[float]]:
        return self.result.seconds, self.result.cut_seconds, self.result.roof_bytes_per_s


def counts(state: dict[str, Any]) -> bool:
    """Whether a pair after which the device was in this state counts as a sample."""
    return not (state.get("throttled") or state.get("disturbed"))


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
    """True when the interval of the median paired ratio is within `wanted` and rests on enough samples.

    The ratio is what a record claims. A whole step's time moves with the machine's bandwidth, by tens of per cent
    within minutes on a shared host: its interval stands beside it, and no time limit would narrow it.
    """
    ratios = ratios_of(result)
    return effective(ratios, 0.0) >= BLOCKS and relative_half_width(ratios) <= wanted


def ratios_of(result: Measurement) -> list[float]:
    """Bytes that the roof would have read in each step's time: in inverse proportion to its share of the roof."""
    return [t * r for t, r in zip(result.cut_seconds, result.roof_bytes_per_s, strict=True)]


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
