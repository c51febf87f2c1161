"""The additive law of one decode step on a published system: floors, all-reduces, bytes over bandwidth, cache, compute.

    seconds = layers (floor + hop log2(devices) + batch log2(streams))
              x e^(moe_floor [MoE] + recurrent [share of such layers] + quantised [FP8])
            + (dense bytes + routed bytes e^moe_bytes) / (devices bandwidth efficiency), each times its format's cost
            + cache bytes e^cache / (devices bandwidth efficiency)
            + (streams - 1)^growth active parameters e^token / (devices bandwidth)

A format of b bits costs (8/b)^narrow below 8 bits, where codes are taken apart, and (8/b)^wide above. Routed bytes are
those of the distinct experts `streams` tokens choose, x (1 - (1 - 1/x)^streams) of one token's with x = E/k; above one
stream they are further multiplied by e^grouped, since products of an expert and few tokens are another kernel. Further
tokens ride along in a tile until it is full and compute until it runs out (growth). Constants belong to one system on
one device and are kept as logarithms (`PARAMETERS`), so that one Gaussian describes them; `hierarchy` learns them.
Devices of which each holds some of the layers (`pipelined`) count as one: they add memory.

To evaluate the law for a model on a device:

    mean, covariance = hierarchy.fitted().of_group(hierarchy.fitted().place("SGLang", "NVIDIA B200"))  # log constants
    steps = TokenSteps.of([TokenStep(layers=61, dense=16.2e9, routed=20.4e9, ..., devices=8, bandwidth=8e12)])
    terms_ms(mean, steps)    # {"floor": [...], "all_reduce": [...], "batch": [...], "weights": [...], "kv": ..., ...}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

# What was thought of each constant before any fit: (mean, standard deviation), all in logarithms.
PRIOR = {
    "efficiency": (-0.29, 0.3),  # 75 % of the datasheet bandwidth
    "floor": (3.2, 1.0),  # 25 us a layer: launches, barriers, the tails of small kernels
    "hop": (1.6, 1.0),  # 5 us a layer and doubling of devices: two all-reduces
    "batch": (1.1, 1.0),  # 3 us a layer and doubling of streams: wider kernels, scheduling
    "moe_floor": (0.3, 0.6),  # routing, gathering and grouping are kernels of their own
    "recurrent": (0.3, 0.5),  # convolutions, gates and state updates are further kernels; by the share of such layers
    "quantised": (0.2, 0.4),  # activations are brought to FP8 in kernels of their own
    "moe_bytes": (0.2, 0.3),  # chosen experts stream worse than one matrix
    "narrow": (0.2, 0.25),
    "wide": (0.1, 0.15),
    "cache": (0.0, 0.5),  # 16-bit elements at the efficiency of the weights
    "grouped": (0.1, 0.5),
    "token": (-3.5, 1.0),  # 0.03 bytes' worth of time a parameter and further token
    "growth": (-0.2, 0.25),
}
PARAMETERS = tuple(PRIOR)
KV_BYTES = 2.0  # per cached element, where nothing else is said
TERMS = ("floor", "all_reduce", "batch", "weights", "kv", "compute")
FLOORS = TERMS[:3]  # what does not depend on bytes


@dataclass(frozen=True, slots=True)
class TokenStep:
    """What one decode step does.

    Attributes:
        layers: decoder layers.
        dense, routed: parameters one token uses: always-active ones (embedding left out), those of routed experts.
        expansion: experts over experts per token.
        dense_bits, routed_bits: bits per parameter, scales included.
        kv_bytes: cache bytes that all devices read for all streams, copies of what cannot be split included.
        streams: sequences decoded together, or tokens of one stream in one pass.
        devices: that share each layer (tensor parallel); bandwidth: datasheet bytes/s of one.
        moe: 1.0 where experts are chosen, else 0.0.
        recurrent: share of the layers whose mixer keeps a state instead of a cache.
        quantised: 1.0 where products take activations in FP8 or FP4 (FP8, NVFP4), else 0.0.
    """

    layers: float
    dense: float
    routed: float
    expansion: float
    dense_bits: float
    routed_bits: float
    kv_bytes: float
    streams: float
    devices: float
    bandwidth: float
    moe: float
    recurrent: float
    quantised: float


@dataclass(frozen=True, slots=True)
class TokenSteps:
    """Many steps, one array per field of `TokenStep`; arrays of any shapes that broadcast together."""

    layers: Array
    dense: Array
    routed: Array
    expansion: Array
    dense_bits: Array
    routed_bits: Array
    kv_bytes: Array
    streams: Array
    devices: Array
    bandwidth: Array
    moe: Array
    recurrent: Array
    quantised: Array

    @classmethod
    def of(cls, steps: Sequence[TokenStep]) -> TokenSteps:
        """Fields of all steps; shape [steps]."""
        import numpy as np

        return cls(*np.array([astuple(step) for step in steps], dtype=float).T)


def coverage(expansion: Array, streams: Array) -> Array:
    """Distinct experts `streams` tokens choose over those of one: x (1 - (1 - 1/x)^streams)."""
    import numpy as np

    x = np.maximum(expansion, 1.0 + 1e-9)
    return np.asarray(x * -np.expm1(streams * np.log1p(-1.0 / x)))


def terms_s(constants: Array, steps: TokenSteps) -> dict[str, Array]:
    """Seconds of each of `TERMS`.

    Args:
        constants: values of `PARAMETERS`; shape [..., parameters], broadcast against the steps.
        steps: what is done.
    """
    import numpy as np

    p = dict(zip(PARAMETERS, np.moveaxis(np.asarray(constants), -1, 0), strict=True))
    kernels = p["moe_floor"] * steps.moe + p["recurrent"] * steps.recurrent + p["quantised"] * steps.quantised
    layers = steps.layers * np.exp(kernels) * 1e-6
    rate = steps.devices * steps.bandwidth * np.exp(p["efficiency"])
    dense, routed = weight_times(p, steps)
    return {
        "floor": layers * np.exp(p["floor"]),
        "all_reduce": layers * np.exp(p["hop"]) * np.log2(steps.devices),
        "batch": layers * np.exp(p["batch"]) * np.log2(steps.streams),
        "weights": (dense + routed) / rate,
        "kv": steps.kv_bytes * np.exp(p["cache"]) / rate,
        "compute": np.maximum(steps.streams - 1, 0.0) ** np.exp(p["growth"])
        * (steps.dense + steps.routed)
        * np.exp(p["token"])
        / (steps.devices * steps.bandwidth),
    }


def terms_ms(constants: Array, steps: TokenSteps) -> dict[str, Array]:
    """Milliseconds of each of `TERMS`; see `terms_s`."""
    return {name: value * 1e3 for name, value in terms_s(constants, steps).items()}


def seconds(constants: Array, steps: TokenSteps) -> Array:
    """Seconds of the whole step; see `terms_s`."""
    import numpy as np

    return np.asarray(sum(terms_s(constants, steps).values()))


def weight_times(p: dict[str, Array], steps: TokenSteps) -> tuple[Array, Array]:
    """Bytes of dense and routed weights, each times what its format and gathering cost."""
    import numpy as np

    dense = steps.dense * steps.dense_bits / 8 * np.exp(_format_cost(p, steps.dense_bits))
    routed = steps.routed * coverage(steps.expansion, steps.streams) * steps.routed_bits / 8
    cost = _format_cost(p, steps.routed_bits) + p["moe_bytes"] + p["grouped"] * (steps.streams > 1)
    return dense, routed * np.exp(cost)


def _format_cost(p: dict[str, Array], bits: Array) -> Array:
    """log of (8/b)^narrow below 8 bits and (8/b)^wide above."""
    import numpy as np

    wider = np.log(8.0 / bits)
    return np.asarray(p["narrow"] * np.maximum(wider, 0.0) + p["wide"] * np.minimum(wider, 0.0))


def log_seconds(constants: Array, steps: TokenSteps) -> tuple[Array, Array, Array]:
    """log(seconds), its derivative by every constant, and by log(layers).

    Args:
        constants: shape [steps, parameters]; steps: shape [steps].

    Returns:
        shapes [steps], [steps, parameters], [steps].
    """
    import numpy as np

    t = terms_s(constants, steps)
    whole = sum(t.values())
    p = dict(zip(PARAMETERS, np.asarray(constants).T, strict=True))
    rate = steps.devices * steps.bandwidth * np.exp(p["efficiency"])
    dense, routed = (size / rate for size in weight_times(p, steps))
    by_dense, by_routed = (np.log(8.0 / bits) for bits in (steps.dense_bits, steps.routed_bits))
    floors = t["floor"] + t["all_reduce"] + t["batch"]
    slope = {
        "efficiency": -(t["weights"] + t["kv"]),
        "floor": t["floor"],
        "hop": t["all_reduce"],
        "batch": t["batch"],
        "moe_floor": steps.moe * floors,
        "recurrent": steps.recurrent * floors,
        "quantised": steps.quantised * floors,
        "moe_bytes": routed,
        "narrow": dense * np.maximum(by_dense, 0) + routed * np.maximum(by_routed, 0),
        "wide": dense * np.minimum(by_dense, 0) + routed * np.minimum(by_routed, 0),
        "cache": t["kv"],
        "grouped": routed * (steps.streams > 1),
        "token": t["compute"],
        "growth": t["compute"] * np.exp(p["growth"]) * np.log(np.maximum(steps.streams - 1, 1e-9)),
    }
    jacobian = np.stack([slope[name] / whole for name in PARAMETERS], axis=-1)
    return np.log(whole), jacobian, np.asarray(floors / whole)
