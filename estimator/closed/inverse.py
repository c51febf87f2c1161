"""Backward: the active parameters that one step's time allows, with the group's constants known as far as they are.

The posterior of log(active parameters) is reckoned on a grid. Drawn at every quasi-random point and averaged over: the
group's constants (from `hierarchy`), the depth (by size, as open models have it), and of an MoE the dense share, the
experts per chosen one and the cache per layer. What is left between law and reading, the model's own deviation and
noise, is the likelihood, a normal with a wider one mixed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from moegauge.estimator import additive
from moegauge.estimator.additive import TokenSteps
from moegauge.estimator.architectures import architectures
from moegauge.estimator.closed.points import quasi_random
from moegauge.estimator.hierarchy import Case, Posterior, role_bits
from moegauge.estimator.readings import Reading

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

POINTS = 256
GRID = 121
REACH = 4.5  # of the grid either way, in log active parameters
# The prior of a size: active parameters to this power by log(active parameters), on one device and on several, times a
# normal of this deviation about the mean of the group's other models. A flat prior of the logarithm puts the median too
# low wherever floors are a good part of the step; the powers are what the fitted readings ask for.
TILT_ONE, TILT_SEVERAL = 1.6, 1.0
SIZE_DEVIATION = 1.5
TAIL, WIDER = 0.05, 3.0  # share of readings that are off by a deviation this many times as large
NEAR = 0.7  # log active parameters within which an open model says how another is built
PEER_WEIGHT = 20.0  # of a model of the same group, over any other
LINE_WEIGHT = 1.0  # of the straight line by size, in models
LEAST_DEVIATION = 0.08  # of log(layers) and the like, however alike the models near
STRUCTURE = ("depth", "floor", "dense_share", "expansion", "cache", "recurrent")


@dataclass(frozen=True, slots=True)
class Density:
    """Posterior of active parameters.

    Attributes:
        log_active: grid of log(active parameters); shape [grid].
        cumulative: probability below; shape [grid].
        floor_share: share of the step at the median that does not depend on bytes.
    """

    log_active: Array
    cumulative: Array
    floor_share: float

    def at(self, q: float) -> float:
        """The q-quantile, in parameters."""
        import numpy as np

        return float(np.exp(np.interp(q, self.cumulative, self.log_active)))

    def mixed(self, other: Density, share: float) -> Density:
        """A mixture, `share` of it this one; the other on any grid."""
        import numpy as np

        low = min(self.log_active[0], other.log_active[0])
        high = max(self.log_active[-1], other.log_active[-1])
        grid = np.linspace(low, high, 2 * len(self.log_active))
        parts = [np.interp(grid, d.log_active, d.cumulative, left=0.0, right=1.0) for d in (self, other)]
        floor = share * self.floor_share + (1 - share) * other.floor_share
        return Density(grid, share * parts[0] + (1 - share) * parts[1], floor)


@dataclass(frozen=True, slots=True)
class Structure:
    """How a model of a given size is built, as open ones near it are: normal in the logarithms, by a grid of sizes.

    Attributes:
        layers: (mean, deviation) of log(layers); shapes [grid].
        dense_share: of log(dense over routed active parameters).
        expansion: of log(experts over experts per token - 1).
        cache: of log(cached elements per layer and token of context, copies included).
        recurrent: probability of recurrent layers; shape [grid]; recurrent_share: of the layers, where there are some.
    """

    layers: tuple[Array, Array]
    dense_share: tuple[Array, Array]
    expansion: tuple[Array, Array]
    cache: tuple[Array, Array]
    recurrent: Array
    recurrent_share: float


def structure(
    log_active: Array, moe: bool, peers: frozenset[str], without: str = "", devices: float = 1.0
) -> Structure:
    """Of models of these sizes.

    A straight line through the known architectures, drawn towards those near in size, most to the group's own: models
    that somebody measures side by side, or a provider serves, are alike.

    Args:
        log_active: log(active parameters); shape [grid].
        moe: whether they have experts.
        peers: architectures of the group's other models.
        without: an architecture to leave out.
        devices: that share every layer, for the copies of caches.
    """
    import numpy as np

    rows = [a for a in architectures() if (a.routed > 0) == moe and a.name != without]
    size = np.log([a.dense + a.routed for a in rows])
    weight = np.array([PEER_WEIGHT if a.name in peers else 1.0 for a in rows])
    near = weight * np.exp(-0.5 * np.square((log_active[:, None] - size) / NEAR))  # [grid, rows]

    def local(values: list[float]) -> tuple[Array, Array]:
        y = np.array(values)
        line = np.polyfit(size, y, 1)
        off = y - np.polyval(line, size)
        mass = near.sum(axis=1) + LINE_WEIGHT
        mean = near @ off / mass
        variance = (near @ np.square(off) + LINE_WEIGHT * np.var(off)) / mass - np.square(mean)
        return np.polyval(line, log_active) + mean, np.sqrt(variance + LEAST_DEVIATION**2)

    layers = local([math.log(a.layers) for a in rows])
    cache = local(
        [math.log((a.kv_elements + 0.1 * a.local_kv_elements) * a.cache_copies(devices) / a.layers) for a in rows]
    )
    shares = np.array([a.recurrent for a in rows])
    recurrent = (near @ (shares > 0) + LINE_WEIGHT * np.mean(shares > 0)) / (near.sum(axis=1) + LINE_WEIGHT)
    usual = float(shares[shares > 0].mean())
    if not moe:
        nothing = np.zeros_like(log_active)
        return Structure(layers, (nothing, nothing), (nothing, nothing), cache, recurrent, usual)
    share = local([math.log(a.dense / a.routed) for a in rows])
    expansion = local([math.log(a.expansion - 1) for a in rows])
    return Structure(layers, share, expansion, cache, recurrent, usual)


@lru_cache(maxsize=4)
def _points(dimensions: int) -> Any:
    from scipy.special import ndtri

    return ndtri(quasi_random(POINTS, dimensions, 0))


def density(
    posterior: Posterior, reading: Reading, target: Case, moe: bool, others: Sequence[Case], constants: Any = None
) -> Density:
    """Posterior of the reading's active parameters, of which nothing is looked at.

    Args:
        posterior: conditioned on readings of other models.
        reading: whose time, bits, context, streams and devices are used.
        target: it as a case, for its labels.
        moe: whether it is an MoE.
        others: the group's other models.
        constants: (mean, covariance) of the group's constants; by default what the posterior says.
    """
    import numpy as np
    from scipy.special import ndtr

    mean, covariance = posterior.of_group(target) if constants is None else constants
    z = _points(len(mean) + len(STRUCTURE))
    theta = mean + z[:, : len(mean)] @ np.linalg.cholesky(covariance + 1e-12 * np.eye(len(mean))).T
    free = dict(zip(STRUCTURE, z[:, len(mean) :].T, strict=True))
    centre = float(np.mean(np.log([c.step.dense + c.step.routed for c in others])))
    peers = frozenset(c.model for c in others)
    grid = np.linspace(centre - REACH, centre + REACH, GRID)
    built = structure(grid, moe, peers, target.model, target.step.devices)

    def drawn(name: str, prior: tuple[Array, Array]) -> Array:
        return np.asarray(prior[0] + prior[1] * free[name][:, None])

    layers = np.exp(drawn("depth", built.layers))
    share = 1 / (1 + np.exp(-drawn("dense_share", built.dense_share))) if moe else np.ones((POINTS, GRID))
    expansion = 1 + np.exp(drawn("expansion", built.expansion)) if moe else np.ones((POINTS, GRID))
    cache = np.exp(drawn("cache", built.cache))
    active = np.exp(grid)
    of_total = float(np.median(share / (share + (1 - share) * expansion)))
    dense_bits, routed_bits = role_bits(reading.format, reading.bits, of_total) if moe else (reading.bits, reading.bits)
    known = target.step
    ones = np.ones((POINTS, GRID))
    steps = TokenSteps(
        layers=layers,
        dense=active * share,
        routed=active * (1 - share),
        expansion=expansion,
        dense_bits=dense_bits * ones,
        routed_bits=routed_bits * ones,
        kv_bytes=cache * layers * reading.context * reading.batch * additive.KV_BYTES,
        streams=known.streams * ones,
        devices=known.devices * ones,
        bandwidth=known.bandwidth * ones,
        moe=float(moe) * ones,
        quantised=known.quantised * ones,
        recurrent=built.recurrent_share * (ndtr(free["recurrent"])[:, None] < built.recurrent),
    )
    terms = additive.terms_s(theta[:, None, :], steps)
    own_floor = np.exp(posterior.spreads.model_floor * free["floor"])[:, None]
    terms |= {name: terms[name] * own_floor for name in additive.FLOORS}
    off = math.log(reading.seconds) - np.log(sum(terms.values()))
    deviation = math.sqrt(posterior.own_variance(target))
    likelihood = np.exp(-0.5 * np.square(off / deviation)) * (1 - TAIL)
    likelihood += np.exp(-0.5 * np.square(off / deviation / WIDER)) * TAIL / WIDER
    away = grid - centre
    tilt = TILT_SEVERAL if reading.devices > 1 else TILT_ONE
    mass = likelihood.mean(axis=0) * np.exp(tilt * away - 0.5 * np.square(away / SIZE_DEVIATION)) + 1e-300
    cumulative = np.cumsum(mass)
    cumulative = (cumulative - 0.5 * mass) / cumulative[-1]
    middle = int(np.searchsorted(cumulative, 0.5))
    taken = {name: np.broadcast_to(t, off.shape)[:, middle] for name, t in terms.items()}
    of_floors = np.sum([taken[name] for name in additive.FLOORS], axis=0) / np.sum(list(taken.values()), axis=0)
    near = likelihood[:, middle] + 1e-300
    return Density(grid, cumulative, float(np.average(of_floors, weights=near)))
