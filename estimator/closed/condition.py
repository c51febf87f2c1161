"""Bytes per step that a served speed allows, with a provider's open models as calibrators.

A provider is one group of `efficiency`, of unknown bandwidth. Its open models' bytes per step are reckoned under
assumptions (one value per quasi-random point); conditioned on them, the model gives the bytes per step that a step
time and a depth allow, with a deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from moegauge.estimator.closed import assumptions as assumed
from moegauge.estimator.closed.fleets import Served
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
from moegauge.estimator.readings import read
from moegauge.shape import ModelShape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

# A replica is somewhere around eight H200 (38.4 TB/s); log standard deviation 1 is a factor of 2.7 either way.
REPLICA_BANDWIDTH = 38.4e12
REPLICA_SPREAD = 1.0
# Two devices for one stream give 1.7 times the speed of one (gpt-fast on A100, readings of data/throughput.csv).
REPLICA_EXPONENT = 0.77
SERVED_NOISE = 0.10  # log; two readings of one model at one provider on one day differ by about this
KV_ELEMENT_BYTES = 1.5  # half of the fleets keep FP8
COLUMNS_PER_MODEL = 2  # quasi-random coordinates an open model takes: speculation and precision


@lru_cache(maxsize=1)
def packaged_coefficients() -> tuple[Spreads, Coefficients]:
    """Spreads, and what all packaged readings say of the shared coefficients."""
    spreads = load_calibration().all
    return spreads, coefficients(spreads, [case(r) for r in read()[0]])


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
            shape.mtp_parameters > 0,
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


def coverage_of(expansion: float | Array, batch: Array) -> Array:
    """Distinct experts a batch reads over those of one token: x (1 - (1 - 1/x)^B) with x = E / k."""
    import numpy as np

    x = np.maximum(expansion, 1.0 + 1e-9)
    return np.asarray(x * -np.expm1(batch * np.log1p(-1.0 / x)))


def served_features(seconds: Array, layers: Array, moe: bool = True) -> Array:
    """`FEATURES` of a served step: 8-bit, its KV reckoned apart, device count apart; shape [points, features]."""
    import numpy as np

    X = np.zeros((len(seconds), len(FEATURES)))
    X[:, FEATURES.index("constant")] = 1.0
    X[:, FEATURES.index("floor")] = np.log1p(FLOOR_PER_LAYER_S * layers / seconds)
    X[:, FEATURES.index("moe")] = float(moe)
    return X


def kv_bytes(elements: Array | float, batch: Array, context: Array) -> Array:
    """Cache bytes one step reads; `elements` cached per token of context."""
    import numpy as np

    return np.asarray(batch * context * elements * KV_ELEMENT_BYTES)


@dataclass(frozen=True, slots=True)
class Condition:
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
    def on(cls, known: Sequence[Served], batch: Array, context: Array, u: Array) -> Condition:
        """Condition on the open models `known`; without any, only the packaged readings speak.

        Args:
            known: readings with shapes.
            batch, context: of the provider's steps; shape [points].
            u: quasi-random coordinates; shape [points, COLUMNS_PER_MODEL * models].
        """
        import numpy as np

        points = len(batch)
        X = np.zeros((points, len(known), len(FEATURES)))
        z = np.zeros((points, len(known)))
        for i, row in enumerate(known):
            assert row.shape is not None
            model = Open.of(row.shape)
            seconds = assumed.calibration_speculation[model.drafts](u[:, 2 * i]) / row.tokens_per_s
            options = assumed.CALIBRATION_PRECISIONS[model.release]
            choice = assumed.choose(u[:, 2 * i + 1], options)
            coverage = coverage_of(model.expansion, batch)
            weights = np.choose(choice, [model.bytes(name, coverage) for name, _ in options])
            z[:, i] = np.log((weights + kv_bytes(model.cache_elements, batch, context)) / (seconds * REPLICA_BANDWIDTH))
            X[:, i] = served_features(seconds, np.full(points, float(model.layers)), model.routed > 0)
        spreads, prior = packaged_coefficients()
        return cls._of(prior, spreads, X, z)

    @classmethod
    def _of(cls, prior: Coefficients, spreads: Spreads, X: Array, z: Array) -> Condition:
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

    def allowed_bytes(self, seconds: Array, layers: Array, moe: bool = True) -> tuple[Array, Array]:
        """Bytes a step of `seconds` and `layers` reads on a replica like the open models', and the standard deviation
        of their logarithm; shapes [points]."""
        import numpy as np

        x = served_features(seconds, layers, moe)
        cross = np.einsum("pf,fg,pmg->pm", x, self.group, self.X)
        mean = PRIOR_MEAN + x @ self.prior.mean + np.einsum("pm,pm->p", cross, self.solved)
        variance = np.einsum("pf,fg,pg->p", x, self.group, x) + self.own
        variance -= np.einsum("pm,pmn,pn->p", cross, self.inverse, cross)
        return np.exp(mean) * seconds * REPLICA_BANDWIDTH, np.asarray(np.sqrt(np.maximum(variance, 1e-12)))
