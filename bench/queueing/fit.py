"""Fit the queueing model's latencies to a record of a GPU run, and say how far off it was before and is after.

Relative residuals of every point that carries a prediction, and a prior that holds each latency within tens of per cent
of the table's: what no point tells apart stays where it was. Points that were fitted to are no judge of the fit; its
error is given for points of models left out, one model after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moegauge.bench.clock import statistics
from moegauge.bench.queueing.latencies import Latencies, latencies
from moegauge.bench.queueing.prediction import predict_launches
from moegauge.bench.queueing.prediction_file import device_named
from moegauge.bench.queueing.step import CodeBook, Laid, lay_out
from moegauge.record import Case, Record
from moegauge.shape import ModelShape

# What a run may move: the latencies that were stated or pieced together, not counts, clocks and lanes.
FITTED = ("dram", "l2", "fence", "release", "edge", "fetch", "stall_factor", "issue_share")
RESIDUAL = 0.01  # relative: samples of one point repeat within 1 %
SPREAD = 0.35  # standard deviation of the logarithm of a latency: nominal and pessimistic are a quarter to a half apart
FEWEST = 4  # points to fit to


@dataclass(frozen=True, slots=True)
class Measured:
    """A point of a record: what it launches, how, and the ns it took."""

    model: str
    mode: str
    laid: tuple[Laid, ...]
    ns: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Latencies fitted to a run.

    Attributes:
        before, after: the table's, at the run's own roof and as fitted.
        error_before, error_after: median of |predicted / measured - 1|; after, of points whose model was left out of
            the fit (None with one model).
        points: how many were fitted to.
    """

    before: Latencies
    after: Latencies
    error_before: float
    error_after: float | None
    points: int

    def to_json(self) -> dict[str, Any]:
        """As `gpu_model.fit` of `moegauge.compare/1`."""
        return {
            "points": self.points,
            "median_abs_error_before": self.error_before,
            "median_abs_error_after_leaving_the_model_out": self.error_after,
            "latencies": {
                name: {"table": getattr(self.before, name), "fitted": getattr(self.after, name)} for name in FITTED
            },
        }


def device_of(record: Record) -> str | None:
    """The device of the table a record was made on; None where it is none of them."""
    gpu = record.machine.get("gpu")
    return device_named(str(gpu.get("name") if isinstance(gpu, dict) else gpu))


def fit_latencies(points: Sequence[Measured], start: Latencies) -> Fit:
    """The latencies under which the model meets measured times best.

    Args:
        points: at least FEWEST.
        start: the table's, with the bandwidth the run measured.
    """
    after = _solve(points, start)
    errors: list[float] = []
    models = dict.fromkeys(point.model for point in points)
    for model in models if len(models) > 1 else ():
        others = [point for point in points if point.model != model]
        if len(others) >= FEWEST:
            without = _solve(others, start)
            errors += [_error(point, without) for point in points if point.model == model]
    before = statistics.median([abs(_error(point, start)) for point in points])
    left = statistics.median([abs(error) for error in errors]) if errors else None
    return Fit(start, after, before, left, len(points))


def _error(point: Measured, at: Latencies) -> float:
    """Predicted over measured, minus 1."""
    return predict_launches(list(point.laid), at, point.mode) / point.ns - 1.0


def _solve(points: Sequence[Measured], start: Latencies) -> Latencies:
    import numpy as np
    from scipy.optimize import least_squares

    def at(moved: Any) -> Latencies:
        return replace(
            start, **{name: getattr(start, name) * math.exp(x) for name, x in zip(FITTED, moved, strict=True)}
        )

    def residuals(moved: Any) -> Any:
        now = at(moved)
        logs = [math.log(1.0 + _error(point, now)) / RESIDUAL for point in points]
        return np.array([*logs, *(np.asarray(moved) / SPREAD)])

    # The model has corners, where another queue becomes the longest: steps of 2 % see past them.
    found = least_squares(residuals, np.zeros(len(FITTED)), diff_step=0.02, x_scale=SPREAD, max_nfev=40)
    return at(found.x)


def measured_points(
    cases: Sequence[Case], device: str, shape_of: Callable[[Case], ModelShape], book: CodeBook | None = None
) -> list[Measured]:
    """Cases with the launches they are made of, whose kernels are compiled.

    Args:
        cases: measured on `device`.
        shape_of: a case's model in its format.
        book: machine code read so far.
    """
    book = book or CodeBook()
    processors = int(latencies(device).multiprocessors)
    found = []
    for case in cases:
        laid = lay_out(
            shape_of(case), book, device, processors, batch=case.batch, context=case.context,
            dependent=case.launch_mode == "pdl",
        )  # fmt: skip
        if case.kernel is not None:
            laid = [one for one in laid if one.kind == case.kernel]
        found.append(Measured(case.model, case.launch_mode, tuple(laid), 1e6 * case.median_ms))
    return found


def at_the_roof(device: str, roof_gb_per_s: float | None) -> Latencies:
    """The table's nominal latencies with the read roof a run measured."""
    table = latencies(device)
    return replace(table, roof_share=roof_gb_per_s / table.datasheet) if roof_gb_per_s else table
