"""Run points one after another and hand each finished one over at once, so that a stop loses only the point in work.

A point is: build the step, check its numbers, time it beside the roof, check its numbers again. A step whose answer is
outside its error bound has no time: the point is reported as failed and the sweep goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from moegauge.bench import statistics
from moegauge.bench.roof import RoofMeter
from moegauge.bench.suites import Point
from moegauge.bench.timing import Limits, Measurement, Throttle, measure, telemetry
from moegauge.errors import MoegaugeError
from moegauge.estimator.traffic import step_traffic
from moegauge.kernels.backend import Backend
from moegauge.record import Case, CaseBytes
from moegauge.shape import Matrix, ModelShape
from moegauge.units import GB

# A step faster than the roof beside it by more than noise read some of its bytes from a cache.
MAX_FRACTION = 1.02


class Traffic(Protocol):
    """What a step says it read; see `moegauge.bench.step.Traffic`."""

    @property
    def weights(self) -> int: ...
    @property
    def scales(self) -> int: ...
    @property
    def kv(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def distinct_experts(self) -> float: ...


class Step(Protocol):
    """What a sweep needs of `moegauge.bench.step.DecodeStep`."""

    @property
    def kernels(self) -> int: ...
    def run(self) -> None: ...
    def traffic(self) -> Traffic: ...
    def check(self) -> float: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """What all points of a run share.

    Attributes:
        kv_format: `bf16` or `fp8`.
        routing: `uniform`, or another law `moegauge.bench.step` knows.
        arena_bytes: memory for the weight arena; None lets the step choose.
        seed: of the weights and the routing.
        rung: how steps are launched; "" is the backend's default.
        limits: when to stop sampling.
    """

    kv_format: str = "bf16"
    routing: str = "uniform"
    arena_bytes: int | None = None
    seed: int = 0
    rung: str = ""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Failure:
    """A point that gave no time, and why."""

    point: Point
    error: MoegaugeError


class Builder(Protocol):
    """Makes the step of a point; `moegauge.bench.step.build_step` behind `sweep.decode_step`."""

    def __call__(self, shape: ModelShape, backend: Backend, point: Point, settings: Settings) -> Step: ...


def decode_step(shape: ModelShape, backend: Backend, point: Point, settings: Settings) -> Step:
    """The real builder."""
    from moegauge.bench.step import build_step

    step: Step = build_step(
        shape,
        backend,
        batch=point.batch,
        context=point.context,
        format=point.format,
        kv_format=settings.kv_format,
        routing=settings.routing,
        arena_bytes=settings.arena_bytes,
        seed=settings.seed,
    )
    return step


def run_point(
    point: Point,
    shape: ModelShape,
    backend: Backend,
    meter: RoofMeter,
    settings: Settings,
    *,
    builder: Builder = decode_step,
    throttle: Throttle | None = None,
) -> Case:
    """Measure one point.

    Raises:
        DeviceError: no room for the arena, or the device stopped answering.
        NumericsError: an answer outside its error bound, before or after timing.
    """
    step = builder(shape, backend, point, settings)
    try:
        error = step.check()

        def run(times: int) -> float:
            def steps() -> None:
                for _ in range(times):
                    step.run()

            return backend.time(steps)

        seen: list[Traffic] = []
        result = measure(
            run,
            meter.sample,
            limits=settings.limits,
            throttle=throttle,
            after=lambda counts: seen.append(step.traffic()) if counts else None,
        )
        kernels = step.kernels
        error = max(error, step.check())
    finally:
        step.close()
    return _case(
        point=point,
        shape=shape,
        backend=backend,
        settings=settings,
        result=result,
        seen=seen,
        kernels=kernels,
        error=error,
    )


def _case(
    *,
    point: Point,
    shape: ModelShape,
    backend: Backend,
    settings: Settings,
    result: Measurement,
    seen: list[Traffic],
    kernels: int,
    error: float,
) -> Case:
    # Batches route differently from step to step, so bytes are those of each sample's own step.
    fractions = result.fractions([traffic.total for traffic in seen])
    total = round(statistics.mean(traffic.total for traffic in seen))
    weights, scales = (round(statistics.mean(getattr(t, name) for t in seen)) for name in ("weights", "scales"))
    seconds = statistics.median(result.seconds)
    low, high = statistics.interval(result.seconds)
    fraction = statistics.median(fractions)
    cast = shape.with_format(point.format)
    work = step_traffic(shape, batch=point.batch, context=point.context, kv_format=settings.kv_format)
    return Case(
        kind="decode",
        backend=backend.name,
        model=shape.name,
        format=point.format,
        batch=point.batch,
        context=point.context,
        layers=len(shape.layers),
        bytes=CaseBytes(weights=weights, scales=scales, kv=total - weights - scales, total=total),
        distinct_experts=statistics.mean(traffic.distinct_experts for traffic in seen),
        kernels_per_step=kernels,
        samples_ms=[1e3 * s for s in result.seconds],
        median_ms=1e3 * seconds,
        mad_ms=1e3 * statistics.mad(result.seconds),
        interval_ms=(1e3 * low, 1e3 * high),
        tokens_per_s=point.batch / seconds,
        gb_per_s=total / seconds / GB,
        roof_fraction=fraction,
        roof_fraction_samples=fractions,
        roof_fraction_interval=statistics.interval(fractions),
        roof_samples_gb_per_s=[r / GB for r in result.roof_bytes_per_s],
        throttled_ms=[1e3 * s for s in result.throttled_s],
        steps_per_sample=result.steps_per_sample,
        settled=result.settled,
        max_relative_error=error,
        warnings=_warnings(result, fractions, settings.limits),
        kv_format=settings.kv_format,
        routing=settings.routing,
        rung=settings.rung,
        threads=backend.threads or None,
        seed=settings.seed,
        formula_bytes=formula_bytes(cast),
        formats=format_bytes(cast),
        macs=round(work.macs),
        arena_bytes=settings.arena_bytes,
        telemetry=telemetry(result.states),
    )


def formula_bytes(shape: ModelShape) -> int:
    """Bytes per token as the published estimate counts them: active parameters as stored, the whole input embedding
    included, no KV, batch 1."""
    row = shape.embedding.bytes // shape.embedding.rows
    return shape.bytes_per_token + (shape.embedding.bytes - row if shape.head else -row)


def format_bytes(shape: ModelShape) -> dict[str, int]:
    """Bytes of matrices one token reads at batch 1, by format, the most first."""
    found: dict[str, int] = {}

    def add(matrix: Matrix, times: int = 1) -> None:
        found[matrix.format] = found.get(matrix.format, 0) + times * matrix.bytes

    for layer in shape.layers:
        for matrix in layer.dense_matrices:
            add(matrix)
        for pool in layer.experts:
            for matrix in pool.matrices:
                add(matrix, pool.top_k)
    add(shape.head_matrix)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _warnings(result: Measurement, fractions: list[float], limits: Limits) -> list[str]:
    """What a reader should know before trusting a point; each ends with advice."""
    found = []
    if not result.settled:
        width = 100 * statistics.relative_half_width(result.seconds)
        found.append(
            f"not settled: the median's interval is +-{width:.1f} %, wanted {100 * limits.relative_half_width:g} %; "
            "raise --time-limit or quieten the machine"
        )
    if result.throttled_s:
        taken = len(result.throttled_s) + len(result.seconds)
        found.append(f"{len(result.throttled_s)} of {taken} samples left out: the device was throttling; let it cool")
    if statistics.median(fractions) > MAX_FRACTION:
        found.append("faster than the roof beside it: part of the arena stayed in cache; raise --arena-bytes")
    return found


def run_sweep(
    points: Iterable[Point],
    shapes: dict[str, ModelShape],
    backend: Backend,
    meter: RoofMeter,
    settings: Settings,
    *,
    done: set[tuple[str, str, int, int]],
    on_case: Callable[[Case], None],
    on_start: Callable[[Point], None] = lambda _: None,
    builder: Builder = decode_step,
    throttle: Throttle | None = None,
) -> list[Failure]:
    """Measure every point that is not done; `on_case` has stored one before the next begins.

    Args:
        points: what to measure.
        shapes: model name of a point -> its shape.
        done: (model, format, batch, context) of points an earlier part of this run has measured.
        on_case: given each finished point.
        on_start: given each point before it is built.

    Returns:
        the points that failed, with their errors; `on_case` errors (a full disk) are raised at once.
    """
    failures = []
    for point in points:
        shape = shapes[point.model]
        if (shape.name, point.format, point.batch, point.context) in done:
            continue
        on_start(point)
        try:
            case = run_point(point, shape, backend, meter, settings, builder=builder, throttle=throttle)
        except MoegaugeError as error:
            failures.append(Failure(point, error))
            continue
        on_case(case)
    return failures
