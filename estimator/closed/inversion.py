"""Invert served tokens/s into parameters of closed models: priors on the unknowns, intervals as the answer.

For each quasi-random point the additive law is conditioned on the open models under the point's assumptions
(`condition`). A closed model's step time less its floors, by depth, stack and streams, leaves the time its bytes
stream in; those bytes, less the KV cache, divided by bytes per active parameter at the point's precision, dense share
and batch coverage, are active parameters. Depth goes with size, so both are found together. Points are weighted by how
well their assumptions make the open models agree with each other.

Active parameters here leave out the input embedding, of which a step reads one row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moegauge.estimator.additive import coverage
from moegauge.estimator.batching import DOLLARS_PER_DEVICE_HOUR, dollars_per_million, prices
from moegauge.estimator.closed import assumptions as assumed
from moegauge.estimator.closed.condition import (
    COLUMNS_PER_MODEL,
    REPLICA_EXPONENT,
    Condition,
    kv_bytes,
    served_factors,
)
from moegauge.estimator.closed.fleets import Served
from moegauge.estimator.closed.points import quasi_random
from moegauge.estimator.hierarchy import depth

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

POINTS = 1 << 17  # quasi-random points, of which one in 20 carries weight: from seed to seed the median moves by 3 %
PERCENTS = (50, 80, 95)
MOSTLY_FLOORS = 0.5
SIZE_ROUNDS = 24  # in which a size and the depth that goes with it find each other, halfway each time


@dataclass(frozen=True, slots=True)
class Estimate:
    """Posterior of one closed model.

    Attributes:
        model: its name; tokens_per_s: what was seen.
        active, total: quantiles of parameters: `median` and the ends of central intervals by percentage.
        variance: share of the variance of log(active) each assumption explains alone (first-order Sobol index,
            estimated from the weighted points); what no single one explains is under `together`.
        points: effective number of points.
        floor_share: quantiles of the share of the step that its floors take, as `active`.
        dollars_per_million: quantiles of what a million tokens cost on SERVED_DEVICES x replica devices at
            `batching.DOLLARS_PER_DEVICE_HOUR`, shared by the step's streams; prompts and idle devices left out.
    """

    model: str
    tokens_per_s: float
    active: dict[str, Any]
    total: dict[str, Any]
    variance: dict[str, float]
    points: float
    floor_share: dict[str, Any]
    dollars_per_million: dict[str, Any]

    @property
    def hardly_identifiable(self) -> bool:
        """True when floors take most of the step, so that its time says little about size."""
        return bool(self.floor_share["median"] > MOSTLY_FLOORS)

    @property
    def cost(self) -> dict[str, Any]:
        """Dollars per million tokens beside the price of output tokens, and the margin (80 %); None without a price."""
        price = prices().get(self.model, (None, None))[1]
        ends = self.dollars_per_million["80"]
        return {
            "dollars_per_device_hour": DOLLARS_PER_DEVICE_HOUR,
            "dollars_per_million": self.dollars_per_million,
            "price": price,
            "margin_80": [1 - ends[1] / price, 1 - ends[0] / price] if price else None,
        }

    def to_json(self) -> dict[str, Any]:
        """An entry of the `measured.models` list."""
        return {
            "model": self.model,
            "tokens_per_s": self.tokens_per_s,
            "active": self.active,
            "total": self.total,
            "variance": self.variance,
            "floor_share": self.floor_share,
            "hardly_identifiable": self.hardly_identifiable,
            "cost": self.cost,
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
    drawn, u, condition = _draw(known, fixed, points, seed)
    names = list(assumed.ASSUMPTIONS)
    first = len(names) + 1
    noise = assumed.normal(u[:, len(names)])
    moe = fixed.get("expansion") != 1.0
    results = []
    for row in wanted:
        seconds = drawn["speculation"] / row.tokens_per_s
        active, floor_share = _solve(condition, seconds, drawn, noise, moe=moe, layers=fixed.get("layers"))
        total = active * (drawn["dense_share"] + (1 - drawn["dense_share"]) * drawn["expansion"])
        inputs = {name: u[:, i] for i, name in enumerate(names) if name not in fixed}
        inputs[assumed.EFFICIENCY] = u[:, len(names)]
        for i, known_row in enumerate(known):
            inputs[f"{assumed.CALIBRATION}: {known_row.model} speculation"] = u[:, first + 2 * i]
            inputs[f"{assumed.CALIBRATION}: {known_row.model} precision"] = u[:, first + 2 * i + 1]
        device_cost = dollars_per_million(DOLLARS_PER_DEVICE_HOUR, assumed.SERVED_DEVICES, row.tokens_per_s)
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
                _summary(floor_share, weight),
                _summary(device_cost * drawn["replica"] / drawn["batch"], weight),
            )
        )
    return results


def _draw(
    known: Sequence[Served], fixed: Mapping[str, float], points: int, seed: int
) -> tuple[dict[str, Array], Array, Condition]:
    """Values of every assumption at every point, the points' coordinates, and the law conditioned there."""
    import numpy as np

    assumed.check(fixed)
    names = list(assumed.ASSUMPTIONS)
    first = len(names) + 1
    u = quasi_random(points, first + COLUMNS_PER_MODEL * len(known), seed)
    drawn = {
        name: np.full(points, fixed[name]) if name in fixed else assumed.ASSUMPTIONS[name].value(u[:, i])
        for i, name in enumerate(names)
    }
    return drawn, u, Condition.on(known, drawn["batch"], drawn["context"], drawn["floor"], u[:, first:])


def open_floor_shares(known: Sequence[Served], *, seed: int = 0, points: int = POINTS) -> dict[str, dict[str, Any]]:
    """Quantiles of the share of the step that floors take, of each open model of a fleet; as `Estimate.floor_share`."""
    import numpy as np

    _, u, condition = _draw(known, {}, points, seed)
    weight = condition.weight / condition.weight.sum()
    first = len(assumed.ASSUMPTIONS) + 1
    found = {}
    for i, row in enumerate(known):
        assert row.shape is not None
        drafts = row.shape.mtp_parameters > 0
        seconds = assumed.calibration_speculation[drafts](u[:, first + COLUMNS_PER_MODEL * i]) / row.tokens_per_s
        floors = condition.floors(np.full(points, float(len(row.shape.layers))), row.shape.moe_layers > 0)
        found[row.model] = _summary(np.minimum(floors / seconds, 1.0), weight)
    return found


def _solve(
    condition: Condition, seconds: Array, drawn: Mapping[str, Array], noise: Array, *, moe: bool, layers: float | None
) -> tuple[Array, Array]:
    """Active parameters whose step takes `seconds`, 0 where the cache alone is more, and the floors' share of it."""
    import numpy as np

    table = np.array([assumed.PRECISIONS[name] for name, _ in assumed.TARGET_PRECISIONS])
    per = table[drawn["precision"].astype(int)]
    share = drawn["dense_share"]
    distinct = coverage(drawn["expansion"], drawn["batch"]) * (served_factors()[2] if moe else 1.0)
    each = share * per[:, 0] + (1 - share) * per[:, 1] * distinct
    faster = drawn["replica"] ** REPLICA_EXPONENT * drawn["hardware"]
    prior = depth(moe)

    def size(deep: Array) -> Array:
        allowed, deviation = condition.allowed_bytes(seconds, deep, moe, drawn["stack"])
        cache = kv_bytes(drawn["kv"] * deep, drawn["batch"], drawn["context"])
        return np.asarray(np.maximum(allowed * faster * np.exp(deviation * noise) - cache, 0.0) / each)

    deep = np.full(len(seconds), layers or math.exp(prior.log_layers(prior.largest)))
    active = size(deep)
    for _ in range(0 if layers else SIZE_ROUNDS):
        wanted = np.exp(prior.log_layers(np.log(np.maximum(active, 1e8)))) * drawn["layers"]
        deep = np.sqrt(deep * wanted)
        active = size(deep)
    return active, np.minimum(condition.floors(deep, moe, drawn["stack"]) / seconds, 1.0)


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
