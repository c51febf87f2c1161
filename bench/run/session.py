"""One run of `bench`, `validate` or `bench peers`: from options to a record on disk, whoever shows it.

Everything that can be checked is checked before anything is measured; every point is stored at once. What a run has to
say goes through `Tell`, so that nothing here prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from moegauge import machine, models, nvml
from moegauge.bench.clock.pairs import Limits
from moegauge.bench.clock.roof import RoofMeter, find_roof
from moegauge.bench.plan import suites
from moegauge.bench.plan.gpu_suite import Stage
from moegauge.bench.plan.points import NATIVE, Point, Row, rows_of, unique
from moegauge.bench.queueing import prediction_file
from moegauge.bench.run.block import Rounds
from moegauge.bench.run.case import Settings
from moegauge.bench.run.in_cache import measure_in_cache
from moegauge.bench.run.sweep import Bench, Failure, guarded, key_of, run_sweep
from moegauge.bench.step.routing import Routing
from moegauge.errors import UsageError
from moegauge.kernels import devices
from moegauge.kernels.backend import Backend
from moegauge.record import SCHEMA, Case, Project, Record, load, now, public_argv
from moegauge.recordfile import RecordFile, carry

DEFAULT_MODELS = ("gpt-oss-20b",)
DEFAULT_LIMIT_S = 10.0


def _silent(text: str) -> None:
    del text


@dataclass(frozen=True, kw_only=True)
class Tell:
    """How a run speaks while it goes on.

    Attributes:
        progress: one line that the next one replaces; empty text ends it.
        warn: a line a reader should see.
        trace: a line of where an error was raised, of a point that the run goes on without.
    """

    progress: Callable[[str], None] = _silent
    warn: Callable[[str], None] = _silent
    trace: Callable[[str], None] = _silent


@dataclass(kw_only=True)
class Options:
    """The options of one run, as given; None where an option was not. `kind` is `roof`, `decode` or `kernel`."""

    kind: str
    device: str = "auto"
    threads: int | None = None
    launch_mode: str = ""
    out: Path | None = None
    models: str | None = None
    formats: str | None = None
    batches: str | None = None
    contexts: str | None = None
    suite: str | None = None
    kv_format: str = "bf16"
    routing: str = "uniform"
    seed: int = 0
    arena_bytes: int | None = None
    time_limit: float | None = None
    min_samples: int = 10
    noise: float = 1.0
    points: tuple[Point, ...] | None = None
    budget_s: float | None = None
    continue_from: Path | None = None
    predicted: Path | None = None


class Session:
    """One run.

    Args:
        options: what is measured, and where it is stored.
        argv: the words of the command, for the record.
        tell: how it speaks.

    Attributes:
        record: what has been measured.
        failures: points that gave no time.
        unmeasured: points there was no time for.
        stages: of a suite that has stages (`moegauge.bench.run.staged_run` measures it); empty otherwise.

    Raises:
        UsageError, UnknownNameError: options that cannot be.
        DeviceError: no such device here.
    """

    def __init__(self, options: Options, argv: Sequence[str] = (), tell: Tell | None = None) -> None:
        self.options, self.tell = options, tell or Tell()
        self.failures: list[Failure] = []
        self.unmeasured: list[Point] = []
        self.stages: tuple[Stage, ...] = ()
        self.points, self.shapes = self._plan() if options.kind != "roof" else ([], {})
        self.device = machine.resolve_device(options.device)
        if options.launch_mode and self.device != "cuda":
            raise UsageError("--launch is for GPUs.", advice="On a CPU vary --threads.")
        Routing(options.routing)
        self.backend: Backend = devices.get_backend(
            self.device, threads=options.threads, launch_mode=options.launch_mode
        )
        self._check_formats()
        self.argv = ["moegauge", *public_argv(list(argv))]
        self.record = self._draft()
        self.file: RecordFile | None = None
        gpu = self.record.machine.get("gpu")
        name = str(gpu.get("name") if isinstance(gpu, dict) else gpu)
        self._predicted = prediction_file.of_device(options.predicted, name) if options.predicted else {}

    def __enter__(self) -> Session:
        if self.options.continue_from is not None and not (self.options.out and self.options.out.exists()):
            self.tell.warn(carry(load(self.options.continue_from), self.record))
        if self.options.out is not None:
            self.file = RecordFile.open(self.options.out, self.record)
            self.record = self.file.record
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()

    def _plan(self) -> tuple[list[Point], dict[str, Any]]:
        o = self.options
        if o.points is not None:
            return list(o.points), {name: models.resolve(name) for name in dict.fromkeys(p.model for p in o.points)}
        given = suites.get_suite(o.suite) if o.suite else None
        names = suites.parse_list(o.models, "--model") if o.models else None
        formats = suites.check_formats(suites.parse_list(o.formats, "--format")) if o.formats else None
        batches = suites.parse_counts(o.batches, "--batch", 1, 64) if o.batches else None
        contexts = suites.parse_counts(o.contexts, "--context", 0, 131072) if o.contexts else None
        if given:

            def asked(rows: tuple[Row, ...]) -> list[Point]:
                return [
                    p
                    for p in unique(rows)
                    if (names is None or p.model in names)
                    and (formats is None or p.format in formats)
                    and (batches is None or p.batch in batches)
                    and (contexts is None or p.context in contexts)
                ]

            points = asked(given.rows)
            if o.kind == "decode":
                self.stages = tuple(replace(s, rows=rows_of(asked(s.rows))) for s in given.stages)
            if not points:
                raise UsageError(
                    f"suite '{o.suite}' has no point with these options.", advice="Drop an option, or drop --suite."
                )
        else:
            row = Row(names or DEFAULT_MODELS, formats or (NATIVE,), batches or (1,), contexts or (0,))
            points = list(row.points())
        return points, {name: models.resolve(name) for name in dict.fromkeys(p.model for p in points)}

    def _check_formats(self) -> None:
        for name in dict.fromkeys(p.format for p in self.points):
            if name != NATIVE and name not in self.backend.matrix_formats:
                known = ", ".join(sorted(self.backend.matrix_formats))
                raise UsageError(
                    f"the {self.backend.name} backend has no kernel for format '{name}'.", advice=f"It has: {known}."
                )

    def _draft(self) -> Record:
        return Record(
            schema=SCHEMA,
            created=now(),
            project=Project(**machine.project()),
            machine=machine.describe("cuda" if self.device == "cuda" else "cpu"),
            software=machine.software(),
            argv=self.argv,
            suite=self.options.suite,
            planned=len(self.points) if not self.stages else None,
            complete=False,
            load_average=machine.load_average(),
            cases=[],
        )

    def settings(self, stage: Stage | None = None) -> Settings:
        """Limits and arena of this run, or of one stage of it."""
        o = self.options
        suite = suites.get_suite(o.suite) if o.suite else None
        usual = stage.time_limit_s if stage else suite.time_limit_s if suite else DEFAULT_LIMIT_S
        limit = o.time_limit or usual
        limits = Limits(relative_half_width=o.noise / 100, min_samples=o.min_samples, time_limit_s=limit)
        if suite:
            limits = replace(limits, warmup_s=suite.warmup_s, sample_s=suite.sample_s)
        return Settings(
            kv_format=o.kv_format,
            routing=o.routing,
            seed=o.seed,
            arena_bytes=o.arena_bytes,
            limits=limits,
            **({"gate_rows": suite.gate_rows} if suite else {}),
        )

    def measure(self) -> Record:
        """Measure the roof and every point that is not in the record yet."""
        self.warn_if_busy()
        with guarded():
            meter = find_roof(self.backend, progress=lambda name: self.tell.progress(f"roof: {name}"))
            roof = self.record.roof or meter.measure(datasheet_gb_per_s=self.record.machine.get("datasheet_gb_per_s"))
        if self.record.roof is None:
            self.record.roof = roof
            self.save()
        self._in_cache()
        self._sweep(meter)
        self.record.complete = not self.failures and not self.unmeasured
        self.save()
        self.tell.progress("")
        return self.record

    def _in_cache(self) -> None:
        """What the plan's products cost in the caches, unless the record says so."""
        if self.record.in_cache or not self.points:
            return
        self.tell.progress("products in cache")
        shapes = [(point.cast(self.shapes), point.context) for point in self.points]
        with guarded():
            found = measure_in_cache(self.backend, shapes, self.options.kv_format)
        self.record.in_cache, self.record.attention_in_cache = found
        self.save()

    def throttle(self) -> _GpuThrottle | None:
        """What tells whether the device is holding back."""
        return throttle_of(self.device)

    def warn_if_busy(self) -> None:
        """Say so where other work takes the processor."""
        load, cores = self.record.load_average, machine.usable_cores()
        if self.device == "cpu" and load is not None and load > 0.5 * cores:
            self.tell.warn(f"the machine is busy (load {load:.1f} on {cores} cores): times will be long and noisy")

    def _sweep(self, meter: RoofMeter) -> None:
        if self.options.kind == "roof":
            return
        bench = Bench(self.backend, meter, self.settings(), throttle=self.throttle(), on_skip=self._not_alone)
        done = {key_of(case) for case in self.record.cases}
        if self.options.kind == "decode" and self.backend.cuts:
            rounds = Rounds(
                bench,
                on_case=self.store,
                on_start=lambda text: self.tell.progress(f"{len(self.record.cases)} measured, now {text}"),
                seconds_left=self._time_left(),
            )
            rounds.run(self.points, self.shapes, done)
            self.failures, self.unmeasured = rounds.failures, rounds.unmeasured
            return
        self.failures = run_sweep(
            self._within_budget(),
            self.shapes,
            bench.kernels if self.options.kind == "kernel" else bench.decode,
            done=done,
            on_case=self.store,
            on_start=lambda p: self.tell.progress(f"{len(self.record.cases)} measured, now {p.label}"),
        )

    def _time_left(self) -> Callable[[], float | None]:
        """Seconds of the run's budget that are left, asked when a block begins; None where it has none."""
        start, budget = time.monotonic(), self.options.budget_s
        return lambda: None if budget is None else budget - (time.monotonic() - start)

    def _within_budget(self) -> Iterator[Point]:
        """The points, until the run's time budget is spent; the rest is kept in `unmeasured`."""
        start = time.monotonic()
        for point in self.points:
            if self.options.budget_s is not None and time.monotonic() - start > self.options.budget_s:
                self.unmeasured.append(point)
            else:
                yield point

    def store(self, case: Case) -> None:
        """Keep a point, on disk at once, with what was predicted of it."""
        self.record.cases.append(prediction_file.with_prediction(case, self._predicted))
        self.save()

    def save(self) -> None:
        """Write the record as it is now, where --out is given."""
        if self.file is not None:
            self.file.save()

    def _not_alone(self, point: Point, kernel: str, why: str) -> None:
        self.tell.warn(f"{point.label}, {kernel}: not timed alone ({why})")


class _GpuThrottle:
    def __init__(self, gpu: nvml.Gpu) -> None:
        self._gpu = gpu

    def read(self) -> dict[str, Any]:
        return self._gpu.state()


def throttle_of(device: str) -> _GpuThrottle | None:
    """What tells whether the device holds itself back; None where nothing does."""
    gpu = nvml.first_gpu() if device == "cuda" else None
    return None if gpu is None else _GpuThrottle(gpu)
