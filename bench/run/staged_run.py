"""A suite of stages: roof, floors, steps, kernels, launch modes, peers; each point is stored as soon as it is had."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial

from msgspec.structs import replace as replace_struct

from moegauge import models
from moegauge.bench.clock import boundaries, roof
from moegauge.bench.clock.roof import RoofMeter
from moegauge.bench.peers.point import Versus
from moegauge.bench.peers.registry import present
from moegauge.bench.peers.work import kernel_work
from moegauge.bench.plan.budget import Clock, estimates
from moegauge.bench.plan.gpu_suite import Stage
from moegauge.bench.plan.points import Point, rows_of
from moegauge.bench.plan.smoke import CONTEXT, SmokeTest, shape_of, smoke_tests
from moegauge.bench.plan.suites import Suite, get_suite
from moegauge.bench.run.session import Session
from moegauge.bench.run.sweep import Bench, Failure, guarded, key_of, run_sweep
from moegauge.bench.step.build import WHOLE, build_step, step_kinds
from moegauge.errors import MoegaugeError, NumericsError
from moegauge.kernels.backend import Backend
from moegauge.record import UNTRIED, KernelVerdict, LeftOut, PointName, Reason, Record

FASTEST = "pdl"  # the launch mode expected to be fastest, once it has been judged right on a device
HUNG = "it began and did not end"
SMOKE_ARENA, SMOKE_ROWS = 1 << 28, 8  # bytes; outputs of every operation judged

# (stage, launch mode, point or what): what is tried again, or no more. Without the last: all of a launch mode.
Turn = tuple[str, str, object]


def turn_of(one: LeftOut) -> Turn:
    """What an entry is about."""
    return one.stage, one.launch_mode, one.point or one.what


def name_of(point: Point) -> PointName:
    """A point of a plan as a record names it."""
    return PointName(model=point.model, format=point.format, batch=point.batch, context=point.context)


def _verdict(test: SmokeTest) -> Callable[..., KernelVerdict]:
    """Makes verdicts of a smoke test."""
    return partial(KernelVerdict, model=test.model, format=test.format, launch_mode=test.mode)


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
        compared = {stage.name for stage in session.stages if stage.kind == "launch modes"}
        for known, why in ((self._bad, Reason.BEGAN), (self._given_up, Reason.BEGAN_TWICE)):
            known |= {(o.stage, o.launch_mode, None) for o in before if o.stage in compared and o.reason is why}
        tests = {(test.label, test.mode): test for test in smoke_tests(session.backend)}
        for one in before:
            if one.reason is Reason.BEGAN and (test := tests.get((one.what, one.launch_mode))):
                self._record.verdicts.append(_verdict(test)(kernel=WHOLE, passed=False, detail=HUNG))
            elif one.reason is Reason.BEGAN:
                self._refuse(one.launch_mode, one.point, HUNG)
        self._again = False
        self._record.left_out = []
        self._lost = False
        self._roof: RoofMeter | None = None
        self._no_roof: MoegaugeError | None = None

    def run(self) -> list[Failure]:
        """Every stage in order, then what failed in an earlier part of this run; the points that failed."""
        failures = self._pass()
        if self._bad:
            self._again = True
            failures += self._pass()
        self._session.save()
        if self._no_roof is not None:
            raise self._no_roof
        return failures

    def _pass(self) -> list[Failure]:
        failures: list[Failure] = []
        for stage in self._stages():
            if stage.kind == "smoke":
                self._smoke(stage)
            elif stage.kind == "floors":
                self._floors(stage)
            elif stage.kind == "sweep" and self._roof is not None:
                self._sweep(stage)
            elif (meter := self._meter(stage)) is not None:
                if stage.kind == "launch modes":
                    failures += self._launch_modes(stage, meter)
                elif stage.kind in ("decode", "kernel"):
                    failures += self._launched(stage, meter)
                elif stage.kind == "peers":
                    self._peers(stage, meter)
        return failures

    def _stages(self) -> Iterator[Stage]:
        yield from self._session.stages

    def _refuse(self, mode: str, place: PointName | None, why: str) -> None:
        """Note that a launch mode is not to be trusted, where it is not the device's usual one."""
        if mode in ("", self._session.backend.launch_mode):
            return
        model, name = (place.model, place.format) if place else ("", "")
        verdict = KernelVerdict(kernel=WHOLE, model=model, format=name, launch_mode=mode, passed=False, detail=why)
        about = (model, name, mode)
        if not any((v.model, v.format, v.launch_mode) == about and not v.passed for v in self._record.verdicts):
            self._record.verdicts.append(verdict)

    def _why(self, backend: Backend) -> Reason:
        """What to call a failure: one that takes the device with it has not ended, and is not tried a third time."""
        if self._answers(backend):
            return Reason.FAILED
        return Reason.BEGAN_TWICE if self._again else Reason.BEGAN

    def _smoke(self, stage: Stage) -> None:
        """Judge every small step that has no verdict yet; what is wrong, or stops the device, is a verdict too."""
        # One that took its process with it says that others may: what else there is to measure goes before them.
        if self._again != any(name == stage.name for name, _, _ in self._bad):
            return
        session, backend = self._session, self._session.backend
        for test in smoke_tests(backend):
            judged = {(one.model, one.format, one.launch_mode) for one in self._record.verdicts}
            if (test.model, test.format, test.mode) in judged:
                continue
            verdict = _verdict(test)
            if not self._answers(backend):
                self._leave(stage.name, test.label, Reason.DEVICE_LOST, mode=test.mode)
                continue
            if not self._clock.room_for(stage.name):
                self._leave(stage.name, test.label, Reason.NO_TIME, mode=test.mode)
                continue
            session.tell.progress(f"{self._clock.elapsed:.0f} s, {stage.name}: {test.label}, {test.mode}")
            try:
                with self._in_work(stage.name, test.label, test.mode), guarded():
                    self._record.verdicts += list(self._judged(test, verdict))
            except MoegaugeError as error:
                why = first_line(error)
                self._record.verdicts.append(verdict(kernel=WHOLE, passed=False, detail=why))
                self._leave(stage.name, test.label, self._why(backend), why, mode=test.mode)
            session.save()

    def _judged(self, test: SmokeTest, verdict: Callable[..., KernelVerdict]) -> Iterator[KernelVerdict]:
        step = build_step(
            shape_of(test).cast(test.format),
            self._session.backend.on(test.mode) if test.mode else self._session.backend,
            context=CONTEXT,
            arena_bytes=SMOKE_ARENA,
            reuse=0.0,
            gate_rows=SMOKE_ROWS,
        )
        try:
            for kernel, found in step.verdicts(test.runs):
                if isinstance(found, NumericsError):
                    yield verdict(kernel=kernel, passed=False, detail=first_line(found))
                else:
                    yield verdict(kernel=kernel, passed=True, max_relative_error=found)
        finally:
            step.close()

    def _answers(self, backend: Backend) -> bool:
        """Whether the device still answers in this process."""
        if not self._lost:
            try:
                backend.synchronize()
            except RuntimeError:
                self._lost = True
        return not self._lost

    def _launched(self, stage: Stage, meter: RoofMeter) -> list[Failure]:
        """Point by point in the stage's launch mode; one that fails in another than the device's usual mode is measured
        in that one at once, and so is what comes behind it."""
        usual = self._session.backend
        failures: list[Failure] = []
        if stage.launch_mode and stage.launch_mode not in usual.launch_modes and len(usual.launch_modes) > 1:
            if not self._again:
                lack = f"the {usual.name} backend has no launch mode '{stage.launch_mode}'"
                self._leave(stage.name, "all", Reason.UNAVAILABLE, lack)
            return failures
        for point in stage.points:
            one = replace(stage, rows=rows_of([point]))
            while True:
                mode = self._mode(stage)
                found = self._points(one, meter, usual.on(mode) if mode else usual, mode)
                failures += found
                for failure in found:
                    if isinstance(failure.error, NumericsError) or not self._answers(usual):
                        self._refuse(mode, name_of(point), first_line(failure.error))
                if not found or self._lost or not mode or self._mode(stage) == mode:
                    break
        return failures

    def _mode(self, stage: Stage) -> str:
        """How a stage's points are launched; "" is the device's usual mode. Another one only as long as no answer of it
        was wrong, and, unless the stage names it, where it has been judged."""
        usual = self._session.backend
        if self._session.options.launch_mode:
            return ""
        wanted = stage.launch_mode or FASTEST
        known = [one.passed for one in self._record.verdicts if one.launch_mode == wanted]
        trusted = all(known) if stage.launch_mode else self._record.trusts(wanted)
        return wanted if trusted and wanted in usual.launch_modes and wanted != usual.launch_mode else ""

    def _due(self, stage: Stage, mode: str) -> list[Point]:
        """Those whose turn is in this pass: first what has not failed yet, then what has."""
        # A step that failed in a stage of its own is compared again, launched in the same way and in others.
        alike = stage.kind == "launch modes"
        same = [one.name for one in self._session.stages if one.kind == "decode" and alike]
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

    def _meter(self, stage: Stage) -> RoofMeter | None:
        """The roof: by the pattern an earlier part of this run found best, else by a sweep where the stage is one, else
        by the usual patterns. None where there is none: nothing is timed then."""
        if self._roof is not None or self._no_roof is not None:
            return self._roof
        backend, known = self._session.backend, self._record.roof
        try:
            with guarded():
                meter = roof.known_roof(backend, known.shape) if known is not None else None
                if meter is None:
                    meter = self._tried(stage, roof.sweep_roof if stage.kind == "sweep" else roof.find_roof)
                    sheet = self._record.machine.get("datasheet_gb_per_s")
                    self._record.roof = meter.measure(datasheet_gb_per_s=sheet)
                self._roof = meter
        except MoegaugeError as error:
            self._no_roof = error
            reason = Reason.FAILED if self._answers(backend) else Reason.DEVICE_LOST
            self._leave("roof", "all", reason, first_line(error))
        self._session.save()
        return self._roof

    def _sweep(self, stage: Stage) -> None:
        """Many more patterns, for the table: the roof of this record stays the one its points were measured beside."""
        known = self._record.roof
        if self._again or known is None or roof.is_swept(self._session.backend, known.sweep):
            return
        if not self._clock.room_for(stage.name):
            self._leave(stage.name, "all", Reason.NO_TIME)
            return
        try:
            with guarded():
                swept = self._tried(stage, roof.sweep_roof).swept
        except MoegaugeError as error:
            self._leave(stage.name, "all", Reason.FAILED, first_line(error))
            return
        self._record.roof = replace_struct(known, sweep=swept)
        self._session.save()

    def _tried(self, stage: Stage, find: Callable[..., RoofMeter]) -> RoofMeter:
        """A roof by `find`, the pattern in work noted in the record; one at which a process ended is not tried."""
        name = stage.name if stage.kind in ("roof", "sweep") else "roof"
        hung = {what for where, _, what in self._bad | self._given_up if where == name and isinstance(what, str)}
        for pattern in sorted(hung):
            self._leave(name, pattern, Reason.BEGAN_TWICE)
        noted: list[LeftOut] = []

        def note(pattern: str) -> None:
            while noted:
                self._record.left_out.remove(noted.pop())
            if pattern:
                self._session.tell.progress(f"{name}: {pattern}")
                noted.append(self._leave(name, pattern, Reason.BEGAN))
                self._session.save()

        try:
            meter = find(self._session.backend, progress=note, skip=hung)
        finally:
            note("")
            self._session.save()
        for pattern, why in meter.failed.items():
            self._leave(name, pattern, Reason.FAILED, why)
        return meter

    def _floors(self, stage: Stage) -> None:
        # One that took its process with it puts all of them off; at a second time they are given up.
        if any(name == stage.name for name, _, _ in self._given_up):
            if not self._again:
                self._leave(stage.name, "all", Reason.BEGAN_TWICE)
            return
        if self._again != any(name == stage.name for name, _, _ in self._bad):
            return
        backend = self._session.backend
        known = {floor.name for floor in self._record.floors}
        if not backend.chains:
            lack = f"the {backend.name} backend cannot run empty operations"
            self._leave(stage.name, "all", Reason.UNAVAILABLE, lack)
        for name in backend.chains:
            if name in known:
                continue
            if not self._answers(backend):
                self._leave(stage.name, name, Reason.DEVICE_LOST)
                continue
            if not self._clock.room_for(stage.name):
                self._leave(stage.name, name, Reason.NO_TIME)
                continue
            self._session.tell.progress(f"{stage.name}: {name}")
            try:
                with self._in_work(stage.name, name), guarded():
                    self._record.floors.append(boundaries.measure_floor(backend, name))
            except MoegaugeError as error:
                self._leave(stage.name, name, self._why(backend), first_line(error))
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
            on_no_profile=lambda point, kernel, why: session.tell.trace(
                f"{name}: {point.label}, {kernel}: no compiler's report ({why})"
            ),
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
            self._leave(stage.name, failure.point, self._why(backend), first_line(failure.error), mode=mode)
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
            if not self._answers(backend):
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
                    self._leave(stage.name, point, self._why(session.backend), first_line(error))
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
    shapes = {p.model: models.resolve(p.model) for stage in suite.stages for p in stage.points}
    rows, total = [], 0.0
    for stage, points, seconds in estimates(suite.stages, shapes):
        total += seconds
        rows.append([stage.name, str(points or ""), f"{seconds:.0f}", f"{total:.0f}", stage.about])
    return rows
