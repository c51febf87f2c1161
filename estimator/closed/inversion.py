"""Invert served tokens/s into parameters of closed models: priors on the unknowns, intervals as the answer.

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

from moegauge.estimator.closed import assumptions as assumed
from moegauge.estimator.closed.condition import COLUMNS_PER_MODEL, REPLICA_EXPONENT, Condition, coverage_of, kv_bytes
from moegauge.estimator.closed.fleets import Served
from moegauge.estimator.closed.points import quasi_random

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

POINTS = 1 << 14  # quasi-random points: from seed to seed the ends of the 95 % interval move by 2 %
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
    first = len(names) + 1
    u = quasi_random(points, first + COLUMNS_PER_MODEL * len(known), seed)
    drawn = {
        name: np.full(points, fixed[name]) if name in fixed else assumed.ASSUMPTIONS[name].value(u[:, i])
        for i, name in enumerate(names)
    }
    condition = Condition.on(known, drawn["batch"], drawn["context"], u[:, first:])
    noise = assumed.normal(u[:, len(names)])
    moe = fixed.get("expansion") != 1.0
    results = []
    for row in wanted:
        seconds = drawn["speculation"] / row.tokens_per_s
        allowed, deviation = condition.allowed_bytes(seconds, drawn["layers"], moe)
        size = allowed * np.exp(deviation * noise) * drawn["replica"] ** REPLICA_EXPONENT
        active = _solve(size, drawn)
        total = active * (drawn["dense_share"] + (1 - drawn["dense_share"]) * drawn["expansion"])
        inputs = {name: u[:, i] for i, name in enumerate(names) if name not in fixed}
        inputs[assumed.EFFICIENCY] = u[:, len(names)]
        for i, known_row in enumerate(known):
            inputs[f"{assumed.CALIBRATION}: {known_row.model} speculation"] = u[:, first + 2 * i]
            inputs[f"{assumed.CALIBRATION}: {known_row.model} precision"] = u[:, first + 2 * i + 1]
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


def _solve(size: Array, drawn: Mapping[str, Array]) -> Array:
    """Active parameters whose weights and cache make `size` bytes a step; 0 where the cache alone is more."""
    import numpy as np

    table = np.array([assumed.PRECISIONS[name] for name, _ in assumed.TARGET_PRECISIONS])
    per = table[drawn["precision"].astype(int)]
    share = drawn["dense_share"]
    each = share * per[:, 0] + (1 - share) * per[:, 1] * coverage_of(drawn["expansion"], drawn["batch"])
    kv = kv_bytes(drawn["kv"] * drawn["layers"], drawn["batch"], drawn["context"])
    return np.asarray(np.maximum(size - kv, 0.0) / each)


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
