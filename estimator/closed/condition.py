"""Bytes per step that a served speed allows, with a provider's open models as calibrators.

A provider is one system on devices that nobody names: what its replica delivers (bytes/s) is learned from its open
models, floors are drawn from what the law says of a system it knows nothing about (`hierarchy`). For every
quasi-random point the open models' bytes and floors are reckoned under the point's assumptions; each speed then gives
a delivered bandwidth, bytes / (step time - floors). Those agree well or badly, which is the point's weight, and their
mean gives the bytes that a closed model's step time and depth allow, with a deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from moegauge.estimator.additive import PARAMETERS, coverage
from moegauge.estimator.closed import assumptions as assumed
from moegauge.estimator.closed.fleets import Served
from moegauge.estimator.hierarchy import load_calibration
from moegauge.shape import ModelShape

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

# A replica is somewhere around eight H200 (38.4 TB/s); log standard deviation 1 is a factor of 2.7 either way.
REPLICA_BANDWIDTH = 38.4e12
REPLICA_SPREAD = 1.0
# Two devices for one stream give 1.7 times the bandwidth of one (gpt-fast on A100, readings of data/throughput.csv).
REPLICA_EXPONENT = 0.77
SERVED_NOISE = 0.10  # log; two readings of one model at one provider on one day differ by about this
KV_ELEMENT_BYTES = 1.5  # half of the fleets keep FP8
COLUMNS_PER_MODEL = 2  # quasi-random coordinates an open model takes: speculation and precision
# A step is never taken to be more than this share of floors: some bytes were read.
MOST_FLOOR = 0.97


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

    def bytes(self, precision: str, distinct: Array) -> Array:
        """Weight bytes of one step when `distinct` times the experts of one token are read."""
        import numpy as np

        if precision == "released":
            dense, routed = self.released
        else:
            per_dense, per_routed = assumed.PRECISIONS[precision]
            dense, routed = self.dense * per_dense, self.routed * per_routed
        return np.asarray(dense + routed * distinct)


def kv_bytes(elements: Array | float, batch: Array, context: Array) -> Array:
    """Cache bytes one step reads; `elements` cached per token of context."""
    import numpy as np

    return np.asarray(batch * context * elements * KV_ELEMENT_BYTES)


@lru_cache(maxsize=1)
def own_deviations() -> tuple[float, float]:
    """Deviations of one model from the law at a provider: of log(seconds), and of the logarithm of its floor."""
    spreads = load_calibration().all
    level = math.sqrt(spreads.model_family**2 + spreads.model_group**2 + spreads.noise**2 + SERVED_NOISE**2)
    return level, spreads.model_floor


@lru_cache(maxsize=1)
def served_factors() -> tuple[float, float, float]:
    """(what dense floors are of an MoE's; share of the floor added by a doubling of streams; cost of gathered bytes),
    by the law of a system nothing is known about."""
    mean = dict(zip(PARAMETERS, load_calibration().unseen[0], strict=True))
    added = math.exp(mean["batch"]) / assumed.floor_us(mean) * math.exp(mean["moe_floor"])
    return math.exp(-mean["moe_floor"]), added, math.exp(mean["moe_bytes"])


@dataclass(frozen=True, slots=True)
class Condition:
    """The law at one provider conditioned on its open models, for every point at once.

    Attributes:
        floor: seconds per layer of an MoE, at the point's streams; shape [points].
        log_rate: mean of log(delivered bytes/s) of the open models' replica; shape [points].
        rate_deviation: its standard deviation; shape [points].
        weight: likelihood of the open models' agreement, largest 1; shape [points].
        excess: floors of the open model that has least time for them, over that time; shape [points].
    """

    floor: Array
    log_rate: Array
    rate_deviation: Array
    weight: Array
    excess: Array

    @classmethod
    def on(cls, known: Sequence[Served], batch: Array, context: Array, floor_us: Array, u: Array) -> Condition:
        """Condition on the open models `known`; without any, the prior of the replica stands.

        Args:
            known: readings with shapes.
            batch, context: of the provider's steps; shape [points].
            floor_us: floor of a layer of an MoE for one stream, microseconds; shape [points].
            u: quasi-random coordinates; shape [points, COLUMNS_PER_MODEL * models].
        """
        import numpy as np

        points = len(batch)
        dense_floor, added, gathering = served_factors()
        floor = floor_us * 1e-6 * (1 + added * np.log2(batch))
        precision = np.full(points, 1 / REPLICA_SPREAD**2)
        total = precision * math.log(REPLICA_BANDWIDTH)
        square = precision * math.log(REPLICA_BANDWIDTH) ** 2
        log_weight = np.zeros(points)
        excess = np.zeros(points)
        for i, row in enumerate(known):
            assert row.shape is not None
            model = Open.of(row.shape)
            seconds = assumed.calibration_speculation[model.drafts](u[:, 2 * i]) / row.tokens_per_s
            options = assumed.CALIBRATION_PRECISIONS[model.release]
            choice = assumed.choose(u[:, 2 * i + 1], options)
            distinct = coverage(np.full(points, model.expansion), batch) * (gathering if model.routed else 1.0)
            size = np.choose(choice, [model.bytes(name, distinct) for name, _ in options])
            size = size + kv_bytes(model.cache_elements, batch, context)
            floors = floor * model.layers * (1.0 if model.routed else dense_floor)
            streaming, deviation = streaming_s(seconds, floors)
            log_rate = np.log(size / streaming)
            precision = precision + 1 / deviation**2
            total = total + log_rate / deviation**2
            square = square + np.square(log_rate / deviation)
            # The density is of log(seconds), of which log(rate) moves by seconds / streaming. Floors longer than the
            # step are as unlikely as the model's own deviations make them.
            log_weight -= np.log(deviation * streaming / seconds)
            over = np.maximum(floors / seconds, 1.0)
            log_weight -= 0.5 * np.square(np.log(over) / math.hypot(*own_deviations()))
            excess = np.maximum(excess, floors / seconds)
        mean = total / precision
        # Marginal likelihood of the rates under one true rate with the prior of the replica.
        log_weight += -0.5 * (square - np.square(mean) * precision) - 0.5 * np.log(precision)
        return cls(floor, mean, np.sqrt(1 / precision), np.exp(log_weight - log_weight.max()), excess)

    def floors(self, layers: Array, moe: bool = True, stack: Array | float = 1.0) -> Array:
        """Seconds of a step's floors; shape [points]."""
        return self.floor * layers * stack * (1.0 if moe else served_factors()[0])

    def allowed_bytes(
        self, seconds: Array, layers: Array, moe: bool = True, stack: Array | float = 1.0
    ) -> tuple[Array, Array]:
        """Bytes a step of `seconds` and `layers` reads on a replica like the open models', and the standard deviation
        of their logarithm; shapes [points]. `stack` multiplies the floors."""
        import numpy as np

        streaming, own = streaming_s(seconds, self.floors(layers, moe, stack))
        return np.exp(self.log_rate) * streaming, np.asarray(np.hypot(own, self.rate_deviation))


def streaming_s(seconds: Array, floors: Array) -> tuple[Array, Array]:
    """Seconds left for bytes, and the standard deviation of their logarithm that the model's own deviations make."""
    import numpy as np

    level, own_floor = own_deviations()
    share = np.minimum(floors / seconds, MOST_FLOOR)
    return seconds * (1 - share), np.hypot(level, own_floor * share) / (1 - share)
