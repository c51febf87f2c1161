"""A suite of stages: roof, floors, steps, kernels, launch modes, peers; each point is stored as soon as it is had."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial

from msgspec.structs import replace as replace_struct

from moegauge import models
from moegauge.bench.clock import boundaries, roof
from moegauge.bench.clock.roof import RoofMeter
from moegauge.bench.peers.point import Versus
from moegauge.bench.peers.registry import present
from moegauge.bench.peers.work import kernel_work
from moegauge.bench.plan.budget import Clock, stage_seconds
from moegauge.bench.plan.gpu_suite import Stage
from moegauge.bench.plan.points import Point
from moegauge.bench.plan.suites import Suite, get_suite
from moegauge.bench.run.session import Session
from moegauge.bench.run.sweep import Bench, Failure, guarded, key_of, run_sweep
from moegauge.bench.step.build import step_kinds
from moegauge.errors import MoegaugeError
from moegauge.kernels.backend import Backend
from moegauge.record import UNTRIED, LeftOut, PointName, Reason, Record

# (stage, launch mode, point or what): what is tried again, or no more. Without the last: all of a launch mode.
Turn = tuple[str, str, object]


def turn_of(one: LeftOut) -> Turn:
    """What an entry is about."""
    return one.stage, one.launch_mode, one.point or one.what


def name_of(point: Point) -> PointName:
    """A point of a plan as a record names it."""
    return PointName(model=point.model, format=point.format, batch=point.batch, context=point.context)


def measure(session: Session) -> Record:
    """Measure what is not in a session's record yet: the stages of its suite within the budget, or every point."""
    if not session.stages or session.options.suite is None:
        return session.measure()
    session.warn_if_busy()
    budget = session.options.budget_s or get_suite(session.options.suite).budget_s
    session.failures = StageRun(session, Clock(budget)).run()
    record = session.record
    # What this machine cannot do is no reason to run again; what there was no time for is.
    record.complete = not session.failures and not any(one.reason in UNTRIED for one in record.left_out)
    session.save()
    session.tell.progress("")
    return record


class StageRun:
    """Runs the stages of a session's suite.

    What is in work is noted in the record before it begins, so that a process that is killed (a kernel that never ends,
    a crash in a driver) leaves word of it. The same command then takes what failed or did not end last: a point that
    loses the device each time costs no other one.

    Args:
        session: what is measured, and where it is stored.
        clock: the run's time budget.
    """

    def __init__(self, session: Session, clock: Clock) -> None:
        self._session, self._clock, self._record = session, clock, session.record
        before = self._record.left_out
        self._bad = {turn_of(one) for one in before if one.reason in (Reason.FAILED, Reason.BEGAN)}
        self._given_up = {turn_of(one) for one in before if one.reason is Reason.BEGAN_TWICE}
        # Where launch modes are compared, one model that hangs says that all will: the mode is put off, not the model.
        for known, why in ((self._bad, Reason.BEGAN), (self._given_up, Reason.BEGAN_TWICE)):
            known |= {(one.stage, one.launch_mode, None) for one in before if one.launch_mode and one.reason is why}
        self._again = False
        self._record.left_out = []
        self._lost = False

    def run(self) -> list[Failure]:
        """Every stage in order, then what failed in an earlier part of this run; the points that failed."""
        meter = self._meter()
        failures = self._pass(meter)
        if self._bad:
            self._again = True
            failures += self._pass(meter)
        self._session.save()
        return failures

    def _pass(self, meter: RoofMeter) -> list[Failure]:
        failures: list[Failure] = []
        for stage in self._session.stages:
            if stage.kind == "floors":
                self._floors(stage)
            elif stage.kind == "launch modes":
                failures += self._launch_modes(stage, meter)
            elif stage.kind in ("decode", "kernel"):
                failures += self._points(stage, meter, self._session.backend)
            elif stage.kind == "peers":
                self._peers(stage, meter)
        return failures

    def _due(self, stage: Stage, mode: str) -> list[Point]:
        """Those whose turn is in this pass: first what has not failed yet, then what has."""
        # A step that failed in a stage of its own is compared again, launched in the same way and in others.
        same = [one.name for one in self._session.stages if one.kind == "decode" and mode]
        found = []
        for point in stage.points:
            place = name_of(point)
            known: set[Turn] = {(stage.name, mode, None), (stage.name, mode, place), *((s, "", place) for s in same)}
            if not known & self._given_up:
                if bool(known & self._bad) == self._again:
                    found.append(point)
            elif not self._again:
                self._leave(stage.name, point, Reason.BEGAN_TWICE, mode=mode)
        return found

    @contextlib.contextmanager
    def _in_work(self, stage: str, what: Point | str, mode: str = "") -> Iterator[None]:
        """Say in the stored record that something has begun, until it has ended."""
        one = self._leave(stage, what, Reason.BEGAN_TWICE if self._again else Reason.BEGAN, mode=mode)
        self._session.save()
        try:
            yield
        except BaseException:  # an interrupt says nothing against what was in work
            self._record.left_out.remove(one)
            self._session.save()
            raise
        self._record.left_out.remove(one)

    def _meter(self) -> RoofMeter:
        """The roof, by a sweep; where an earlier part of this run swept, by the pattern it found best."""
        backend, known = self._session.backend, self._record.roof
        if known is not None and (meter := roof.known_roof(backend, known.shape)):
            return meter
        with guarded():
            meter = roof.sweep_roof(backend, progress=lambda name: self._session.tell.progress(f"roof: {name}"))
            self._record.roof = meter.measure(datasheet_gb_per_s=self._record.machine.get("datasheet_gb_per_s"))
        for pattern, why in meter.failed.items():
            self._leave("roof sweep", pattern, Reason.FAILED, why)
        self._session.save()
        return meter

    def _floors(self, stage: Stage) -> None:
        if self._again:
            return
        backend = self._session.backend
        known = {floor.name for floor in self._record.floors}
        if not backend.chains:
            lack = f"the {backend.name} backend cannot run empty operations"
            self._leave(stage.name, "all", Reason.UNAVAILABLE, lack)
        for name in backend.chains:
            if name in known:
                continue
            if not self._clock.room_for(stage.name):
                self._leave(stage.name, name, Reason.NO_TIME)
                continue
            self._session.tell.progress(f"{stage.name}: {name}")
            try:
                with self._in_work(stage.name, name), guarded():
                    self._record.floors.append(boundaries.measure_floor(backend, name))
            except MoegaugeError as error:
                self._leave(stage.name, name, Reason.FAILED, first_line(error))
            self._session.save()

    def _points(self, stage: Stage, meter: RoofMeter, backend: Backend, mode: str = "") -> list[Failure]:
        session = self._session
        name = f"{stage.name} {mode}".strip()

        def skip(point: Point, kernel: str, why: str) -> None:
            place = replace_struct(name_of(point), kernel=kernel)
            self._record.left_out.append(
                LeftOut(stage=stage.name, launch_mode=mode, point=place, reason=Reason.NOT_ALONE, detail=why)
            )

        bench = Bench(
            backend,
            meter,
            session.settings(stage),
            throttle=session.throttle(),
            on_skip=skip,
        )
        launched = backend.launch_mode
        done = {key_of(case) for case in self._record.cases if case.launch_mode == launched}

        def finished(point: Point) -> bool:
            shape = point.cast(session.shapes)
            given = (shape.name, point.format, point.batch, point.context)
            if stage.kind != "kernel":
                return (*given, None) in done
            kinds = step_kinds(shape, batch=point.batch, context=point.context)
            return all((*given, kind) in done for kind in kinds)

        due = self._due(stage, mode)
        late = partial(self._leave, stage.name, reason=Reason.NO_TIME, mode=mode)
        timely = self._clock.within(name, due, late, finished)
        with contextlib.closing(self._alive(stage.name, timely, backend, mode)) as points:
            failures = run_sweep(
                points,
                session.shapes,
                bench.kernels if stage.kind == "kernel" else bench.decode,
                done=done,
                on_case=session.store,
                on_start=lambda p: session.tell.progress(f"{self._clock.elapsed:.0f} s, {name}: {p.label}"),
            )
        for failure in failures:
            self._leave(stage.name, failure.point, Reason.FAILED, first_line(failure.error), mode=mode)
            session.tell.trace(f"{name}: {failure.point.label}")
            for line in failure.trace.splitlines():
                session.tell.trace(line)
        if failures:
            gc.collect()
        session.save()
        return failures

    def _alive(
        self, stage: str, points: Iterator[Point], backend: Backend, mode: str = ""
    ) -> Generator[Point, None, None]:
        """The points, as long as the device answers: after a lost device none gives a time."""
        for point in points:
            if not self._lost:
                try:
                    backend.synchronize()
                except RuntimeError:
                    self._lost = True
            if self._lost:
                self._leave(stage, point, Reason.DEVICE_LOST, mode=mode)
                continue
            with self._in_work(stage, point, mode):
                yield point

    def _launch_modes(self, stage: Stage, meter: RoofMeter) -> list[Failure]:
        """Model by model, every way of launching the backend has; those measured already are passed over."""
        backend = self._session.backend
        if len(backend.launch_modes) < 2:
            if not self._again:
                lack = f"the {backend.name} backend launches in one way"
                self._leave(stage.name, "all", Reason.UNAVAILABLE, lack)
            return []
        failures: list[Failure] = []
        for row in stage.rows:
            for model in row.models:
                one = replace(stage, rows=(replace(row, models=(model,)),))
                for mode in backend.launch_modes:
                    failures += self._points(one, meter, backend.on(mode), mode)
        return failures

    def _peers(self, stage: Stage, meter: RoofMeter) -> None:
        """Other projects' expert kernels on the same matrices in the same rounds, those that are installed."""
        session, kernel = self._session, "experts"
        if self._again and not any(name == stage.name for name, _, _ in self._bad):
            return
        here, absent = present(session.device, {kernel})
        self._record.skipped += [skipped for skipped in absent if skipped not in self._record.skipped]
        if not here:
            self._leave(stage.name, "all", Reason.UNAVAILABLE, "no peer of this device is installed")
            return
        bench = Versus(session.backend, meter, session.settings(stage), here, throttle=session.throttle())
        done = {(c.model, c.format, c.batch, c.kernel) for c in self._record.cases if c.peer is not None}
        cache = session.backend.last_level_cache

        def finished(point: Point) -> bool:
            return (session.shapes[point.model].name, point.format, point.batch, kernel) in done

        due = self._due(stage, "")
        late = partial(self._leave, stage.name, reason=Reason.NO_TIME)
        timely = self._clock.within(stage.name, due, late, finished)
        with contextlib.closing(self._alive(stage.name, timely, session.backend)) as points:
            for point in points:
                session.tell.progress(f"{self._clock.elapsed:.0f} s, {stage.name}: {point.label}")
                try:
                    with guarded():
                        work = kernel_work(point, point.cast(session.shapes), kernel, cache, session.options.seed)
                        cases, skipped = bench.run(work)
                except MoegaugeError as error:
                    self._leave(stage.name, point, Reason.FAILED, first_line(error))
                    continue
                self._record.skipped += skipped
                for case in cases:
                    session.store(case)

    def _leave(self, stage: str, what: Point | str, reason: Reason, detail: str = "", *, mode: str = "") -> LeftOut:
        known = {"what": what} if isinstance(what, str) else {"point": name_of(what)}
        one = LeftOut(stage=stage, launch_mode=mode, reason=reason, detail=detail, **known)
        self._record.left_out.append(one)
        return one


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def schedule(suite: Suite) -> list[list[str]]:
    """Rows of the --dry-run table: stage, points, estimated seconds, their sum so far, what it does."""
    rows, total = [], 0.0
    for stage in suite.stages:
        points = stage.points
        shapes = {name: models.resolve(name) for name in dict.fromkeys(p.model for p in points)}
        seconds = stage_seconds(stage, shapes, points)
        total += seconds
        rows.append([stage.name, str(len(points) or ""), f"{seconds:.0f}", f"{total:.0f}", stage.about])
    return rows
