"""What `bench roof`, `bench kernels`, `bench decode` and `validate` share: from options to a record on disk."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from moegauge import machine, models, nvml
from moegauge.commands._output import printable, progress_wanted, warn
from moegauge.errors import DeviceError, UsageError
from moegauge.record import SCHEMA, UNTRIED, Case, Project, Record, now, public_argv
from moegauge.recordfile import RecordFile

if TYPE_CHECKING:
    from moegauge.bench.clock.roof import RoofMeter
    from moegauge.bench.plan.gpu_suite import Stage
    from moegauge.bench.plan.points import Point
    from moegauge.bench.run.case import Settings
    from moegauge.bench.run.sweep import Failure
    from moegauge.kernels.backend import Backend

DEFAULT_MODELS = ("gpt-oss-20b",)
DEFAULT_LIMIT_S = 10.0


@dataclass(kw_only=True)
class Options:
    """The options of one run, as given; None where an option was not."""

    kind: str
    device: str = "auto"
    threads: int | None = None
    launch_mode: str = ""
    out: Path | None = None
    export_csv: Path | None = None
    export_markdown: Path | None = None
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
    resume: list[str] | None = None


def resolve_device(name: str) -> str:
    """`auto` -> `cuda` where an NVIDIA GPU answers and torch is installed, else `cpu`; other names as they are."""
    if name != "auto":
        return name
    from importlib.util import find_spec

    return "cuda" if nvml.first_gpu() is not None and find_spec("torch") else "cpu"


class Session:
    """One run: checks everything that can be checked before it measures, stores every point at once."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.failures: list[Failure] = []
        self.unmeasured: list[Point] = []
        self.stages: tuple[Stage, ...] = ()
        self.points, self.shapes = self._plan() if options.kind != "roof" else ([], {})
        self.device = resolve_device(options.device)
        if options.launch_mode and self.device != "cuda":
            raise UsageError("--launch is for GPUs.", advice="On a CPU vary --threads.")
        self._check_routing()
        from moegauge.kernels.devices import get_backend

        self.backend: Backend = get_backend(self.device, threads=options.threads, launch_mode=options.launch_mode)
        self._check_formats()
        self.argv = ["moegauge", *public_argv(sys.argv[1:])]
        self.record = self._draft()
        self.file: RecordFile | None = None

    def __enter__(self) -> Session:
        if self.options.out is not None:
            self.file = RecordFile.open(self.options.out, self.record)
            self.record = self.file.record
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()
        if kind is KeyboardInterrupt:
            self._say_how_to_resume()

    def _plan(self) -> tuple[list[Point], dict[str, Any]]:
        from moegauge.bench.plan import points as points_
        from moegauge.bench.plan import suites

        o = self.options
        if o.points is not None:
            return list(o.points), {name: models.resolve(name) for name in dict.fromkeys(p.model for p in o.points)}
        given = suites.get_suite(o.suite) if o.suite else None
        names = suites.parse_list(o.models, "--model") if o.models else None
        formats = suites.check_formats(suites.parse_list(o.formats, "--format")) if o.formats else None
        batches = suites.parse_counts(o.batches, "--batch", 1, 64) if o.batches else None
        contexts = suites.parse_counts(o.contexts, "--context", 0, 131072) if o.contexts else None
        if given:

            def asked(rows: tuple[points_.Row, ...]) -> list[Point]:
                return [
                    p
                    for p in points_.unique(rows)
                    if (names is None or p.model in names)
                    and (formats is None or p.format in formats)
                    and (batches is None or p.batch in batches)
                    and (contexts is None or p.context in contexts)
                ]

            points = asked(given.rows)
            if o.kind == "decode":
                self.stages = tuple(replace(s, rows=points_.rows_of(asked(s.rows))) for s in given.stages)
            if not points:
                raise UsageError(
                    f"suite '{o.suite}' has no point with these options.", advice="Drop an option, or drop --suite."
                )
        else:
            row = points_.Row(names or DEFAULT_MODELS, formats or (points_.NATIVE,), batches or (1,), contexts or (0,))
            points = list(row.points())
        return points, {name: models.resolve(name) for name in dict.fromkeys(p.model for p in points)}

    def _check_formats(self) -> None:
        from moegauge.bench.plan.points import NATIVE

        for name in dict.fromkeys(p.format for p in self.points):
            if name != NATIVE and name not in self.backend.matrix_formats:
                known = ", ".join(sorted(self.backend.matrix_formats))
                raise UsageError(
                    f"the {self.backend.name} backend has no kernel for format '{name}'.", advice=f"It has: {known}."
                )

    def _check_routing(self) -> None:
        from moegauge.bench.step.routing import Routing

        Routing(self.options.routing)

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
        from moegauge.bench.clock.pairs import Limits
        from moegauge.bench.plan.suites import get_suite
        from moegauge.bench.run.case import Settings

        o = self.options
        suite = get_suite(o.suite) if o.suite else None
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
        from moegauge.bench.clock.roof import find_roof
        from moegauge.bench.run.sweep import guarded

        self._warn_if_busy()
        if self.stages:
            return self._measure_stages()
        with guarded():
            meter = find_roof(self.backend, progress=lambda name: self.progress(f"roof: {name}"))
            roof = self.record.roof or meter.measure(datasheet_gb_per_s=self.record.machine.get("datasheet_gb_per_s"))
        if self.record.roof is None:
            self.record.roof = roof
            self.save()
        self._sweep(meter)
        self.record.complete = not self.failures and not self.unmeasured
        self.save()
        self.progress("")
        return self.record

    def _measure_stages(self) -> Record:
        """Measure the stages of the suite that are not in the record yet, within the budget."""
        from moegauge.bench.plan.budget import Clock
        from moegauge.bench.plan.suites import get_suite
        from moegauge.commands._stages import StageRun

        assert self.options.suite is not None
        budget = self.options.budget_s or get_suite(self.options.suite).budget_s
        self.failures = StageRun(self, Clock(budget)).run()
        # What this machine cannot do is no reason to run again; what there was no time for is.
        self.record.complete = not self.failures and not any(one.reason in UNTRIED for one in self.record.left_out)
        self.save()
        self.progress("")
        return self.record

    def throttle(self) -> _GpuThrottle | None:
        """What tells whether the device is holding back."""
        return throttle_of(self.device)

    def _warn_if_busy(self) -> None:
        load, cores = self.record.load_average, machine.usable_cores()
        if self.device == "cpu" and load is not None and load > 0.5 * cores:
            warn(f"the machine is busy (load {load:.1f} on {cores} cores): times will be long and noisy")

    def _sweep(self, meter: RoofMeter) -> None:
        if self.options.kind == "roof":
            return
        from moegauge.bench.run.sweep import Bench, key_of, run_sweep

        bench = Bench(self.backend, meter, self.settings(), throttle=throttle_of(self.device), on_skip=not_alone)
        self.failures = run_sweep(
            self._within_budget(),
            self.shapes,
            bench.kernels if self.options.kind == "kernel" else bench.decode,
            done={key_of(case) for case in self.record.cases},
            on_case=self.store,
            on_start=lambda p: self.progress(f"{len(self.record.cases)} measured, now {p.label}"),
        )

    def _within_budget(self) -> Iterator[Point]:
        """The points, until the run's time budget is spent; the rest is kept in `unmeasured`."""
        start = time.monotonic()
        for point in self.points:
            if self.options.budget_s is not None and time.monotonic() - start > self.options.budget_s:
                self.unmeasured.append(point)
            else:
                yield point

    def store(self, case: Case) -> None:
        """Keep a point, on disk at once."""
        self.record.cases.append(case)
        self.save()

    def save(self) -> None:
        """Write the record as it is now, where --out is given."""
        if self.file is not None:
            self.file.save()

    def progress(self, text: str) -> None:
        """One line that overwrites itself, on a terminal only; empty text clears it."""
        if progress_wanted():
            click.echo(f"\r\x1b[2K{printable(text)}", err=True, nl=False)

    def _say_how_to_resume(self) -> None:
        done, planned = len(self.record.cases), len(self.points)
        if self.options.out is None:
            click.echo(f"\nStopped after {done} of {planned} points; nothing was stored (no --out).", err=True)
            return
        again = shlex.join(["moegauge", *(self.options.resume or sys.argv[1:])])
        click.echo(
            f"\nStopped after {done} of {planned} points; {self.options.out} is valid. Resume: {printable(again)}",
            err=True,
        )

    def export(self) -> None:
        """Write the tables asked for.

        Raises:
            RecordError: one cannot be written.
        """
        from moegauge.bench.report import tables
        from moegauge.recordfile import write_text

        if self.options.export_csv:
            write_text(self.options.export_csv, tables.csv_text(self.record))
        if self.options.export_markdown:
            write_text(self.options.export_markdown, tables.markdown(self.record))

    def document(self, record: Record) -> Any:
        """The record as one JSON document."""
        import msgspec

        return msgspec.to_builtins(record)

    def show(self, record: Record) -> None:
        """Roof and points as a table on stdout."""
        from moegauge.commands._tables import show_record

        show_record(record)
        if self.options.out is None:
            click.echo("Not stored: give --out FILE to keep the record.", err=True)
        else:
            click.echo(f"Record: {self.options.out}", err=True)

    def raise_failures(self) -> None:
        """Exit 1 when a point gave no time; each is named on stderr.

        Raises:
            DeviceError: at least one point failed.
        """
        if not self.failures:
            return
        if len(self.failures) == 1 and len(self.points) == 1:
            raise self.failures[0].error
        for failure in self.failures:
            warn(f"{failure.point.label}: {failure.error}")
        raise DeviceError(
            f"{len(self.failures)} points gave no time."
            if self.stages  # where launch modes are compared, a point is taken several times
            else f"{len(self.failures)} of {len(self.points)} points gave no time.",
            advice="Run again to try these.",
        )


class _GpuThrottle:
    def __init__(self, gpu: nvml.Gpu) -> None:
        self._gpu = gpu

    def read(self) -> dict[str, Any]:
        return self._gpu.state()


def not_alone(point: Point, kernel: str, why: str) -> None:
    """Warn of a kind of kernel that is not timed alone."""
    warn(f"{point.label}, {kernel}: not timed alone ({why})")


def throttle_of(device: str) -> _GpuThrottle | None:
    """What tells whether the device holds itself back; None where nothing does."""
    gpu = nvml.first_gpu() if device == "cuda" else None
    return None if gpu is None else _GpuThrottle(gpu)
