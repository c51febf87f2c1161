"""The law `time = floors + bytes / bandwidth`: its robust fit, and its error with a whole model left out.

One decode step is a chain of kernels. Each boundary costs a fixed time (launch or barrier, tail of the slowest
thread), each layer may cost a little more, and the bytes stream at a fraction of the read roof measured beside them:

    seconds = floor_per_kernel * kernels + floor_per_layer * layers
            + (stream^p + compute^p)^(1/p) + seconds_per_attention_mac * attention_macs
    stream  = bytes / (bandwidth_fraction * roof)
    compute = sum over formats of macs * seconds_per_mac(format)

p = 1 is one after the other, p = infinity perfect overlap: a core that multiplies while the next bytes arrive hides
part of the shorter of the two. What a multiply-accumulate costs depends on the format of the weight, whose codes have
to be taken apart; formats are shrunk towards each other with a relative standard deviation of `COST_SPREAD`.

Observations that do not state `format_macs` are fitted with p = 1, one cost of a multiply-accumulate if they state
`macs`, and an efficiency per format: stream = sum of bytes / (bandwidth_fraction * efficiency(format) * roof), its
logarithm shrunk towards 0 with a standard deviation of `FORMAT_SPREAD`. Residuals are relative, because a 1 ms step and
a 100 ms step are measured equally well in per cent.
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
# Prior standard deviation of what one format's multiply-accumulate costs, relative to the mean of all formats: in cache
# a bf16 weight takes the CPU core half as long as an fp8 one (docs/kernels.md).
COST_SPREAD = 0.7
# Where the overlap of streaming and multiplying starts from, how far the prior lets it go (standard deviation), and the
# most it can be: beyond 8 it looks like perfect overlap.
OVERLAP, OVERLAP_SPREAD, MOST_OVERLAP = 1.5, 1.0, 8.0
# log of the most bandwidth, as a share of the roof, where multiplying has costs of its own to keep the two apart. Above
# 1 since steps of a second come out up to 1.03 of the roof samples beside them on a shared host, and since with an
# overlap near 1 the sum of the two powers is always more than the stream.
MOST_FRACTION = math.log(1.1)
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
        format_macs: those of `macs` with weights, by the weight's format; empty when not stated.
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
    format_macs: tuple[tuple[str, float], ...] = ()

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
        seconds_per_mac: seconds per multiply-accumulate; 0 when no observation stated `macs`. Of observations that
            state them by format, the mean over formats.
        format_seconds_per_mac: by the format of the weight; a format that is not there costs `seconds_per_mac`.
        overlap: p of the module's formula; 1 adds up.
        seconds_per_attention_mac: further seconds per multiply-accumulate of attention.
        format_efficiency: factor on the bandwidth by format; absent formats are 1.
        spread: standard deviation of log(measured / fitted), robust.
        observations, models: how many it was fitted to.
        parameters: names of the rows and columns of `covariance`: `log_bandwidth_fraction`, the floors in their units,
            `mac:NAME` (seconds), then `format:NAME` (log efficiency) or `overlap`.
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
    format_seconds_per_mac: dict[str, float] = field(default_factory=dict)
    overlap: float = 1.0
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
        floors = {
            "kernels": self.floor_per_kernel_s * o.kernels,
            "layers": self.floor_per_layer_s * o.layers,
        }
        rate = self.bandwidth_fraction * o.roof_bytes_per_s
        streams = {name: size / (rate * self.format_efficiency.get(name, 1.0)) for name, size in o.by_format.items()}
        stream = sum(streams.values()) + max(0.0, o.bytes - sum(o.by_format.values())) / rate
        macs = dict(o.format_macs) if self.format_seconds_per_mac else {"": o.macs}
        costs = {name: self.format_seconds_per_mac.get(name, self.seconds_per_mac) for name in macs}
        compute = sum(costs[name] * count for name, count in macs.items())
        both = float(_overlapped(stream, compute, self.overlap))
        attention = self.seconds_per_attention_mac * o.attention_macs
        terms = {**floors, "compute": both - stream + attention, "bytes": stream}
        seconds = sum(terms.values())
        # d both / d stream and d both / d compute
        by_stream = (stream / both) ** (self.overlap - 1) if both else 0.0
        by_compute = (compute / both) ** (self.overlap - 1) if compute else 1.0 if self.overlap == 1 else 0.0
        step = 1e-4
        gradient = {
            "log_bandwidth_fraction": -stream * by_stream / seconds,
            "floor_per_kernel_s": o.kernels / seconds,
            "floor_per_layer_s": o.layers / seconds,
            "seconds_per_mac": o.macs * by_compute / seconds,
            "seconds_per_attention_mac": o.attention_macs / seconds,
            "overlap": (_overlapped(stream, compute, self.overlap + step) - both) / step / seconds,
            **{f"format:{name}": -part * by_stream / seconds for name, part in streams.items()},
            **{f"mac:{name}": count * by_compute / seconds for name, count in macs.items()},
        }
        slope = [gradient.get(name, 0.0) for name in self.parameters]
        variance = sum(
            slope[i] * slope[j] * self.covariance[i][j] for i in range(len(slope)) for j in range(len(slope))
        )
        if self.format_efficiency:
            unseen = (part for name, part in streams.items() if name not in self.format_efficiency)
            variance += sum((FORMAT_SPREAD * part / seconds) ** 2 for part in unseen)
        if self.format_seconds_per_mac:
            new = (costs[name] * count for name, count in macs.items() if name not in self.format_seconds_per_mac)
            variance += sum((COST_SPREAD * part * by_compute / seconds) ** 2 for part in new)
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
    stated = all(o.format_macs for o in rows)
    names = sorted({name for o in rows for name in o.by_format})
    formats = names if len(names) > 1 and not stated else []  # those with an efficiency
    columns = [_stream_column(rows, name) for name in formats]
    stream = np.array([o.bytes / o.roof_bytes_per_s for o in rows])
    if columns:
        stream = np.maximum(stream - np.sum(columns, axis=0), 0.0)
    picks = np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0))
    counts = {
        "floor_per_kernel_s": np.array([float(o.kernels) for o in rows]),
        "floor_per_layer_s": np.array([float(o.layers) for o in rows]),
        "seconds_per_attention_mac": np.array([o.attention_macs for o in rows]),
    }
    costs = sorted({name for o in rows for name, _ in o.format_macs}) if stated else []
    products = {f"mac:{name}": np.array([dict(o.format_macs).get(name, 0.0) for o in rows]) for name in costs}
    if not stated:
        products = {"seconds_per_mac": np.array([o.macs for o in rows])}
    # A floor's unit, and a cost's, is the longest it can be: the whole of the step that leaves it least room.
    floors, floor_units, design = _scaled(counts, seconds)
    macs, mac_units, work = _scaled(products, seconds)
    ends = np.cumsum([1, len(floors), len(macs), len(formats), int(stated)])

    def split(x: Array) -> tuple[Array, Array, Array, float]:
        """Floors, costs, log efficiencies, overlap."""
        overlap = float(x[ends[3]]) if stated else 1.0
        return x[1 : ends[1]], x[ends[1] : ends[2]], x[ends[2] : ends[3]], overlap

    def times(x: Array) -> Array:
        floor, cost, efficiency, overlap = split(x)
        streamed = (stream + picks @ np.exp(-efficiency)) / np.exp(x[0])
        return np.asarray(design @ floor + _overlapped(streamed, work @ cost, overlap))

    def residuals(x: Array) -> Array:
        data = np.log(times(x) / seconds) / RESIDUAL_SCALE
        floor, cost, efficiency, overlap = split(x)
        prior = [x[0] / 2.0, *floor, *cost]
        if stated:  # costs in seconds, each against their mean
            each = cost * mac_units
            prior += [*((each / max(each.mean(), 1e-30) - 1) / COST_SPREAD), (overlap - OVERLAP) / OVERLAP_SPREAD]
        if formats:  # efficiencies are centred (their mean is the bandwidth's affair) and shrunk
            prior += [*(efficiency / FORMAT_SPREAD), efficiency.sum() / 0.01]
        return np.concatenate([data, np.asarray(prior)])

    several = ends[2] - 1  # floors and costs
    start = np.concatenate([[math.log(0.9)], np.full(several, 0.02), np.zeros(len(formats)), [OVERLAP] * stated])
    low = np.concatenate([[-12.0], np.zeros(several), np.full(len(formats), -3.0), [1.0] * stated])
    # No step streams faster than the roof: without that bound, bytes and multiply-accumulates of one format, which
    # rise together at batch 1, share the time between them as they please.
    most = [MOST_FRACTION] if stated else [0.0]
    high = np.concatenate([most, np.ones(several), np.full(len(formats), 3.0), [MOST_OVERLAP] * stated])
    solved = least_squares(
        residuals, start, bounds=(low, high), loss="soft_l1", x_scale="jac", xtol=1e-12, ftol=1e-12, max_nfev=500
    )
    x = solved.x
    error = np.log(times(x) / seconds)
    freedom = max(len(rows) - 1 - len(floors) - len(macs), 1)
    # 1.4826 x MAD estimates a standard deviation; small samples are scaled up by the degrees of freedom used.
    spread = max(1.4826 * float(np.median(np.abs(error))) * math.sqrt(len(rows) / freedom), MIN_SPREAD)
    covariance = _covariance(solved.jac, len(rows), spread)
    scale = np.concatenate([[1.0], floor_units, mac_units, np.ones(len(formats) + int(stated))])
    _, _, efficiency, overlap = split(x)
    values = dict(zip([*floors, *macs], (x * scale)[1 : ends[2]], strict=True))
    by_format = {name.removeprefix("mac:"): float(values[name]) for name in macs} if stated else {}
    mean = sum(by_format.values()) / len(by_format) if by_format else float(values.get("seconds_per_mac", 0.0))
    return Law(
        bandwidth_fraction=math.exp(x[0]),
        floor_per_kernel_s=float(values.get("floor_per_kernel_s", 0.0)),
        floor_per_layer_s=float(values.get("floor_per_layer_s", 0.0)),
        seconds_per_mac=mean,
        seconds_per_attention_mac=float(values.get("seconds_per_attention_mac", 0.0)),
        format_efficiency={name: math.exp(v) for name, v in zip(formats, efficiency, strict=True)},
        spread=spread,
        observations=len(rows),
        models=len({o.model for o in rows}),
        format_seconds_per_mac=by_format,
        overlap=overlap,
        parameters=(
            "log_bandwidth_fraction", *floors, *macs, *(f"format:{n}" for n in formats), *(["overlap"] * stated)
        ),
        covariance=tuple(tuple(float(v) for v in row) for row in covariance * np.outer(scale, scale)),
    )  # fmt: skip


def _overlapped(stream: Any, compute: Any, p: float) -> Any:
    """(stream^p + compute^p)^(1/p), by the larger of the two so that no power under- or overflows."""
    if p == 1:
        return stream + compute
    import numpy as np

    most = np.maximum(stream, compute)
    safe = np.where(most > 0, most, 1.0)
    return most * ((stream / safe) ** p + (compute / safe) ** p) ** (1 / p)


def _scaled(counts: dict[str, Array], seconds: Array) -> tuple[list[str], Array, Array]:
    """(names, unit of each in seconds, columns times their units) of those counts that occur."""
    import numpy as np

    units = {name: _unit(count, seconds) for name, count in counts.items()}
    names = [name for name, unit in units.items() if unit > 0]
    design = np.stack([counts[n] * units[n] for n in names], axis=1) if names else np.zeros((len(seconds), 0))
    return names, np.array([units[n] for n in names]), design


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
