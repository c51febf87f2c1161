"""The law `time = floors + bytes / bandwidth`, its robust fit, and its judgement by leaving a whole model out.

One decode step is a chain of kernels. Each boundary costs a fixed time (launch or barrier, tail of the slowest
thread), each layer may cost a little more, and the bytes stream at a fraction of the read roof measured beside them:

    seconds = floor_per_kernel * kernels + floor_per_layer * layers
            + seconds_per_mac * macs + seconds_per_attention_mac * attention_macs
            + sum over formats of bytes / (bandwidth_fraction * efficiency(format) * roof)

A step reads several formats: FP4 experts beside a BF16 head. `efficiency(format)` is 1 unless the
observations demand otherwise: its logarithm is shrunk towards 0 with a standard deviation of `FORMAT_SPREAD`. `macs` is
used only when observations state it (batches on a device that computes slowly). Residuals are relative,
because a 1 ms step and a 100 ms step are measured equally well in per cent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moegauge.errors import ObservationError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

# Relative residuals above this are outliers to the soft-L1 loss: paired samples of one machine repeat within 1 %, and
# the law is judged against 5 %.
RESIDUAL_SCALE = 0.02
# Prior standard deviation of log efficiency of one format: decoding FP4 or INT4 costs tens of per cent at most.
FORMAT_SPREAD = 0.15
# Residual spread is never believed to be below this: roof samples themselves repeat only this well.
MIN_SPREAD = 0.003

MAX_SECONDS = 1e5  # of one step: more than a day is a unit slip
MAX_BYTES = 1e16  # 10 PB a step: likewise
MAX_ROOF = 1e16  # bytes/s
MAX_COUNT = 1e18  # of kernels, layers or multiply-accumulates of one step


@dataclass(frozen=True, slots=True)
class Observation:
    """One timed decode step.

    Attributes:
        model: the model's name; leaving a model out leaves all its observations out.
        bytes: bytes the step read, scales and KV included.
        seconds: time of the step.
        roof_bytes_per_s: read roof measured beside it.
        kernels: kernel boundaries of the step.
        layers: decoder layers of the step.
        macs: multiply-accumulates of the step; 0 when not stated.
        attention_macs: those of `macs` that are attention over the cache: softmax makes them dearer, and an absorbed
            MLA does 30 times as many per cached byte as GQA.
        format, batch, context: labels.
        parts: bytes by format, e.g. (("mxfp4", 2.0e9), ("bf16", 1.2e9)); what `bytes` has beyond them, and what is
            called `kv:...`, streams at efficiency 1. Empty means all of `bytes` in `format`.
    """

    model: str
    bytes: float
    seconds: float
    roof_bytes_per_s: float
    kernels: int = 0
    layers: int = 0
    macs: float = 0.0
    format: str = ""
    batch: int = 1
    context: int = 0
    parts: tuple[tuple[str, float], ...] = ()
    attention_macs: float = 0.0

    @property
    def by_format(self) -> dict[str, float]:
        """Bytes of weights by format."""
        if not self.parts:
            return {self.format: self.bytes}
        return {name: size for name, size in self.parts if not name.startswith("kv:")}

    def check(self, where: str) -> None:
        """Refuse zero, negative, NaN and absurd values.

        Raises:
            ObservationError: naming `where` and the field.
        """
        limits = (("bytes", MAX_BYTES), ("seconds", MAX_SECONDS), ("roof_bytes_per_s", MAX_ROOF))
        for name, limit in limits:
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value <= limit):
                raise ObservationError(f"{where}: {name} is {value!r}, not above 0 and at most {limit:.0e}.")
        for name in ("kernels", "layers", "macs", "attention_macs"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_COUNT:
                raise ObservationError(f"{where}: {name} is {value!r}, not a count.")
        sizes = self.by_format.values()
        if not (all(0 <= v <= MAX_BYTES for v in sizes) and sum(sizes) <= 1.01 * self.bytes):
            raise ObservationError(
                f"{where}: bytes by format {self.by_format} are more than its {self.bytes:.6g} bytes."
            )


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted time of one step.

    Attributes:
        seconds: the point.
        log_standard_error: standard error of log(seconds): of the fit and of one new observation together.
        terms_s: seconds by term: `kernels`, `layers`, `compute`, `bytes`.
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
        floor_per_kernel_s, floor_per_layer_s: fixed seconds.
        seconds_per_mac: seconds per multiply-accumulate; 0 when no observation stated `macs`.
        seconds_per_attention_mac: further seconds per multiply-accumulate of attention.
        format_efficiency: factor on the bandwidth by format; absent formats are 1.
        spread: standard deviation of log(measured / fitted), robust.
        observations, models: how many it was fitted to.
        parameters: names of the rows and columns of `covariance`: `log_bandwidth_fraction`, the floors in their units,
            then `format:NAME` (log efficiency).
        covariance: of `parameters`.
    """

    bandwidth_fraction: float
    floor_per_kernel_s: float = 0.0
    floor_per_layer_s: float = 0.0
    seconds_per_mac: float = 0.0
    seconds_per_attention_mac: float = 0.0
    format_efficiency: dict[str, float] = field(default_factory=dict)
    spread: float = 0.0
    observations: int = 0
    models: int = 0
    parameters: tuple[str, ...] = ()
    covariance: tuple[tuple[float, ...], ...] = ()

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
        terms = {
            "kernels": self.floor_per_kernel_s * o.kernels,
            "layers": self.floor_per_layer_s * o.layers,
            "compute": self.seconds_per_mac * o.macs + self.seconds_per_attention_mac * o.attention_macs,
        }
        rate = self.bandwidth_fraction * o.roof_bytes_per_s
        streams = {name: size / (rate * self.format_efficiency.get(name, 1.0)) for name, size in o.by_format.items()}
        terms["bytes"] = sum(streams.values()) + max(0.0, o.bytes - sum(o.by_format.values())) / rate
        seconds = sum(terms.values())
        gradient = {
            "log_bandwidth_fraction": -terms["bytes"] / seconds,
            "floor_per_kernel_s": o.kernels / seconds,
            "floor_per_layer_s": o.layers / seconds,
            "seconds_per_mac": o.macs / seconds,
            "seconds_per_attention_mac": o.attention_macs / seconds,
            **{f"format:{name}": -stream / seconds for name, stream in streams.items()},
        }
        slope = [gradient.get(name, 0.0) for name in self.parameters]
        variance = sum(
            slope[i] * slope[j] * self.covariance[i][j] for i in range(len(slope)) for j in range(len(slope))
        )
        if self.format_efficiency:
            unseen = (stream for name, stream in streams.items() if name not in self.format_efficiency)
            variance += sum((FORMAT_SPREAD * stream / seconds) ** 2 for stream in unseen)
        return Prediction(seconds, math.sqrt(max(variance, 0.0) + self.spread**2), terms)

    def predict_seconds(self, o: Observation) -> float:
        """The point of `predict`, in seconds."""
        return self.predict(o).seconds


def fit(observations: Iterable[Observation]) -> Law:
    """Fit the law by robust (soft-L1) least squares on log(seconds), floors not negative.

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
    formats = sorted({name for o in rows for name in o.by_format})
    columns = [_stream_column(rows, name) for name in formats] if len(formats) > 1 else []
    stream = np.array([o.bytes / o.roof_bytes_per_s for o in rows])
    if columns:
        stream = np.maximum(stream - np.sum(columns, axis=0), 0.0)
    counts = {
        "floor_per_kernel_s": np.array([float(o.kernels) for o in rows]),
        "floor_per_layer_s": np.array([float(o.layers) for o in rows]),
        "seconds_per_mac": np.array([o.macs for o in rows]),
        "seconds_per_attention_mac": np.array([o.attention_macs for o in rows]),
    }
    # A floor's unit is the longest it can be: the whole of the step that leaves it least room.
    units = {name: _unit(count, seconds) for name, count in counts.items()}
    floors = [name for name, unit in units.items() if unit > 0]
    design = np.stack([counts[name] * units[name] for name in floors], axis=1) if floors else np.zeros((len(rows), 0))
    picks = np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0))
    n_floor = len(floors)

    def times(x: Array) -> Array:
        slowed = stream + picks @ np.exp(-x[1 + n_floor :])
        return np.asarray(design @ x[1 : 1 + n_floor] + slowed / np.exp(x[0]))

    def residuals(x: Array) -> Array:
        data = np.log(times(x) / seconds) / RESIDUAL_SCALE
        # Efficiencies are centred (their mean is the bandwidth's affair) and shrunk.
        efficiency = x[1 + n_floor :]
        prior = [x[0] / 2.0, *x[1 : 1 + n_floor], *(efficiency / FORMAT_SPREAD), efficiency.sum() / 0.01]
        return np.concatenate([data, np.asarray(prior)])

    start = np.concatenate([[math.log(0.9)], np.full(n_floor, 0.02), np.zeros(len(columns))])
    low = np.concatenate([[-12.0], np.zeros(n_floor), np.full(len(columns), -3.0)])
    # No step streams faster than the roof: without that bound, bytes and multiply-accumulates of one format, which
    # rise together at batch 1, share the time between them as they please.
    high = np.concatenate([[0.0], np.ones(n_floor), np.full(len(columns), 3.0)])
    solved = least_squares(
        residuals, start, bounds=(low, high), loss="soft_l1", x_scale="jac", xtol=1e-12, ftol=1e-12, max_nfev=500
    )
    x = solved.x
    error = np.log(times(x) / seconds)
    freedom = max(len(rows) - 1 - n_floor, 1)
    # 1.4826 x MAD estimates a standard deviation; small samples are scaled up by the degrees of freedom used.
    spread = max(1.4826 * float(np.median(np.abs(error))) * math.sqrt(len(rows) / freedom), MIN_SPREAD)
    covariance = _covariance(solved.jac, len(rows), spread)
    scale = np.array([1.0, *(units[name] for name in floors), *np.ones(len(columns))])
    values = dict(zip(floors, x[1 : 1 + n_floor] * scale[1 : 1 + n_floor], strict=True))
    return Law(
        bandwidth_fraction=math.exp(x[0]),
        floor_per_kernel_s=float(values.get("floor_per_kernel_s", 0.0)),
        floor_per_layer_s=float(values.get("floor_per_layer_s", 0.0)),
        seconds_per_mac=float(values.get("seconds_per_mac", 0.0)),
        seconds_per_attention_mac=float(values.get("seconds_per_attention_mac", 0.0)),
        format_efficiency={
            name: math.exp(v) for name, v in zip(formats if columns else [], x[1 + n_floor :], strict=True)
        },
        spread=spread,
        observations=len(rows),
        models=len({o.model for o in rows}),
        parameters=("log_bandwidth_fraction", *floors, *(f"format:{n}" for n in formats if columns)),
        covariance=tuple(tuple(float(v) for v in row) for row in covariance * np.outer(scale, scale)),
    )


def _stream_column(rows: Sequence[Observation], name: str) -> Array:
    """Seconds the bytes of format `name` take at the roof; shape [observations]."""
    import numpy as np

    return np.array([o.by_format.get(name, 0.0) / o.roof_bytes_per_s for o in rows])


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

    def calibrate(rows: list[Observation]) -> Law:
        return Law(sum(o.bytes / o.seconds / o.roof_bytes_per_s for o in rows) / len(rows))

    return _leave_out(list(observations), "model", calibrate, Law.predict)


def _leave_out(rows: list[Observation], key: str, fitter: Any, predict: Any) -> list[HeldOut]:
    groups = sorted({getattr(o, key) for o in rows})
    if len(groups) < 2:
        raise ObservationError(
            f"leaving one {key} out needs at least two, there is {len(groups)}.", advice=f"Measure another {key}."
        )
    laws = {group: fitter([o for o in rows if getattr(o, key) != group]) for group in groups}
    return [HeldOut(o, predict(laws[getattr(o, key)], o)) for o in rows]
