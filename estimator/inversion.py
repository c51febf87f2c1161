"""Backward: closed models of a provider from served speeds, with the unknowns as priors and the answer as intervals.

For each quasi-random point the open models' bytes per step are reckoned under the point's assumptions; the mixed model
of `efficiency` (floors by depth and step time, one constant of the provider) is conditioned on them, and predicts the
bytes per step of each closed model from its step time; those bytes, less the KV cache, divided by bytes per active
parameter at the point's precision, dense share and batch coverage, are active parameters. Points are weighted by how
well their assumptions make the open models agree with each other.

Active parameters here leave out the input embedding, of which a step reads one row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moegauge.estimator import assumptions as assumed
from moegauge.estimator.efficiency import (
    FEATURES,
    FLOOR_PER_LAYER_S,
    PRIOR_MEAN,
    Coefficients,
    Spreads,
    case,
    coefficients,
    load_calibration,
)
from moegauge.estimator.points import quasi_random
from moegauge.estimator.provider import Served
from moegauge.estimator.readings import read
from moegauge.shape import ModelShape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

POINTS = 1 << 14  # quasi-random points: from seed to seed the ends of the 95 % interval move by 2 %
# A replica is somewhere around eight H200 (38.4 TB/s); log standard deviation 1 is a factor of 2.7 either way.
REPLICA_BANDWIDTH = 38.4e12
REPLICA_SPREAD = 1.0
# Two devices for one stream give 1.7 times the speed of one (gpt-fast on A100, readings of data/throughput.csv).
REPLICA_EXPONENT = 0.77
SERVED_NOISE = 0.10  # log; two readings of one model at one provider on one day differ by about this
KV_ELEMENT_BYTES = 1.5  # half of the fleets keep FP8
PERCENTS = (50, 80, 95)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Posterior of one closed model.

    Attributes:
        model: its name; tokens_per_s: what was seen.
        active, total: quantiles of parameters: `median` and the ends of central intervals by percentage.
        variance: share of the variance of log(active) each assumption explains alone (first-order Sobol index,
            estimated from the weighted points); what no single one explains is under `together`.
        points: effective number of points.
    """

    model: str
    tokens_per_s: float
    active: dict[str, Any]
    total: dict[str, Any]
    variance: dict[str, float]
    points: float

    def to_json(self) -> dict[str, Any]:
        """An entry of the `measured.models` list."""
        return {
            "model": self.model,
            "tokens_per_s": self.tokens_per_s,
            "active": self.active,
            "total": self.total,
            "variance": self.variance,
        }


@dataclass(frozen=True, slots=True)
class Open:
    """What the inversion needs of an open model.

    Attributes:
        dense, routed: parameters one token uses, the input embedding left out.
        released: bytes per token as released; dense, routed.
        layers, expansion, cache_elements: depth, experts per chosen one, KV elements per token of context.
        drafts: true when its release holds a multi-token-prediction layer, so that speculation is likely.
    """

    dense: float
    routed: float
    released: tuple[float, float]
    layers: int
    expansion: float
    cache_elements: float
    drafts: bool

    @classmethod
    def of(cls, shape: ModelShape) -> Open:
        """From its shape."""
        pools = [pool for layer in shape.layers for pool in layer.experts]
        return cls(
            shape.active_without_embedding - shape.routed_active_parameters,
            shape.routed_active_parameters,
            (shape.dense_bytes, shape.routed_bytes),
            len(shape.layers),
            sum(p.count / p.top_k for p in pools) / len(pools) if pools else 1.0,
            shape.cache_elements(1),
            shape.family.startswith(("deepseek", "glm")),
        )

    @property
    def release(self) -> str:
        """Width its experts (or a dense model's matrices) were released in."""
        each = self.released[1] / self.routed if self.routed else self.released[0] / self.dense
        return "4-bit" if each < 0.75 else "8-bit" if each < 1.5 else "16-bit"

    def bytes(self, precision: str, coverage: Array) -> Array:
        """Weight bytes of one step when `coverage` times the experts of one token are read."""
        import numpy as np

        if precision == "released":
            dense, routed = self.released
        else:
            per_dense, per_routed = assumed.PRECISIONS[precision]
            dense, routed = self.dense * per_dense, self.routed * per_routed
        return np.asarray(dense + routed * coverage)


def estimate(
    known: Sequence[Served],
    wanted: Sequence[Served],
    *,
    seed: int = 0,
    fixed: Mapping[str, float] | None = None,
    points: int = POINTS,
) -> list[Estimate]:
    """Estimate closed models from open ones of the same fleet.

    Args:
        known: readings of open models, with shapes; at least two models.
        wanted: readings to estimate; shapes are not looked at.
        seed: of the quasi-random points; the same seed gives the same answer.
        fixed: assumptions held at a value instead of their prior.
        points: how many.

    Raises:
        UsageError, UnknownNameError: a fixed assumption that does not exist or cannot take its value.
    """
    import numpy as np

    fixed = dict(fixed or {})
    assumed.check(fixed)
    names = list(assumed.ASSUMPTIONS)
    dimensions = len(names) + 1 + 2 * len(known)
    u = quasi_random(points, dimensions, seed)
    drawn = {
        name: np.full(points, fixed[name]) if name in fixed else assumed.ASSUMPTIONS[name].value(u[:, i])
        for i, name in enumerate(names)
    }
    calibrators = [Open.of(row.shape) for row in known if row.shape]
    spreads = load_calibration().all
    prior = coefficients(spreads, [case(r) for r in read()[0]])

    z, X = [], []
    for i, (row, model) in enumerate(zip(known, calibrators, strict=True)):
        column = len(names) + 1 + 2 * i
        steps = assumed.calibration_speculation[model.drafts](u[:, column])
        seconds = steps / row.tokens_per_s
        coverage = _coverage(model.expansion, drawn["batch"])
        options = assumed.CALIBRATION_PRECISIONS[model.release]
        choice = assumed.choose(u[:, column + 1], options)
        weights = np.choose(choice, [model.bytes(name, coverage) for name, _ in options])
        kv = drawn["batch"] * drawn["context"] * model.cache_elements * KV_ELEMENT_BYTES
        z.append(np.log((weights + kv) / (seconds * REPLICA_BANDWIDTH)))
        X.append(_features(seconds, np.full(points, float(model.layers))))
    condition = _Condition.of(prior, spreads, np.stack(X, axis=1), np.stack(z, axis=1))
    results = []
    for row in wanted:
        seconds = drawn["speculation"] / row.tokens_per_s
        mean, deviation = condition.predict(_features(seconds, drawn["layers"]))
        noise = assumed._normal(u[:, len(names)])
        size = np.exp(mean + deviation * noise) * seconds * REPLICA_BANDWIDTH * drawn["replica"] ** REPLICA_EXPONENT
        active = _solve(size, drawn)
        total = active * (drawn["dense_share"] + (1 - drawn["dense_share"]) * drawn["expansion"])
        inputs = {name: u[:, i] for i, name in enumerate(names) if name not in fixed}
        inputs[assumed.EFFICIENCY] = u[:, len(names)]
        for i, known_row in enumerate(known):
            inputs[f"{assumed.CALIBRATION}: {known_row.model} speculation"] = u[:, len(names) + 1 + 2 * i]
            inputs[f"{assumed.CALIBRATION}: {known_row.model} precision"] = u[:, len(names) + 2 + 2 * i]
        weight = np.where(active > 0, condition.weight, 0.0)
        weight /= weight.sum()
        results.append(
            Estimate(
                row.model,
                row.tokens_per_s,
                _summary(active, weight),
                _summary(total, weight),
                _variance(np.log(np.maximum(active, 1.0)), weight, inputs),
                float(1.0 / np.square(weight).sum()),
            )
        )
    return results


def _coverage(expansion: float | Array, batch: Array) -> Array:
    """Distinct experts a batch reads over those of one token: x (1 - (1 - 1/x)^B) with x = E / k."""
    import numpy as np

    x = np.maximum(expansion, 1.0 + 1e-9)
    return np.asarray(x * -np.expm1(batch * np.log1p(-1.0 / x)))


def _features(seconds: Array, layers: Array) -> Array:
    """`FEATURES` of a served MoE step: 8-bit, its KV reckoned apart, device count apart; shape [points, features]."""
    import numpy as np

    X = np.zeros((len(seconds), len(FEATURES)))
    X[:, FEATURES.index("constant")] = 1.0
    X[:, FEATURES.index("floor")] = np.log1p(FLOOR_PER_LAYER_S * layers / seconds)
    X[:, FEATURES.index("moe")] = 1.0
    return X


def _solve(size: Array, drawn: Mapping[str, Array]) -> Array:
    """Active parameters whose weights and cache make `size` bytes a step; 0 where the cache alone is more."""
    import numpy as np

    table = np.array([assumed.PRECISIONS[name] for name, _ in assumed.TARGET_PRECISIONS])
    per = table[drawn["precision"].astype(int)]
    share = drawn["dense_share"]
    each = share * per[:, 0] + (1 - share) * per[:, 1] * _coverage(drawn["expansion"], drawn["batch"])
    kv = drawn["batch"] * drawn["context"] * drawn["kv"] * drawn["layers"] * KV_ELEMENT_BYTES
    return np.asarray(np.maximum(size - kv, 0.0) / each)


@dataclass(frozen=True, slots=True)
class _Condition:
    """The mixed model of one provider conditioned on its open models, for every point at once.

    Attributes:
        X: features of the open models; shape [points, models, features].
        solved: inverse covariance times residual; shape [points, models].
        inverse: shape [points, models, models].
        weight: likelihood of the open models' agreement, largest 1; shape [points].
    """

    prior: Coefficients
    group: Array
    own: float
    X: Array
    solved: Array
    inverse: Array
    weight: Array

    @classmethod
    def of(cls, prior: Coefficients, spreads: Spreads, X: Array, z: Array) -> _Condition:
        import numpy as np

        group = prior.covariance + np.diag(np.square(spreads.group))
        # A provider is a system and a device of its own, and its datasheet bandwidth is unknown.
        group[0, 0] += spreads.family**2 + spreads.device**2 + REPLICA_SPREAD**2
        own = spreads.model_family**2 + spreads.model_group**2 + spreads.noise**2 + SERVED_NOISE**2
        K = X @ group @ X.transpose(0, 2, 1) + own * np.eye(X.shape[1])
        inverse = np.linalg.inv(K)
        residual = z - PRIOR_MEAN - X @ prior.mean
        solved = np.einsum("pij,pj->pi", inverse, residual)
        log_weight = -0.5 * np.einsum("pi,pi->p", residual, solved) - 0.5 * np.linalg.slogdet(K)[1]
        return cls(prior, group, own, X, solved, inverse, np.exp(log_weight - log_weight.max()))

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of z at features `x`; shapes [points]."""
        import numpy as np

        cross = np.einsum("pf,fg,pmg->pm", x, self.group, self.X)
        mean = PRIOR_MEAN + x @ self.prior.mean + np.einsum("pm,pm->p", cross, self.solved)
        variance = np.einsum("pf,fg,pg->p", x, self.group, x) + self.own
        variance -= np.einsum("pm,pmn,pn->p", cross, self.inverse, cross)
        return mean, np.sqrt(np.maximum(variance, 1e-12))


def _summary(values: Array, weight: Array) -> dict[str, Any]:
    import numpy as np

    order = np.argsort(values)
    ordered, mass = values[order], np.cumsum(weight[order])

    def at(q: float) -> float:
        return float(ordered[min(int(np.searchsorted(mass, q)), len(ordered) - 1)])

    summary: dict[str, Any] = {"median": at(0.5)}
    for percent in PERCENTS:
        tail = (1 - percent / 100) / 2
        summary[str(percent)] = [at(tail), at(1 - tail)]
    return summary


def _variance(values: Array, weight: Array, inputs: Mapping[str, Array], bins: int = 24) -> dict[str, float]:
    """First-order Sobol indices from weighted points: variance of the mean within bins of each input."""
    import numpy as np

    mean = float(np.sum(weight * values))
    whole = float(np.sum(weight * np.square(values - mean)))
    # Bins of an input that explains nothing still differ by chance, by (bins - 1) / effective points of the variance.
    chance = (bins - 1) * float(np.square(weight).sum())
    if whole <= 0:
        return dict.fromkeys(inputs, 0.0)
    shares = {}
    for name, u in inputs.items():
        place = np.minimum((u * bins).astype(int), bins - 1)
        mass = np.bincount(place, weight, bins)
        means = np.bincount(place, weight * values, bins) / np.maximum(mass, 1e-300)
        shares[name] = max(0.0, float(np.sum(mass * np.square(means - mean)) / whole) - chance)
    shares["together"] = max(0.0, 1.0 - math.fsum(shares.values()))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
