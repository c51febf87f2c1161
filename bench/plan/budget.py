"""Time budget of the GPU suite: seconds estimated per stage beforehand, and when a run stops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from moegauge.bench.plan.gpu_suite import Stage
from moegauge.bench.plan.points import Point
from moegauge.shape import ModelShape

# Host seconds per operation: 0.2 ms of composing and lowering, and two gates of two outputs at 1.8 (gpt-oss) to 5.0 ms
# (DeepSeek) each, by `TRITON_INTERPRET=1 python scripts/host_times.py` on two busy Zen 5 cores; a GPU's host is taken
# to be idle, near the lower end. Capturing and compiling need a GPU's driver: not measured, assumed.
PER_OPERATION_S = 0.0045
ASSUMED_CAPTURE_S = 0.0005  # per operation: three configurations tried and one kept, two enqueues each
ASSUMED_COMPILE_S = 0.5  # per point, spread over a suite that compiles some hundred kernels
FIXED_S = 0.3  # the arena's random blocks and their copies
OPERATIONS_PER_LAYER = 8.0  # 606 in 61 layers with latent attention, 254 in 36 with grouped queries
# Assumed: for smoke tests a dozen small steps of eight kernels, compiled side by side; a roof
# of seven patterns, a sweep of 180 in 45 small kernels, passes of 2 GB.
FIXED_STAGES_S = {"smoke": 25.0, "roof": 4.0, "sweep": 18.0, "floors": 5.0}


def operations(shape: ModelShape) -> float:
    """About how many kernel boundaries a step has."""
    latent = any(layer.attention.kind == "mla" for layer in shape.layers)
    return len(shape.layers) * (OPERATIONS_PER_LAYER + (2 if latent else -1))


def point_seconds(stage: Stage, shape: ModelShape, modes: int = 1) -> float:
    """Seconds of one point of a stage, estimated."""
    host = operations(shape) * (PER_OPERATION_S + ASSUMED_CAPTURE_S) + ASSUMED_COMPILE_S + FIXED_S
    return (host + stage.time_limit_s) * (modes if stage.kind == "launch modes" else 1)


def stage_seconds(stage: Stage, shapes: Mapping[str, ModelShape], points: Iterable[Point], modes: int = 3) -> float:
    """Seconds of a stage, estimated; `modes` are those its launch-mode comparison tries."""
    if stage.kind in FIXED_STAGES_S:
        return FIXED_STAGES_S[stage.kind]
    return sum(point_seconds(stage, shapes[p.model], modes) for p in points)


def estimates(stages: Iterable[Stage], shapes: Mapping[str, ModelShape]) -> list[tuple[Stage, int, float]]:
    """(stage, points it measures, seconds) of a suite, where all goes well: what an earlier stage has measured in the
    same way costs nothing, and dependent launches are right."""
    found, seen = [], set()
    for stage in stages:
        key = (stage.kind, stage.launch_mode or "pdl")
        points = [p for p in stage.points if (key, p) not in seen]
        seen |= {(key, p) for p in points}
        # Of the modes compared, two were measured before: graph and pdl.
        known = stage.kind == "launch modes" and all((("decode", "pdl"), p) in seen for p in points)
        found.append((stage, len(points), stage_seconds(stage, shapes, points, 1 if known else 3)))
    return found


class Clock:
    """A time budget.

    Args:
        budget_s: seconds from now; None is without end.
        now: seconds; only differences count.
    """

    def __init__(self, budget_s: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._start, self._budget = now, now(), budget_s
        self._costs: dict[str, list[float]] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    def room_for(self, name: str) -> bool:
        """Whether one more point of stage `name` fits, if it costs what its points before cost on average."""
        if self._budget is None:
            return True
        spent = self._costs.get(name, [])
        return self.elapsed + (sum(spent) / len(spent) if spent else 0.0) < self._budget

    def within(
        self, name: str, points: Iterable[Point], left_out: Callable[[Point], object], done: Callable[[Point], bool]
    ) -> Iterator[Point]:
        """The points there is time for, in order; the others are told to `left_out`. `done` ones cost nothing and are
        passed over."""
        for point in points:
            if done(point):
                continue
            if not self.room_for(name):
                left_out(point)
                continue
            begin = self._now()
            yield point
            self._costs.setdefault(name, []).append(self._now() - begin)
