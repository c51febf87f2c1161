"""Measure a list of points one after another; each is handed over at once, so a stop loses only the last.

A point is: build the step, check its numbers, time it beside the roof, check its numbers again. A step whose answer is
outside its error bound has no time: the point is reported as failed and the sweep goes on.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from moegauge.bench.clock.pairs import Measurement, Throttle, measure
from moegauge.bench.clock.roof import RoofMeter
from moegauge.bench.plan.points import Point
from moegauge.bench.run.case import Settings, Traffic, make_case
from moegauge.bench.run.timer import StepTimer
from moegauge.errors import ColdError, DeviceError, MoegaugeError, NumericsError
from moegauge.kernels.backend import Backend, LaunchProfile, Segment, Stream
from moegauge.record import Case
from moegauge.shape import ModelShape

# (model, format, batch, context, kernel): what a point is called within one run.
Key = tuple[str, str, int, int, str | None]


class Step(Protocol):
    """What a sweep needs of `moegauge.bench.step.build.DecodeStep`."""

    @property
    def kernels(self) -> int: ...
    @property
    def kinds(self) -> tuple[str, ...]: ...
    def part(self, kind: str) -> Step: ...
    def run(self) -> None: ...
    def run_cut(self, size: int, stream: Stream | None) -> list[Segment]: ...
    def traffic(self, runs: int = 1) -> Traffic: ...
    def check(self) -> float: ...
    def launches(self) -> Sequence[LaunchProfile]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Failure:
    """A point that gave no time, and why.

    Attributes:
        point, error: which and why, in one line.
        trace: where it was raised, as text.
    """

    point: Point
    error: MoegaugeError
    trace: str = ""


class Builder(Protocol):
    """Makes the step of a point."""

    def __call__(self, shape: ModelShape, backend: Backend, point: Point, settings: Settings) -> Step: ...


def decode_step(shape: ModelShape, backend: Backend, point: Point, settings: Settings) -> Step:
    """The real builder: `moegauge.bench.step.build.build_step`."""
    from moegauge.bench.step.build import build_step

    return build_step(shape, backend, **step_options(point, settings))


def step_options(point: Point, settings: Settings) -> dict[str, Any]:
    """What a point and the settings of a run say to `build_step` and `plan_step`."""
    return {
        "batch": point.batch,
        "context": point.context,
        "kv_format": settings.kv_format,
        "routing": settings.routing,
        "arena_bytes": settings.arena_bytes,
        "seed": settings.seed,
        "gate_rows": settings.gate_rows,
    }


@dataclass(frozen=True, slots=True)
class Bench:
    """What measures: a device, its roof, and how.

    Attributes:
        backend: the device.
        meter: its roof, sampled beside every step.
        settings: limits and options of the run.
        builder: makes steps.
        throttle: asked after each sample.
        on_no_profile: told of a kernel whose compiler's report failed when its times were in, and why.
        on_skip: told of a point's kind of kernel that cannot be timed alone, and why.
    """

    backend: Backend
    meter: RoofMeter
    settings: Settings
    builder: Builder = decode_step
    throttle: Throttle | None = None
    on_skip: Callable[[Point, str, str], None] = lambda *_: None
    on_no_profile: Callable[[Point, str, str], None] = lambda *_: None

    def decode(self, point: Point, shape: ModelShape, done: set[Key]) -> Generator[Case, None, None]:
        """The whole step of a point, unless it is `done`.

        Raises:
            DeviceError: no room for the arena, or the device stopped answering.
            NumericsError: an answer outside its error bound, before or after timing.
        """
        if point_key(point, shape) in done:
            return
        step = self.builder(shape, self.backend, point, self.settings)
        try:
            yield self._time(step, point, shape)
        finally:
            step.close()

    def kernels(self, point: Point, shape: ModelShape, done: set[Key]) -> Generator[Case, None, None]:
        """Every kind of kernel of a point's step alone, all layers of it, those that are `done` left out.

        The time limit is shared out among the kinds. A kind that reads too little to come from memory has no time.

        Raises:
            DeviceError, NumericsError: as `decode`.
        """
        step = self.builder(shape, self.backend, point, self.settings)
        try:
            kinds = [kind for kind in step.kinds if point_key(point, shape, kind) not in done]
            limits = self.settings.limits
            brief = replace(limits, time_limit_s=limits.time_limit_s / max(1, len(kinds)), warmup_s=0.1)
            timer = replace(self, settings=replace(self.settings, limits=brief))
            wrong: MoegaugeError | None = None
            for kind in kinds:
                try:
                    part = step.part(kind)
                except ColdError as error:
                    self.on_skip(point, kind, str(error))
                    continue
                try:
                    yield timer._time(part, point, shape, kind)
                except NumericsError as error:  # says nothing of the other kinds
                    wrong = wrong or error
                finally:
                    part.close()
            if wrong is not None:
                raise wrong
        finally:
            step.close()

    def _time(self, step: Step, point: Point, shape: ModelShape, kernel: str | None = None) -> Case:
        error = step.check()
        timer = StepTimer(step, self.backend, self.meter)
        seen: list[Traffic] = []
        result = measure(
            timer.whole,
            self.meter.sample,
            limits=self.settings.limits,
            throttle=self.throttle,
            after=lambda _, steps: seen.append(step.traffic(steps)),
            cut=timer.cutter,
        )
        return self.case(step, point, shape, result, seen, error, kernel)

    def case(
        self,
        step: Step,
        point: Point,
        shape: ModelShape,
        result: Measurement,
        seen: Sequence[Traffic],
        error: float,
        kernel: str | None = None,
    ) -> Case:
        """The entry of a step that has its samples; `seen` is what each read, those that do not count too."""
        error = max(error, step.check())
        return make_case(
            point=point,
            shape=shape,
            backend=self.backend,
            settings=self.settings,
            result=result,
            seen=[seen[turn] for turn in result.rounds],
            kernels=step.kernels,
            error=error,
            kernel=kernel,
            launches=self._launches(step, point, kernel) if kernel else (),
        )

    def _launches(self, step: Step, point: Point, kernel: str) -> Sequence[LaunchProfile]:
        """What the compiler tells of a kernel that has its times; nothing it may raise costs them."""
        try:
            return step.launches()
        except Exception as error:
            self.on_no_profile(point, kernel, f"{type(error).__name__}: {error}")
            return ()


def point_key(point: Point, shape: ModelShape, kernel: str | None = None) -> Key:
    return shape.name, point.format, point.batch, point.context, kernel


def key_of(case: Case) -> Key:
    """The key of a measured point."""
    return case.model, case.format, case.batch, case.context, case.kernel


def run_sweep(
    points: Iterable[Point],
    shapes: dict[str, ModelShape],
    runner: Callable[[Point, ModelShape, set[Key]], Generator[Case, None, None]],
    *,
    done: set[Key],
    on_case: Callable[[Case], None],
    on_start: Callable[[Point], None] = lambda _: None,
) -> list[Failure]:
    """Measure every point that is not done; `on_case` has stored one before the next begins.

    Args:
        points: what to measure.
        shapes: model name of a point -> its shape.
        runner: `Bench.decode` or `Bench.kernels`; it is given the shape in the point's format.
        done: what an earlier part of this run has measured.
        on_case: given each finished point.
        on_start: given each point before it is built.

    Returns:
        the points that failed, with their errors; `on_case` errors (a full disk) are raised at once.
    """
    failures = []
    for point in points:
        on_start(point)
        cases = runner(point, point.cast(shapes), done)
        try:
            while (case := _next(cases, point)) is not None:
                on_case(case)
        except _PointError as failed:
            failures.append(failed.failure)
        finally:
            cases.close()
    return failures


class _PointError(Exception):
    """A point's own failure, told apart from a failure to store it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure.error))
        self.failure = failure


def _next(cases: Generator[Case, None, None], point: Point) -> Case | None:
    try:
        with guarded():
            return next(cases, None)
    except MoegaugeError as error:
        failure = Failure(point, error, "".join(traceback.format_exception(error)))
        let_go(error)
        raise _PointError(failure) from None


def let_go(error: BaseException | None) -> None:
    """Drop what the frames of an error hold: kept in a list of failures, they would keep the step's arena, gigabytes of
    the device's memory a point."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Whatever a point's libraries raise, as an error of the point in one line: a lost device (RuntimeError), no memory
    (mmap's is an OSError), a kernel that does not compile or fit (Triton's own classes, derived from Exception alone).

    Raises:
        DeviceError: instead of any other Exception.
    """
    try:
        yield
    except MoegaugeError:
        raise
    except Exception as error:
        raise lost(error) from error


def lost(error: BaseException) -> DeviceError:
    """A device library's failure in one line."""
    text = (str(error).strip().splitlines() or [""])[0]
    return DeviceError(f"{type(error).__name__}: {text.rstrip('.')}.", advice="Run again; the points before are kept.")
