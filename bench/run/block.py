"""A sweep in rounds: points whose steps share an arena give one sample each in every round, in random order.

A randomised block design: every point of a block sees the same minutes, so that what a shared host does in them falls
on all models alike. Points go into one block as long as their arena fits in memory, MOST_POINTS at most; a block is
stored when it is done. Where a block fails (no memory for its arena, one point's step), its points are measured alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from moegauge.bench.clock.rounds import contest
from moegauge.bench.plan.points import Point
from moegauge.bench.run.case import Traffic
from moegauge.bench.run.sweep import Bench, Failure, Key, guarded, let_go, point_key, step_options
from moegauge.bench.run.timer import StepTimer
from moegauge.bench.step.build import DecodeStep, StepPlan, plan_step, shared_pools
from moegauge.errors import MoegaugeError
from moegauge.kernels.backend import Arena
from moegauge.record import Case
from moegauge.shape import ModelShape

MOST_POINTS = 12  # of a block: a killed run loses at most so many


@dataclass(kw_only=True)
class _Entry:
    """One point of a block."""

    point: Point
    shape: ModelShape
    plan: StepPlan
    step: DecodeStep | None = None
    error: float = 0.0


class Rounds:
    """Measures points in blocks.

    Args:
        bench: device, roof and settings.
        on_case: stores a point; called for all points of a block when it is done.
        on_start: told what is being done.
        seconds_left: of the run's budget; None where it has none.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        on_case: Callable[[Case], None],
        on_start: Callable[[str], None] = lambda _: None,
        seconds_left: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._bench, self._on_case, self._on_start, self._seconds_left = bench, on_case, on_start, seconds_left
        self.failures: list[Failure] = []
        self.unmeasured: list[Point] = []

    def run(self, points: Iterable[Point], shapes: dict[str, ModelShape], done: set[Key]) -> None:
        """Measure every point that is not done; errors of `on_case` (a full disk) are raised at once."""
        due = [(p, shape) for p in points if point_key(p, shape := p.cast(shapes)) not in done]
        for block in self._blocks(due):
            left = self._seconds_left()
            if left is not None and left <= 0:
                self.unmeasured += [one.point for one in block]
                continue
            for case in self._measure(block, left):
                self._on_case(case)

    def _blocks(self, due: list[tuple[Point, ModelShape]]) -> Iterator[list[_Entry]]:
        block: list[_Entry] = []
        for point, shape in due:
            try:
                with guarded():
                    plan = plan_step(shape, self._bench.backend, **step_options(point, self._bench.settings))
            except MoegaugeError as error:
                self._fail(point, error)
                continue
            one = _Entry(point=point, shape=shape, plan=plan)
            together = sum(shared_pools([*(e.plan for e in block), plan]).values())
            if block and (len(block) >= MOST_POINTS or together > self._bench.backend.memory):
                yield block
                block = []
            block.append(one)
        if block:
            yield block

    def _measure(self, block: list[_Entry], left: float | None) -> Iterator[Case]:
        """The cases of a block, or, where it fails as one, of its points one after another."""
        try:
            cases = self._together(block, left)
        except MoegaugeError as error:
            if len(block) == 1:
                self._fail(block[0].point, error)
                return
            let_go(error)
            for one in block:
                yield from self._measure([one], left)
            return
        yield from cases

    def _together(self, block: list[_Entry], left: float | None) -> list[Case]:
        """The cases of a block whose points share an arena and see the same minutes.

        Raises:
            DeviceError: no room for the arena, or a step failed while it was timed.
        """
        backend, settings = self._bench.backend, self._bench.settings
        names = ", ".join(one.point.label for one in block)
        self._on_start(f"{len(block)} points in rounds: {names}")
        with guarded():
            arena = backend.arena(shared_pools(one.plan for one in block), settings.seed)
        try:
            ready = [one for one in block if self._gate(one, arena)]
            if not ready:
                return []
            limits = settings.limits
            if left is not None:
                limits = replace(limits, time_limit_s=min(limits.time_limit_s, max(left, 1.0) / len(ready)))
            return self._sample(ready, replace(self._bench, settings=replace(settings, limits=limits)))
        finally:
            for one in block:
                one.step = None
            arena.close()

    def _gate(self, one: _Entry, arena: Arena) -> bool:
        try:
            with guarded():
                self._on_start(f"gate: {one.point.label}")
                one.step = one.plan.on(arena)
                one.error = one.step.check()
        except MoegaugeError as error:
            self._fail(one.point, error)
            return False
        return True

    def _sample(self, ready: list[_Entry], bench: Bench) -> list[Case]:
        """The cases of points whose steps are checked.

        Raises:
            DeviceError: a step or the roof failed while it was timed.
        """
        entries = {f"{i}": one for i, one in enumerate(ready)}
        steps = {name: one.step for name, one in entries.items() if one.step is not None}
        timers = {name: StepTimer(step, bench.backend, bench.meter, cold=True) for name, step in steps.items()}
        seen: dict[str, list[Traffic]] = {name: [] for name in entries}
        self._on_start(f"rounds of {len(ready)} points")
        with guarded():
            results = contest(
                {name: timer.whole for name, timer in timers.items()},
                bench.meter.sample,
                cuts={name: timer.cutter for name, timer in timers.items() if timer.cutter},
                shuffle=random.Random(bench.settings.seed),
                rest_s=0.0,
                limits=bench.settings.limits,
                throttle=bench.throttle,
                after=lambda name, _: seen[name].append(steps[name].traffic()),
            )
        cases = []
        for name, one in entries.items():
            try:
                with guarded():
                    cases.append(bench.case(steps[name], one.point, one.shape, results[name], seen[name], one.error))
            except MoegaugeError as error:
                self._fail(one.point, error)
        return cases

    def _fail(self, point: Point, error: MoegaugeError) -> None:
        let_go(error)
        self.failures.append(Failure(point, error))
