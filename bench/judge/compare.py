"""Predicted against measured tokens/s: the law fitted without the model it predicts, the formula beside it.

The law (`moegauge.estimator.law`) is fitted to the points of all other models and asked for the one left out, at the
roof measured beside that point. The published one-term formula gets the same treatment. Both are judged by the same
error: predicted tokens/s over measured tokens/s, minus 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moegauge.bench.clock import statistics
from moegauge.bench.judge.launch_modes import LaunchComparison, launch_modes, setup_name
from moegauge.errors import RecordError
from moegauge.estimator.law import HeldOut, Law, fit, leave_one_model_out, one_term
from moegauge.estimator.observation import Observation
from moegauge.estimator.observe import main_setup, observe, setup
from moegauge.record import Case, Record
from moegauge.units import GB, MICROSECOND

SCHEMA = "moegauge.compare/1"
MOST_FITS = 64  # models up to which each is left out alone; a fit takes 0.05 to 0.5 s
FOLDS = 16  # groups of models, beyond


@dataclass(frozen=True, slots=True)
class Compared:
    """One point: what was measured, what the law of the other models says, what the one-term formula says.

    Attributes:
        case: the measured point.
        observation: it, as the law sees it.
        predicted: None when there is no other model.
        simple: the one-term formula's prediction; None when the record does not say what it would reckon with.
    """

    case: Case
    observation: Observation
    predicted: HeldOut | None = None
    simple: HeldOut | None = None

    @property
    def predicted_tokens_per_s(self) -> float | None:
        """By the law, all sequences of the batch together."""
        return None if self.predicted is None else self.case.batch / self.predicted.prediction.seconds

    @property
    def interval_tokens_per_s(self) -> tuple[float, float] | None:
        """80 % interval of the prediction."""
        if self.predicted is None:
            return None
        low, high = self.predicted.prediction.interval()
        return self.case.batch / high, self.case.batch / low

    @property
    def error(self) -> float | None:
        """Predicted over measured tokens/s, minus 1."""
        return None if self.predicted is None else self.predicted.error

    @property
    def simple_error(self) -> float | None:
        """The same of the one-term formula."""
        return None if self.simple is None else self.simple.error

    def to_json(self) -> dict[str, Any]:
        """One entry of `cases` in `moegauge.compare/1`."""
        return {
            "model": self.case.model,
            "format": self.case.format,
            "batch": self.case.batch,
            "context": self.case.context,
            "measured_tokens_per_s": self.case.tokens_per_s,
            "predicted_tokens_per_s": self.predicted_tokens_per_s,
            "error": self.error,
            "simple_formula_error": self.simple_error,
            "interval_tokens_per_s": self.interval_tokens_per_s,
            "roof_fraction": self.case.roof_fraction,
            "bytes": self.case.bytes.total,
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """Absolute errors of a group of predictions; None where there are none."""

    n: int
    median: float | None
    worst: float | None

    @classmethod
    def of(cls, errors: Iterable[float | None]) -> Summary:
        """Of the errors that are there."""
        sizes = [abs(e) for e in errors if e is not None]
        return cls(len(sizes), statistics.median(sizes) if sizes else None, max(sizes, default=None))

    def to_json(self) -> dict[str, Any]:
        """As `moegauge.compare/1` names them."""
        return {"n": self.n, "median_abs_error": self.median, "max_abs_error": self.worst}


@dataclass(frozen=True, slots=True)
class Comparison:
    """All points of one machine.

    Attributes:
        points: every decode point.
        law: fitted to all points (for the device's figures, never for `points`).
        roof_gb_per_s: median roof beside the points.
        by_format: errors when a whole format is left out; by_format_batch_one: of single streams without context alone.
        small_to_large: errors on the larger half of the models, predicted from the smaller half.
        ladder: points measured in several setups (threads, launch modes).
        notes: what could not be done, and what to do about it.
    """

    points: list[Compared]
    law: Law
    roof_gb_per_s: float
    by_format: Summary
    by_format_batch_one: Summary
    small_to_large: Summary
    ladder: list[LaunchComparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def by_model(self) -> Summary:
        """Errors when the point's own model is left out."""
        return Summary.of(p.error for p in self.points)

    @property
    def batch_one(self) -> Summary:
        """The same, points of batch 1 without context alone."""
        return Summary.of(p.error for p in self.points if p.case.batch == 1 and p.case.context == 0)

    @property
    def simple(self) -> Summary:
        """Errors of the one-term formula, calibrated without the point's own model."""
        return Summary.of(p.simple_error for p in self.points)

    def by_question(self) -> dict[str, tuple[Summary, Summary]]:
        """Errors of (the law, the one-term formula) by what a point varies: where the formula fails."""
        groups: dict[str, Callable[[Case], bool]] = {
            "one stream, no context": lambda case: case.batch == 1 and case.context == 0,
            "batches": lambda case: case.batch > 1 and case.context == 0,
            "contexts": lambda case: case.batch == 1 and case.context > 0,
            "batches with context": lambda case: case.batch > 1 and case.context > 0,
        }
        found = {}
        for name, belongs in groups.items():
            points = [p for p in self.points if belongs(p.case)]
            if points:
                found[name] = (Summary.of(p.error for p in points), Summary.of(p.simple_error for p in points))
        return found

    def to_json(self) -> dict[str, Any]:
        """The document of `moegauge compare --json`."""
        law = self.law
        return {
            "schema": SCHEMA,
            "cases": [p.to_json() for p in self.points],
            "leave_one_model_out": self.by_model.to_json(),
            "leave_one_model_out_batch_1": self.batch_one.to_json(),
            "leave_one_format_out": self.by_format.to_json(),
            "leave_one_format_out_batch_1": self.by_format_batch_one.to_json(),
            "small_to_large": self.small_to_large.to_json(),
            "simple_formula": self.simple.to_json(),
            "by_question": {
                name: {"law": law_errors.to_json(), "simple_formula": simple.to_json()}
                for name, (law_errors, simple) in self.by_question().items()
            },
            "device": {
                "bandwidth_gb_per_s": law.bandwidth_fraction * self.roof_gb_per_s,
                "floor_us": law.floor_per_kernel_s / MICROSECOND,
                "roof_gb_per_s": self.roof_gb_per_s,
                "bandwidth_fraction": law.bandwidth_fraction,
                "bandwidth_fraction_standard_error": _finite(
                    law.bandwidth_fraction * law.standard_error("log_bandwidth_fraction")
                ),
                "floor_standard_error_us": _finite(law.standard_error("floor_per_kernel_s") / MICROSECOND),
                "floor_per_layer_us": law.floor_per_layer_s / MICROSECOND,
                "seconds_per_mac": law.seconds_per_mac,
                "seconds_per_attention_mac": law.seconds_per_attention_mac,
                "format_efficiency": dict(law.format_efficiency),
                "format_seconds_per_mac": law.format_seconds_per_mac,
                "format_seconds_per_byte": law.format_seconds_per_byte,
                "costs_measured": law.measured,
                "overlap": law.overlap,
                "spread": law.spread,
            },
            "ladder": [point.to_json() for point in self.ladder],
            "notes": self.notes,
        }


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None  # noqa: PLR0124 - NaN is not itself


def compare(pooled: Sequence[tuple[Record, Case]]) -> Comparison:
    """Compare every decode point of one machine with the law of the other models.

    Args:
        pooled: as `moegauge.record.pool` gives them.

    Raises:
        RecordError: there is no decode point.
        ObservationError: a point no step could have.
    """
    records = {id(case): record for record, case in pooled}
    everything = [case for _, case in pooled if case.kind == "decode"]
    if not everything:
        raise RecordError("no decode point to compare.", advice="Run `moegauge bench decode --out FILE`.")
    chosen = main_setup(everything)
    cases = [case for case in everything if setup(case) == chosen]
    observations = [observe(case, records[id(case)]) for case in cases]
    notes: list[str] = []
    if len(cases) < len(everything):
        others = len(everything) - len(cases)
        notes.append(f"the law is that of {setup_name(chosen)}; {others} points in other launch modes stand apart")
    held: list[HeldOut | None] = [None] * len(cases)
    models = {o.model for o in observations}
    if len(models) < 2:
        notes.append(
            f"one model only ({cases[0].model}): leaving it out leaves nothing to predict from; measure another, "
            f"e.g. moegauge bench decode --model {cases[0].model},gpt-oss-120b"
        )
    else:
        held = list(_leave_models_out(observations, models, notes))
    if len(models) == 2:
        notes.append("two models only: each is predicted from the other alone, so floors are hardly known")
    if not all("products" in dict(o.measured) for o in observations):
        fitted = sum("products" not in dict(o.measured) for o in observations)
        notes.append(
            f"what products cost is fitted, not measured in cache, for {fitted} of {len(cases)} points (older records)"
        )
    formats = _left_out(observations, "format")
    roofs = [o.roof_bytes_per_s / GB for o in observations]
    return Comparison(
        points=[
            Compared(case, o, h, s) for case, o, h, s in zip(cases, observations, held, _simple(cases), strict=True)
        ],
        law=fit(observations),
        roof_gb_per_s=statistics.median(roofs),
        by_format=Summary.of(h.error for h in formats),
        by_format_batch_one=Summary.of(
            h.error for h in formats if h.observation.batch == 1 and h.observation.context == 0
        ),
        small_to_large=_small_to_large(observations),
        ladder=launch_modes(everything),
        notes=notes,
    )


def _simple(cases: Sequence[Case]) -> list[HeldOut | None]:
    """The one-term formula per point, calibrated the published way on the other models' plainest points: the lowest
    batch and context of the record."""
    plain = min((case.batch, case.context) for case in cases)

    def reckon(case: Case) -> Observation | None:
        if not case.formula_bytes:
            return None
        seen = observe(case)
        return Observation(seen.model, case.formula_bytes, seen.seconds, seen.roof_bytes_per_s)

    reckoned = [reckon(case) for case in cases]
    base: dict[str, list[Observation]] = {}
    for case, o in zip(cases, reckoned, strict=True):
        if o and (case.batch, case.context) == plain:
            base.setdefault(o.model, []).append(o)
    constants = {name: one_term(rows) for name, rows in base.items()}
    # The mean over the other models' points is that over all less the model's own.
    weight = {name: len(rows) for name, rows in base.items()}
    whole, points = sum(constants[name].bandwidth_fraction * weight[name] for name in base), sum(weight.values())

    def without(model: str) -> Law | None:
        rest = points - weight.get(model, 0)
        own = constants[model].bandwidth_fraction * weight[model] if model in base else 0.0
        return Law((whole - own) / rest) if rest else None

    laws = {o.model: without(o.model) for o in reckoned if o}
    return [HeldOut(o, law.predict(o)) if o and (law := laws[o.model]) else None for o in reckoned]


def _leave_models_out(observations: Sequence[Observation], models: set[str], notes: list[str]) -> Iterable[HeldOut]:
    """Each point predicted from other models' points alone: from all of them, or of so many models that so many fits
    would take minutes, from those of the other folds."""
    if len(models) <= MOST_FITS:
        return leave_one_model_out(observations)
    notes.append(f"{len(models):,} models: each is predicted without the models of its own fold of {FOLDS}")
    fold = {name: f"fold {i % FOLDS}" for i, name in enumerate(sorted(models))}
    held = leave_one_model_out([replace(o, model=fold[o.model]) for o in observations])
    return [HeldOut(o, h.prediction) for o, h in zip(observations, held, strict=True)]


def _left_out(observations: list[Observation], key: str) -> list[HeldOut]:
    return leave_one_model_out(observations, key) if len({getattr(o, key) for o in observations}) > 1 else []


def _small_to_large(observations: list[Observation]) -> Summary:
    """Fit the smaller half of the models (by their shortest step), predict the larger."""
    smallest: dict[str, float] = {}
    for o in observations:
        smallest[o.model] = min(o.bytes, smallest.get(o.model, o.bytes))
    ranked = sorted(smallest, key=lambda name: smallest[name])
    small = set(ranked[: len(ranked) // 2])
    if len(small) < 2:
        return Summary.of([])
    law = fit(o for o in observations if o.model in small)
    return Summary.of(HeldOut(o, law.predict(o)).error for o in observations if o.model not in small)
