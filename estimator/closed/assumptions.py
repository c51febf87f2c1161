"""Priors on what nobody outside a provider knows (precision, batch, speculation, ...).

Each assumption turns a number between 0 and 1 (a coordinate of a quasi-random point) into a value, so fixing one is
fixing its coordinate, and freeing it can only add spread.

The priors are judgements, written here so that they can be argued with; `docs/estimating.md` gives the reason for
each. Shared assumptions hold for all models of a provider; `calibration` ones are drawn anew for each open model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from moegauge.errors import UnknownNameError, UsageError
from moegauge.estimator.additive import PARAMETERS
from moegauge.estimator.hierarchy import depth, load_calibration

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

SERVED_DEVICES = 8  # of the replica whose floors the law is asked for
# Bytes per parameter of (always-active, routed) matrices, scales included.
PRECISIONS = {
    "bf16": (2.0, 2.0),
    "fp8": (1.0, 1.0),
    "fp8_fp4": (1.0, 0.53),  # 4-bit experts with a scale per 32
    "fp4": (0.56, 0.56),  # NVFP4: a scale per 16
}
TARGET_PRECISIONS = (("fp4", 0.10), ("fp8_fp4", 0.30), ("fp8", 0.50), ("bf16", 0.10))
# How an open release is served, by the bytes per parameter its experts were released in: few providers go up from a
# 4-bit release or stay at BF16.
CALIBRATION_PRECISIONS = {
    "4-bit": (("released", 0.5), ("fp8_fp4", 0.5)),
    "8-bit": (("fp8_fp4", 0.2), ("released", 0.8)),
    "16-bit": (("fp8_fp4", 0.15), ("fp8", 0.7), ("released", 0.15)),
}


@dataclass(frozen=True, slots=True)
class Assumption:
    """One unknown.

    Attributes:
        name: as in `--assume NAME=VALUE` and in the variance table.
        unit: of its value.
        value: coordinates in (0, 1) to values; shape kept. Of `layers`, over those of an open model of the same size.
        why: the prior in words.
        low, high: values `--assume` accepts.
    """

    name: str
    unit: str
    value: Callable[[Array], Array]
    why: str
    low: float
    high: float


def normal(u: Array) -> Array:
    """Standard normal values of uniform ones."""
    from scipy.special import ndtri

    return ndtri(u)  # type: ignore[no-any-return]


def _log_normal(median: float, ratio80: float) -> Callable[[Array], Array]:
    """80 % between median / ratio80 and median * ratio80."""

    def value(u: Array) -> Array:
        import numpy as np

        return np.asarray(median * np.exp(normal(u) * math.log(ratio80) / 1.28155))

    return value


def _logit_normal(median: float, spread: float) -> Callable[[Array], Array]:
    def value(u: Array) -> Array:
        import numpy as np

        centre = math.log(median / (1 - median))
        return np.asarray(1 / (1 + np.exp(-(centre + spread * normal(u)))))

    return value


def _log_uniform(low: float, high: float) -> Callable[[Array], Array]:
    def value(u: Array) -> Array:
        import numpy as np

        return np.asarray(low * np.exp(u * math.log(high / low)))

    return value


def _speculation(used: float, low: float, high: float) -> Callable[[Array], Array]:
    """Tokens per step: 1 with probability 1 - used, else uniform from low to high."""

    def value(u: Array) -> Array:
        import numpy as np

        share = np.clip((u - (1 - used)) / used, 0, 1)
        return np.where(u < 1 - used, 1.0, low + share * (high - low))

    return value


def _replica(u: Array) -> Array:
    """Devices of the closed model's replica over those of the open ones: half, as many, twice."""
    import numpy as np

    return np.where(u < 0.15, 0.5, np.where(u < 0.75, 1.0, 2.0))


def floor_us(constants: Mapping[str, float]) -> float:
    """Microseconds a layer of an MoE takes before it reads anything, on SERVED_DEVICES devices in FP8."""
    layer = math.exp(constants["floor"]) + math.log2(SERVED_DEVICES) * math.exp(constants["hop"])
    return layer * math.exp(constants["moe_floor"] + constants["quantised"])


@lru_cache(maxsize=1)
def floor_prior() -> tuple[float, float]:
    """Median of `floor_us` of a system nothing is known about, and standard deviation of its logarithm."""
    import numpy as np

    mean, covariance = load_calibration().unseen
    value = floor_us(dict(zip(PARAMETERS, mean, strict=True)))
    step = 1e-4
    moved = [dict(zip(PARAMETERS, mean + step * row, strict=True)) for row in np.eye(len(mean))]
    slope = np.array([math.log(floor_us(m) / value) / step for m in moved])
    return value, math.sqrt(float(slope @ covariance @ slope))


def _floor(u: Array) -> Array:
    import numpy as np

    median, deviation = floor_prior()
    return np.asarray(median * np.exp(deviation * normal(u)))


def _depth(u: Array) -> Array:
    """Layers over those of an open MoE of the same size."""
    import numpy as np

    return np.asarray(np.exp(depth(True).deviation * normal(u)))


def choose(u: Array, options: Sequence[tuple[str, float]]) -> Any:
    """Indices of options drawn with their probabilities."""
    import numpy as np

    edges = np.cumsum([share for _, share in options])
    return np.minimum(np.searchsorted(edges, u), len(options) - 1)


def _precision(u: Array) -> Array:
    """Index into TARGET_PRECISIONS."""
    return choose(u, TARGET_PRECISIONS)  # type: ignore[no-any-return]


ASSUMPTIONS: dict[str, Assumption] = {
    a.name: a
    for a in (
        Assumption("precision", "", _precision, "FP4 10 %, FP8 with 4-bit experts 30 %, FP8 50 %, BF16 10 %", 0, 3),
        Assumption("batch", "streams", _log_uniform(1, 64), "log-uniform from 1 to 64 streams a step", 1, 4096),
        Assumption("context", "tokens", _log_normal(4000, 4), "4,000 tokens, 80 % within x4", 1, 1e6),
        Assumption(
            "speculation",
            "tokens/step",
            _speculation(0.4, 1.3, 2.2),
            "none 60 %, else 1.3 to 2.2 tokens a step",
            1,
            8,
        ),
        Assumption("replica", "x", _replica, "half as many devices 15 %, as many 60 %, twice 25 %", 0.0625, 16),
        Assumption(
            "hardware", "x", _log_normal(1, 1.3), "devices as fast as the open models', 80 % within x1.3", 0.1, 10
        ),
        Assumption("stack", "x", _log_normal(1, 1.3), "floors as the open models', 80 % within x1.3", 0.05, 20),
        Assumption("floor", "us/layer", _floor, "as the law has it for a system nothing is known about", 0.1, 2000),
        Assumption("layers", "layers", _depth, "as many as an open MoE of its size, spread as theirs", 8, 1000),
        Assumption(
            "dense_share", "", _logit_normal(0.42, 0.45), "42 % of the active ones, 80 % in 29 to 56 %", 0.01, 1
        ),
        Assumption(
            "expansion", "experts/top-k", _log_normal(30, 2.1), "30 experts per chosen one, 80 % within x2.1", 1, 1000
        ),
        Assumption("kv", "elements/layer/token", _log_normal(1100, 1.9), "1,100 elements, 80 % within x1.9", 1, 1e5),
    )
}
EFFICIENCY = "efficiency"  # what the mixed model leaves open
CALIBRATION = "calibration"  # precision and speculation of the open models

# With a released draft layer, and without one.
calibration_speculation = {True: _speculation(0.4, 1.3, 2.2), False: _speculation(0.1, 1.3, 2.2)}


def held(fixed: Mapping[str, float]) -> list[str]:
    """Assumptions held at a value, in words."""
    words = []
    for name, value in fixed.items():
        if name == "precision":
            words.append(f"precision {TARGET_PRECISIONS[int(value)][0]}")
        else:
            words.append(f"{name} {value:g} {ASSUMPTIONS[name].unit}".rstrip())
    return words


def check(fixed: Mapping[str, float]) -> None:
    """Refuse unknown assumptions and values they cannot take.

    Raises:
        UnknownNameError: no assumption of that name.
        UsageError: a value out of range.
    """
    for name, value in fixed.items():
        if name not in ASSUMPTIONS:
            raise UnknownNameError("assumption", name, ASSUMPTIONS)
        known = ASSUMPTIONS[name]
        if not (math.isfinite(value) and known.low <= value <= known.high):
            raise UsageError(f"assumption {name} is {value:g}, not between {known.low:g} and {known.high:g}.")


def parse(texts: tuple[str, ...]) -> dict[str, float]:
    """`NAME=VALUE` texts as numbers; a precision may be given by name.

    Raises:
        UsageError: not of that form, or out of range.
    """
    fixed = {}
    names = [name for name, _ in TARGET_PRECISIONS]
    for text in texts:
        name, _, value = text.partition("=")
        if name == "precision" and value in names:
            fixed[name] = float(names.index(value))
            continue
        try:
            fixed[name] = float(value)
        except ValueError:
            raise UsageError(f"assumption '{text}' is not NAME=NUMBER.", advice="Example: --assume batch=8") from None
    check(fixed)
    return fixed
