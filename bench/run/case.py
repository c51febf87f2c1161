"""A point's samples as its entry in a record (`Case`): median, interval, share of the roof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from moegauge.bench.clock import statistics
from moegauge.bench.clock.pairs import BLOCKS, Limits, Measurement, telemetry
from moegauge.bench.plan.points import Point
from moegauge.bench.run.launches import make_profile
from moegauge.estimator.traffic import format_bytes, format_macs, step_traffic
from moegauge.kernels.backend import Backend, LaunchProfile
from moegauge.record import Case, CaseBytes, Caution, public_argv
from moegauge.shape import ModelShape
from moegauge.units import GB

# A step faster than the roof beside it by more than noise read some of its bytes from a cache.
MAX_FRACTION = 1.02


class Traffic(Protocol):
    """What a step says it read; see `moegauge.bench.step.build.Traffic`."""

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


@dataclass(frozen=True, slots=True)
class Settings:
    """What all points of a run share.

    Attributes:
        kv_format: `bf16` or `fp8`.
        routing: `uniform`, or another law `moegauge.bench.step.build` knows.
        arena_bytes: memory for the weight arena; None lets the step choose.
        seed: of the weights and the routing.
        limits: when to stop sampling.
        gate_rows: outputs of every operation the numerical gate recomputes.
    """

    kv_format: str = "bf16"
    routing: str = "uniform"
    arena_bytes: int | None = None
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    gate_rows: int = 16


def make_case(
    *,
    point: Point,
    shape: ModelShape,
    backend: Backend,
    settings: Settings,
    result: Measurement,
    seen: list[Traffic],
    kernels: int,
    error: float,
    kernel: str | None = None,
    launches: Sequence[LaunchProfile] = (),
) -> Case:
    """The entry of one point, or of one kind of kernel of it.

    Args:
        shape: the model in the point's format.
        seen: what each sample that counts read.
        kernels: kernel boundaries of one step.
        error: the larger of the two gates'.
        kernel: the kind, where it is not the whole step.
        launches: what a GPU launches for it, where the backend tells.
    """
    # Batches route differently from step to step, so bytes are those of each sample's own step.
    totals = [traffic.total for traffic in seen]
    total = round(statistics.mean(totals))
    weights, scales = (round(statistics.mean(getattr(t, name) for t in seen)) for name in ("weights", "scales"))
    distinct = statistics.mean(traffic.distinct_experts for traffic in seen)
    parts = format_bytes(
        shape, batch=point.batch, context=point.context, kv_format=settings.kv_format, distinct=distinct
    )
    work = step_traffic(shape, batch=point.batch, context=point.context, kv_format=settings.kv_format)
    shown = timed(result, totals, point.batch, settings.limits)
    seconds = statistics.median(result.seconds)
    return Case(
        kind="kernel" if kernel else "decode",
        kernel=kernel,
        backend=backend.name,
        model=shape.name,
        format=point.format,
        batch=point.batch,
        context=point.context,
        layers=len(shape.layers),
        bytes=CaseBytes(weights=weights, scales=scales, kv=total - weights - scales, total=total),
        distinct_experts=distinct,
        kernels_per_step=kernels,
        max_relative_error=error,
        kv_format=settings.kv_format,
        routing=public_argv([settings.routing])[0],
        launch_mode=backend.launch_mode,
        threads=backend.threads or None,
        seed=settings.seed,
        formula_bytes=formula_bytes(shape),
        formats={} if kernel else {name: int(size) for name, size in parts.items()},
        macs=round(work.macs),
        attention_macs=round(work.attention_macs),
        format_macs={} if kernel else format_macs(shape, batch=point.batch),
        arena_bytes=settings.arena_bytes,
        **shown,
        profile=make_profile(launches, total, seconds, shown["telemetry"]) if launches and seconds > 0 else None,
    )


def timed(result: Measurement, totals: Sequence[int], batch: int, limits: Limits) -> dict[str, Any]:
    """The fields of a `Case` that follow from its samples.

    Args:
        result: the samples.
        totals: bytes each of them read.
        batch: tokens of one step.
        limits: what was asked of the samples, for warnings.
    """
    fractions = result.fractions(totals)
    total = statistics.mean(totals)
    seconds = statistics.median(result.seconds)
    low, high = statistics.interval(result.seconds)
    return {
        "samples_ms": [1e3 * s for s in result.seconds],
        "median_ms": 1e3 * seconds,
        "mad_ms": 1e3 * statistics.mad(result.seconds),
        "interval_ms": (1e3 * low, 1e3 * high),
        "tokens_per_s": batch / seconds,
        "gb_per_s": round(total) / seconds / GB,
        "roof_fraction": statistics.median(fractions),
        "roof_fraction_samples": fractions,
        "roof_fraction_interval": statistics.interval(fractions),
        "roof_samples_gb_per_s": [r / GB for r in result.roof_bytes_per_s],
        "throttled_ms": [1e3 * s for s in result.throttled_s],
        "disturbed_ms": [1e3 * s for s in result.disturbed_s],
        "round": list(result.rounds),
        "steps_per_sample": result.steps_per_sample,
        "settled": result.settled,
        "warnings": list((found := _warnings(result, fractions, limits)).values()),
        "cautions": list(found),
        "telemetry": telemetry(result.states),
    }


def formula_bytes(shape: ModelShape) -> int:
    """Bytes per token as the published estimate counts them: active parameters as stored, the whole input embedding
    included, no KV, batch 1."""
    row = shape.embedding.bytes // shape.embedding.rows
    return shape.bytes_per_token + (shape.embedding.bytes - row if shape.head else -row)


def _warnings(result: Measurement, fractions: list[float], limits: Limits) -> dict[Caution, str]:
    """What a reader should know before trusting a point; each ends with advice."""
    found: dict[Caution, str] = {}
    if not result.settled:
        width, alike = 100 * statistics.relative_half_width(fractions), statistics.effective(fractions, 0.0)
        wide = (
            f"the interval of its share of the roof is +-{width:.1f} %, wanted {100 * limits.relative_half_width:g} %"
        )
        few = f"{len(fractions)} samples say as much as {alike:.0f} independent ones, wanted {BLOCKS}"
        reasons = [wide] if width > 100 * limits.relative_half_width else []
        reasons += [few] if alike < BLOCKS else []
        if not reasons:
            reasons = ["the time limit came between two looks at the interval"]
        found[Caution.NOT_SETTLED] = f"not settled: {', and '.join(reasons)}; raise --time-limit or quieten the machine"
    if result.all_disturbed:
        found[Caution.DISTURBED] = (
            "every sample was taken while other work took the cores: the time is too long; quieten the machine"
        )
    elif result.disturbed_s:
        taken = len(result.disturbed_s) + len(result.seconds)
        found[Caution.DISTURBED] = (
            f"{len(result.disturbed_s)} of {taken} samples left out: other work took a core meanwhile"
        )
    if result.throttled_s:
        taken = len(result.throttled_s) + len(result.seconds)
        found[Caution.THROTTLED] = (
            f"{len(result.throttled_s)} of {taken} samples left out: the device was throttling; let it cool"
        )
    if statistics.median(fractions) > MAX_FRACTION:
        found[Caution.CACHED] = "faster than the roof beside it: part of the arena stayed in cache; raise --arena-bytes"
    return found
