"""The law of measured steps, `time = floors + bytes / bandwidth`: its robust fit, and its error with models left out.

One decode step is a chain of kernels. Each boundary costs a fixed time (launch or barrier, tail of the slowest
thread), and the bytes stream at a fraction of the read roof measured beside them while the cores are at work:

    seconds = fixed + (stream^p + compute^p)^(1/p)
    stream  = bytes / (bandwidth_fraction * roof)
    fixed, compute = sums of the rows of `moegauge.estimator.terms`, each what it counts times what one costs

p = 1 is one after the other, p = infinity perfect overlap: the shorter of the two is hidden behind the longer one. What
products and attention cost is taken from the record that the step is in (`in_cache`), where it was measured; the
bandwidth is then at most the roof, and what is left to fit is floors, overlap and what a core takes to fetch a byte.

Observations without that measurement have the cost of a multiply-accumulate by format fitted. Those that do not state
`format_macs` are fitted with p = 1, one cost of a multiply-accumulate if they state `macs`, and an efficiency per
format: stream = sum of bytes / (bandwidth_fraction * efficiency(format) * roof), its logarithm shrunk towards 0 with a
standard deviation of `FORMAT_SPREAD`. Residuals are relative, because a 1 ms step and a 100 ms step are measured
equally well in per cent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from moegauge.errors import ObservationError
from moegauge.estimator.observation import Observation
from moegauge.estimator.terms import TERMS, Summand, Term

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

# Relative residuals above this are outliers to the soft-L1 loss: paired samples of one machine repeat within 1 %, and
# the law is judged against 5 %.
RESIDUAL_SCALE = 0.02
# Prior standard deviation of log efficiency of one format: decoding FP4 or INT4 costs tens of per cent at most.
FORMAT_SPREAD = 0.15
# Where the overlap of streaming and computing starts from, how far the prior lets it go (standard deviation), and the
# most it can be: beyond 8 it looks like perfect overlap. Costs that are fitted absorb some of it.
OVERLAP, OVERLAP_SPREAD, MOST_OVERLAP = 1.5, 1.0, 8.0
MEASURED_OVERLAP, MEASURED_OVERLAP_SPREAD = 3.0, 3.0
# Residual spread is never believed to be below this: roof samples themselves repeat only this well.
MIN_SPREAD = 0.003
STEP = 1e-4  # relative move of a parameter from which a prediction's derivative is taken


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted time of one step.

    Attributes:
        seconds: the point.
        log_standard_error: standard error of log(seconds): of the fit and of one new observation together.
        terms_s: seconds by term: `bytes`, and what the rows of `moegauge.estimator.terms` are shown as; of what is
            computed, only what does not hide behind the bytes.
    """

    seconds: float
    log_standard_error: float
    terms_s: dict[str, float]

    def interval(self, z: float = 1.2816) -> tuple[float, float]:
        """Bounds in seconds at `z` standard errors; the default is the 80 % interval."""
        spread = math.exp(z * self.log_standard_error)
        return self.seconds / spread, self.seconds * spread


@dataclass(frozen=True, slots=True)
class Law:
    """A fitted law.

    Attributes:
        bandwidth_fraction: share of the read roof the bytes stream at.
        values: parameter of `moegauge.estimator.terms` -> what one unit costs, in seconds.
        overlap: p of the module's formula; 1 adds up.
        format_efficiency: factor on the bandwidth by format; absent formats are 1.
        spread: standard deviation of log(measured / fitted), robust.
        observations, models: how many it was fitted to; measured: for how many of them products' costs were measured.
        parameters: names of the rows and columns of `covariance`: `log_bandwidth_fraction`, those of `values`, then
            `format:NAME` (log efficiency) or `overlap`.
        covariance: of `parameters`.
    """

    bandwidth_fraction: float
    values: Mapping[str, float] = field(default_factory=dict)
    overlap: float = 1.0
    format_efficiency: Mapping[str, float] = field(default_factory=dict)
    spread: float = 0.0
    observations: int = 0
    models: int = 0
    measured: int = 0
    parameters: tuple[str, ...] = ()
    covariance: tuple[tuple[float, ...], ...] = ()

    @property
    def floor_per_kernel_s(self) -> float:
        """Fixed seconds of a kernel boundary."""
        return self.values.get("floor_per_kernel_s", 0.0)

    @property
    def floor_per_layer_s(self) -> float:
        """Fixed seconds of a layer beside those of its kernels."""
        return self.values.get("floor_per_layer_s", 0.0)

    @property
    def seconds_per_attention_mac(self) -> float:
        """Seconds per multiply-accumulate of attention; 0 where that was measured or never seen."""
        return self.values.get("seconds_per_attention_mac", 0.0)

    @property
    def format_seconds_per_mac(self) -> dict[str, float]:
        """By the format of the weight, where it was fitted."""
        return self._by_format("mac:")

    @property
    def format_seconds_per_byte(self) -> dict[str, float]:
        """Seconds that all cores together take to fetch a byte while they decode a format."""
        return self._by_format("fetch:")

    @property
    def seconds_per_mac(self) -> float:
        """Mean of `format_seconds_per_mac`; where observations state no formats, the one cost fitted."""
        found = self.format_seconds_per_mac.values()
        return sum(found) / len(found) if found else self.values.get("seconds_per_mac", 0.0)

    def _by_format(self, prefix: str) -> dict[str, float]:
        return {name.removeprefix(prefix): v for name, v in self.values.items() if name.startswith(prefix)}

    def standard_error(self, parameter: str) -> float:
        """Standard error of one of `parameters`; NaN when it was not fitted."""
        if parameter not in self.parameters:
            return math.nan
        i = self.parameters.index(parameter)
        return math.sqrt(max(self.covariance[i][i], 0.0))

    def predict(self, o: Observation) -> Prediction:
        """Time of the step `o` describes; its own `seconds` is not looked at.

        Returns:
            point, standard error and terms, in seconds.
        """
        import numpy as np

        terms, unsure = self._terms(o)
        seconds = sum(terms.values())
        slope = np.array([(math.log(self._moved(name, o)) - math.log(seconds)) / STEP for name in self.parameters])
        covariance = np.array(self.covariance).reshape(len(slope), len(slope))
        scale = np.array([self._unit(name) for name in self.parameters])
        slope = slope / scale
        variance = float(slope @ covariance @ slope) + sum((part / seconds) ** 2 for part in unsure)
        return Prediction(seconds, math.sqrt(max(variance, 0.0) + self.spread**2), terms)

    def predict_seconds(self, o: Observation) -> float:
        """The point of `predict`, in seconds."""
        return sum(self._terms(o)[0].values())

    def _terms(self, o: Observation) -> tuple[dict[str, float], list[float]]:
        """(seconds by term as shown, standard deviations in seconds of costs that no observation showed)."""
        shown: dict[str, float] = {}
        computed: dict[str, float] = {}
        unsure: list[float] = []
        measured = dict(o.measured)
        for term in TERMS:
            parts = [measured[term.name]] if term.name in measured else []
            for name, count in ({} if parts else term.columns(o)).items():
                cost = self.values.get(name)
                if cost is None and count:
                    cost = self._guess(term, name, o, computed)
                    unsure.append(term.spread * cost * count)
                parts.append((cost or 0.0) * count)
            where = computed if term.part is Summand.COMPUTE else shown
            where[term.shown] = where.get(term.shown, 0.0) + sum(parts)
        rate = self.bandwidth_fraction * o.roof_bytes_per_s
        streams = {name: size / (rate * self.format_efficiency.get(name, 1.0)) for name, size in o.by_format.items()}
        stream = sum(streams.values()) + max(0.0, o.bytes - sum(o.by_format.values())) / rate
        if self.format_efficiency:
            unsure += [FORMAT_SPREAD * s for name, s in streams.items() if name not in self.format_efficiency]
        compute = sum(computed.values())
        both = float(_overlapped(stream, compute, self.overlap))
        unhidden = (both - stream) / compute if compute else 0.0
        for name, part in computed.items():
            shown[name] = shown.get(name, 0.0) + part * unhidden
        by_compute = (compute / both) ** (self.overlap - 1) if compute else 0.0
        return {**shown, "bytes": stream}, [part * (by_compute or 1.0) for part in unsure]

    def _guess(self, term: Term, name: str, o: Observation, computed: Mapping[str, float]) -> float:
        """What one costs that no observation showed: as the others of its group (without a format, as their mean), as
        the parameter that stands in for it, or as the term it is likened to."""
        kind, _, known = name.partition(":")
        group = {n: v for n, v in self.values.items() if n.partition(":")[0] == kind}
        if term.relative is not None and group:
            factors = [v / term.relative(n) if known else v for n, v in group.items()]
            return sum(factors) / len(factors) * (term.relative(name) if known else 1.0)
        if others := [v for n, v in self.values.items() if n.partition(":")[0] == term.instead]:
            return sum(others) / len(others)
        products = sum(count for _, count in o.format_macs)
        return computed.get(term.like, 0.0) / products if term.like and products else 0.0

    def _unit(self, parameter: str) -> float:
        """By how much `_moved` moves a parameter, for 1 / STEP."""
        return max(self.values.get(parameter, 1.0), 1e-15)

    def _moved(self, parameter: str, o: Observation) -> float:
        """Seconds of a step with one parameter moved by STEP of its `_unit`."""
        if parameter == "log_bandwidth_fraction":
            return replace(self, bandwidth_fraction=self.bandwidth_fraction * math.exp(STEP)).predict_seconds(o)
        if parameter == "overlap":
            return replace(self, overlap=self.overlap + STEP).predict_seconds(o)
        kind, _, name = parameter.partition(":")
        if kind == "format":
            factor = self.format_efficiency[name] * math.exp(STEP)
            return replace(self, format_efficiency={**self.format_efficiency, name: factor}).predict_seconds(o)
        value = self.values[parameter] + STEP * self._unit(parameter)
        return replace(self, values={**self.values, parameter: value}).predict_seconds(o)


def fit(observations: Iterable[Observation]) -> Law:
    """Fit the law by robust (soft-L1) least squares on log(seconds), costs not negative.

    One model alone says nothing about floors: they are then 0 within a standard error as large as the step itself.

    Raises:
        ObservationError: no observation, or one with a value out of range.
    """
    import numpy as np
    from scipy.optimize import least_squares

    rows = list(observations)
    if not rows:
        raise ObservationError("there is no observation to fit.", advice="Measure at least two models.")
    for i, row in enumerate(rows):
        row.check(f"observation {i} ({row.model})")

    seconds = np.array([o.seconds for o in rows])
    stated = all(o.format_macs for o in rows)  # costs of their own keep bytes and arithmetic apart
    measured = sum("products" in dict(o.measured) for o in rows)
    names = sorted({name for o in rows for name in o.by_format})
    formats = names if len(names) > 1 and not stated else []  # those with an efficiency
    picks = np.array([[o.by_format.get(name, 0.0) / o.roof_bytes_per_s for name in formats] for o in rows])
    stream = np.maximum(np.array([o.bytes / o.roof_bytes_per_s for o in rows]) - picks.sum(axis=1), 0.0)
    # A cost's unit is the longest it can be: the whole of the step that leaves it least room.
    design = {part: _Design.of(part, rows, seconds) for part in Summand}
    fixed, compute = design[Summand.FIXED], design[Summand.COMPUTE]
    costs = [*fixed.names, *compute.names]
    units = np.array([*fixed.units, *compute.units])
    ends = np.cumsum([1, len(fixed.names), len(compute.names), len(formats), int(stated)])
    overlap, overlap_spread = (MEASURED_OVERLAP, MEASURED_OVERLAP_SPREAD) if measured else (OVERLAP, OVERLAP_SPREAD)

    def times(x: Array) -> Array:
        streamed = (stream + picks @ np.exp(-x[ends[2] : ends[3]])) / np.exp(x[0])
        p = float(x[ends[3]]) if stated else 1.0
        return np.asarray(fixed.times(x[1 : ends[1]]) + _overlapped(streamed, compute.times(x[ends[1] : ends[2]]), p))

    groups = [
        (term, [i for i, name in enumerate(costs) if name in term_names], term.relative)
        for term, term_names in ((t, {n for o in rows for n in t.columns(o)}) for t in TERMS)
        if term.relative is not None
    ]

    def residuals(x: Array) -> Array:
        cost, efficiency = x[1 : ends[2]], x[ends[2] : ends[3]]
        prior = [x[0] / 2.0, *cost]
        for term, where, relative in groups:  # costs in seconds over what was thought of them, against their mean
            if where:
                each = np.array([cost[i] * units[i] / relative(costs[i]) for i in where])
                prior += [*((each / max(each.mean(), 1e-30) - 1) / term.spread)]
        if stated:
            prior += [(x[ends[3]] - overlap) / overlap_spread]
        if formats:  # efficiencies are centred (their mean is the bandwidth's affair) and shrunk
            prior += [*(efficiency / FORMAT_SPREAD), efficiency.sum() / 0.01]
        return np.concatenate([np.log(times(x) / seconds) / RESIDUAL_SCALE, np.asarray(prior)])

    start = np.concatenate([[math.log(0.9)], np.full(len(costs), 0.02), np.zeros(len(formats)), [overlap] * stated])
    low = np.concatenate([[-12.0], np.zeros(len(costs)), np.full(len(formats), -3.0), [1.0] * stated])
    # No step streams faster than the roof.
    high = np.concatenate([[0.0], np.ones(len(costs)), np.full(len(formats), 3.0), [MOST_OVERLAP] * stated])
    solved = least_squares(
        residuals, start, bounds=(low, high), loss="soft_l1", x_scale="jac", xtol=1e-12, ftol=1e-12, max_nfev=500
    )
    x = solved.x
    error = np.log(times(x) / seconds)
    freedom = max(len(rows) - 1 - len(costs), 1)
    # 1.4826 x MAD estimates a standard deviation; small samples are scaled up by the degrees of freedom used.
    spread = max(1.4826 * float(np.median(np.abs(error))) * math.sqrt(len(rows) / freedom), MIN_SPREAD)
    covariance = _covariance(solved.jac, len(rows), spread)
    scale = np.concatenate([[1.0], units, np.ones(len(formats) + int(stated))])
    return Law(
        bandwidth_fraction=math.exp(x[0]),
        values={name: float(v) for name, v in zip(costs, (x * scale)[1 : ends[2]], strict=True)},
        overlap=float(x[ends[3]]) if stated else 1.0,
        format_efficiency={name: math.exp(v) for name, v in zip(formats, x[ends[2] : ends[3]], strict=True)},
        spread=spread,
        observations=len(rows),
        models=len({o.model for o in rows}),
        measured=measured,
        parameters=("log_bandwidth_fraction", *costs, *(f"format:{n}" for n in formats), *(["overlap"] * stated)),
        covariance=tuple(tuple(float(v) for v in row) for row in covariance * np.outer(scale, scale)),
    )


@dataclass(frozen=True, slots=True)
class _Design:
    """One part of all steps: seconds known, and columns of what is fitted, in units of seconds.

    Attributes:
        names, units: of the parameters; columns: [observations, parameters]; known: [observations].
    """

    names: list[str]
    units: list[float]
    columns: Array
    known: Array

    @classmethod
    def of(cls, part: Summand, rows: Sequence[Observation], seconds: Array) -> _Design:
        import numpy as np

        counts: dict[str, Array] = {}
        known = np.zeros(len(rows))
        for term in (t for t in TERMS if t.part is part):
            for i, o in enumerate(rows):
                if (told := dict(o.measured).get(term.name)) is not None:
                    known[i] += told
                    continue
                for name, count in term.columns(o).items():
                    counts.setdefault(name, np.zeros(len(rows)))[i] = count
        units = {name: _unit(count, seconds) for name, count in counts.items()}
        names = [name for name, unit in units.items() if unit > 0]
        columns = np.array([counts[name] * units[name] for name in names]).reshape(len(names), len(rows)).T
        return cls(names, [units[name] for name in names], columns, known)

    def times(self, x: Array) -> Array:
        """Seconds of every observation."""
        import numpy as np

        return np.asarray(self.known + self.columns @ x)


def _overlapped(stream: Any, compute: Any, p: float) -> Any:
    """(stream^p + compute^p)^(1/p), by the larger of the two so that no power under- or overflows."""
    if p == 1:
        return stream + compute
    import numpy as np

    most = np.maximum(stream, compute)
    safe = np.where(most > 0, most, 1.0)
    return most * ((stream / safe) ** p + (compute / safe) ** p) ** (1 / p)


def _unit(count: Array, seconds: Array) -> float:
    present = count > 0
    return float((seconds[present] / count[present]).min()) if present.any() else 0.0


def _covariance(jacobian: Any, data_rows: int, spread: float) -> Array:
    """Inverse of the Gauss-Newton matrix with the data weighted by the spread seen and the priors by their own.

    `jacobian` is that of the scaled residuals, robust weights included; its last rows are the priors.
    """
    import numpy as np

    data = jacobian[:data_rows] * (RESIDUAL_SCALE / spread)
    prior = jacobian[data_rows:]
    return np.asarray(np.linalg.pinv(data.T @ data + prior.T @ prior))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """An observation and what the others said about it.

    Attributes:
        observation: what was measured.
        prediction: by a law fitted without the observation's model; for the one-term formula, a bare point.
    """

    observation: Observation
    prediction: Prediction

    @property
    def error(self) -> float:
        """Predicted over measured tokens/s, minus 1."""
        return self.observation.seconds / self.prediction.seconds - 1.0


def leave_one_model_out(observations: Iterable[Observation], key: str = "model") -> list[HeldOut]:
    """Predict every observation from a law fitted to the other models' observations alone.

    Args:
        observations: of at least two models.
        key: the attribute that names what is left out: `model`, or `format`, `batch`, `context`.

    Raises:
        ObservationError: fewer than two of them.
    """
    return _leave_out(list(observations), key, fit, Law.predict)


def one_term_leave_one_model_out(observations: Iterable[Observation]) -> list[HeldOut]:
    """The published one-term formula judged the same way: mean of bytes x steps/s over the other models.

    Each observation is taken relative to the roof beside it, so a machine whose bandwidth drifts is not held against
    the formula.
    """
    return _leave_out(list(observations), "model", one_term, Law.predict)


def one_term(rows: Sequence[Observation]) -> Law:
    """The published one-term formula, calibrated on `rows`: the mean of bytes x steps/s, relative to the roof."""
    return Law(sum(o.bytes / o.seconds / o.roof_bytes_per_s for o in rows) / len(rows))


def _leave_out(rows: list[Observation], key: str, fitter: Any, predict: Any) -> list[HeldOut]:
    groups = sorted({getattr(o, key) for o in rows})
    if len(groups) < 2:
        raise ObservationError(
            f"leaving one {key} out needs at least two, there is {len(groups)}.", advice=f"Measure another {key}."
        )
    laws = {group: fitter([o for o in rows if getattr(o, key) != group]) for group in groups}
    return [HeldOut(o, predict(laws[getattr(o, key)], o)) for o in rows]
