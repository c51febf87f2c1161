"""The queueing model judged by a GPU run: predicted against measured times, and the latencies that would meet them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moegauge import models
from moegauge.bench.clock import statistics
from moegauge.errors import RecordError
from moegauge.record import Case, Record

if TYPE_CHECKING:
    from moegauge.bench.queueing.fit import Fit


@dataclass(frozen=True, slots=True)
class ModelJudged:
    """How far off predictions were.

    Attributes:
        errors: (case, predicted over measured time minus 1), by nominal latencies.
        between: how many measured times lie between the nominal and the pessimistic prediction.
        fit: latencies fitted to the run; None where that was not asked for.
    """

    errors: list[tuple[Case, float]]
    between: int
    fit: Fit | None = None

    def to_json(self) -> dict[str, Any]:
        """`gpu_model` of `moegauge.compare/1`."""
        sizes = [abs(error) for _, error in self.errors]
        return {
            "n": len(sizes),
            "median_abs_error": statistics.median(sizes),
            "max_abs_error": max(sizes),
            "between_nominal_and_pessimistic": self.between,
            "fit": self.fit.to_json() if self.fit else None,
        }

    def lines(self) -> list[str]:
        """For people."""
        told = self.to_json()
        case, worst = max(self.errors, key=lambda one: abs(one[1]))
        median = f"{100 * told['median_abs_error']:.1f} %"
        first = (
            f"GPU model: {told['n']} points predicted before the run, median error {median}, worst {100 * worst:+.1f} "
            f"% ({case.label}); {self.between} between nominal and pessimistic"
        )
        found = [first]
        if self.fit:
            moved = ", ".join(
                f"{name} {one['table']:g} -> {one['fitted']:.3g}" for name, one in told["fit"]["latencies"].items()
            )
            after = self.fit.error_after
            rest = f", {100 * after:.1f} % with fitted ones, leaving the model out" if after is not None else ""
            found.append(f"at the run's own roof {100 * self.fit.error_before:.1f} %{rest}; fitted latencies: {moved}")
        return found


def judge_model(points: Sequence[tuple[Record, Case]], *, fit: bool = False) -> ModelJudged | None:
    """Judge the predictions that cases carry; None where none does.

    Args:
        points: cases with their records, of one machine.
        fit: fit the latencies, too; kernels are compiled for that.

    Raises:
        RecordError: `fit` of a GPU the table of latencies does not have, or of too few points.
    """
    predicted = [(record, case) for record, case in points if case.predicted_ms is not None]
    if not predicted:
        if fit:
            raise RecordError("no point carries a prediction.", advice="Measure with `bench --predicted FILE`.")
        return None
    errors, between = [], 0
    for _, case in predicted:
        errors.append((case, (case.predicted_ms or 0.0) / case.median_ms - 1.0))
        between += (case.predicted_ms or 0.0) <= case.median_ms <= (case.predicted_pessimistic_ms or 0.0)
    return ModelJudged(errors, between, _fit(predicted) if fit else None)


def _fit(predicted: Sequence[tuple[Record, Case]]) -> Fit:
    from moegauge.bench.queueing.fit import FEWEST, at_the_roof, device_of, fit_latencies, measured_points

    record = predicted[0][0]
    device = device_of(record)
    if device is None:
        raise RecordError(
            f"'{record.machine_id}' is not in the table of latencies.", advice="Leave out --fit-latencies."
        )
    if len(predicted) < FEWEST:
        raise RecordError(
            f"{len(predicted)} points carry a prediction, {FEWEST} are the fewest to fit to.",
            advice="Leave out --fit-latencies, or measure more points.",
        )
    found = measured_points(
        [case for _, case in predicted], device, lambda case: models.resolve(case.model).cast(case.format)
    )
    return fit_latencies(found, at_the_roof(device, record.roof.gb_per_s if record.roof else None))
