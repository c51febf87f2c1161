"""How much of its bandwidth a system turns into decode: a linear mixed model over published readings.

For one reading let `z = log(bytes per token / (seconds per token x devices x datasheet bandwidth))`, the logarithm of
the share of the datasheet bandwidth that the one-term formula calls effective. The formula takes `z` to be one
constant of the provider. It is not, for reasons that are physical and small in number:

    floor      log(1 + floor time / step time): launches and barriers weigh more in a short step
    moe        gathered experts stream worse, and their dense part is stored in more bits than the file's average
    narrow     formats below 8 bits cost decoding, the more the narrower
    wide       formats above 8 bits need none at all
    context    KV bytes and attention time
    devices    tensor parallelism pays all-reduces

`z = X (beta + beta_group) + system family + device + model + noise`, every term normal with mean 0 but the mean of the
constant. The standard deviations (`Spreads`) are learned from the packaged readings by maximum a posteriori likelihood
with the model under test left out; given them every prediction is linear algebra. `z` is a function of the step
*time*, which is known of a closed model too, so the same equation that fits open models inverts closed ones.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from moegauge.estimator.packaged import packaged
from moegauge.estimator.readings import Reading

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

# Time at which floors weigh as much as bytes: 40 layers of 75 us. The coefficient of the term is fitted; this only
# sets where it bends.
FLOOR_PER_LAYER_S = 75e-6
USUAL_LAYERS = 40
CONTEXT_SCALE = 2048  # tokens at which the context term is log 2
PRIOR_MEAN = math.log(0.7)  # of z: systems reach about 70 % of the datasheet
FEATURES = ("constant", "floor", "moe", "narrow", "wide", "context", "devices")


@dataclass(frozen=True, slots=True)
class Spreads:
    """Standard deviations of the terms of the mixed model, in units of log bytes.

    Attributes:
        shared: of each coefficient in `FEATURES`, common to all groups.
        group: of each coefficient's deviation in one (system, device) group.
        model_family: of a model within one family of systems.
        model_group: of a model within one group.
        noise: of one reading.
        family, device: of a family of systems, of a device.
        unverified: further noise of a reading nobody vouches for.
    """

    shared: tuple[float, ...]
    group: tuple[float, ...]
    model_family: float
    model_group: float
    noise: float
    family: float
    device: float
    unverified: float

    def to_list(self) -> list[float]:
        """All of them in one list, the order of the fields."""
        flat: list[float] = []
        for value in asdict(self).values():
            flat.extend(value if isinstance(value, tuple) else [value])
        return flat

    @classmethod
    def from_list(cls, values: Sequence[float]) -> Spreads:
        """The inverse of `to_list`."""
        n = len(FEATURES)
        if len(values) != 2 * n + len(fields(cls)) - 2 or not all(v > 0 and math.isfinite(v) for v in values):
            raise ValueError("spreads must be positive and complete")
        return cls(tuple(values[:n]), tuple(values[n : 2 * n]), *values[2 * n :])


# What was thought before any fit; fitted spreads are drawn towards these (log standard deviation 1).
GUESS = Spreads(
    (0.3, 0.7, 0.4, 0.2, 0.2, 0.3, 0.4), (0.2, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1), 0.08, 0.05, 0.03, 0.2, 0.2, 0.15
)


@dataclass(frozen=True, slots=True)
class Case:
    """A reading as the mixed model sees it.

    Attributes:
        features: values of `FEATURES`.
        group, family, device, model: labels; equal labels share effects.
        z: log effective share of the bandwidth; NaN when it is to be predicted.
        unverified: true of readings nobody vouches for.
    """

    features: tuple[float, ...]
    group: str
    family: str
    device: str
    model: str
    z: float = math.nan
    unverified: bool = False


def features(
    seconds: float, *, moe: bool, bits: float, context: float, devices: int = 1, layers: float = USUAL_LAYERS
) -> tuple[float, ...]:
    """Values of `FEATURES` for a step of `seconds` with `bits` per weight at `context` tokens."""
    return (
        1.0,
        math.log1p(FLOOR_PER_LAYER_S * layers / seconds),
        1.0 if moe else 0.0,
        min(math.log2(bits / 8.0), 0.0),
        max(math.log2(bits / 8.0), 0.0),
        math.log1p(context / CONTEXT_SCALE),
        math.log2(devices),
    )


def case(reading: Reading) -> Case:
    """A reading as a case. Its active parameters enter `z` alone."""
    return Case(
        features(reading.seconds, moe=reading.moe, bits=reading.bits, context=reading.context, devices=reading.devices),
        "|".join(reading.group),
        re.split(r"[ (,\-/]", reading.system.lower())[0] or reading.system,
        reading.device.lower(),
        reading.key,
        math.log(reading.bytes_per_token * reading.tokens_per_s / (reading.devices * reading.bandwidth)),
        reading.unverified,
    )


def noise(spreads: Spreads, cases: Sequence[Case]) -> Array:
    """Variance of one reading's own noise; shape [cases]."""
    import numpy as np

    return np.array([spreads.noise**2 + (spreads.unverified**2 if c.unverified else 0.0) for c in cases])


def as_target(reading: Reading, moe: bool) -> Case:
    """A reading whose parameters are to be estimated: all a case holds but `z`."""
    known = case(reading)
    told = features(reading.seconds, moe=moe, bits=reading.bits, context=reading.context, devices=reading.devices)
    return replace(known, features=told, z=math.nan)


@dataclass(frozen=True, slots=True)
class Pairs:
    """What two lists of cases have in common, whatever the spreads: features and equal labels.

    Attributes:
        left, right: features; shapes [len(a), features] and [len(b), features].
        group, family, device, model: True where the labels are equal; shape [len(a), len(b)].
    """

    left: Array
    right: Array
    group: Any
    family: Any
    device: Any
    model: Any

    @classmethod
    def of(cls, a: Sequence[Case], b: Sequence[Case]) -> Pairs:
        """Pairs of every case of `a` with every case of `b`."""
        import numpy as np

        def same(label: str) -> Any:
            # Numbers compare a hundred times faster than strings.
            number: dict[str, int] = {}
            left, right = (
                np.array([number.setdefault(getattr(c, label), len(number)) for c in cases]) for cases in (a, b)
            )
            return left[:, None] == right[None, :]

        left, right = (np.array([c.features for c in cases]) for cases in (a, b))
        return cls(left, right, same("group"), same("family"), same("device"), same("model"))

    def covariance(self, spreads: Spreads) -> Array:
        """Prior covariance of z between them, noise left out; shape [len(a), len(b)]."""
        import numpy as np

        shared = (self.left * np.square(spreads.shared)) @ self.right.T
        grouped = (self.left * np.square(spreads.group)) @ self.right.T
        return np.asarray(
            shared
            + self.group * grouped
            + spreads.model_family**2 * (self.model & self.family)
            + spreads.model_group**2 * (self.model & self.group)
            + spreads.family**2 * self.family
            + spreads.device**2 * self.device
        )


@dataclass(frozen=True, slots=True)
class Posterior:
    """Prediction of z for some targets.

    Attributes:
        mean, deviation: of each target, the noise of one reading included in the deviation; shape [targets].
        weights: d mean / d z of each training case; shape [targets, training].
    """

    mean: Array
    deviation: Array
    weights: Array


def posterior(spreads: Spreads, training: Sequence[Case], targets: Sequence[Case]) -> Posterior:
    """Predict z of the targets from the training cases."""
    import numpy as np

    K = Pairs.of(training, training).covariance(spreads) + np.diag(noise(spreads, training))
    cross = Pairs.of(targets, training).covariance(spreads)
    weights = np.linalg.solve(K, cross.T).T
    mean = PRIOR_MEAN + weights @ (np.array([c.z for c in training]) - PRIOR_MEAN)
    own = np.diag(Pairs.of(targets, targets).covariance(spreads)) + noise(spreads, targets)
    variance = own - np.einsum("ij,ij->i", weights, cross)
    return Posterior(np.asarray(mean), np.asarray(np.sqrt(np.maximum(variance, 1e-12))), np.asarray(weights))


def fit_spreads(cases: Sequence[Case], start: Spreads = GUESS, iterations: int = 40) -> Spreads:
    """Spreads of maximum a posteriori likelihood, each log spread drawn towards `GUESS` with deviation 1."""
    import numpy as np
    from scipy.optimize import minimize

    pairs = Pairs.of(cases, cases)
    centre = np.log(GUESS.to_list())
    residual = np.array([c.z for c in cases]) - PRIOR_MEAN

    def loss(h: Array) -> float:
        spreads = Spreads.from_list([float(v) for v in np.exp(h)])
        K = pairs.covariance(spreads) + np.diag(noise(spreads, cases) + 1e-9)
        factor = np.linalg.cholesky(K)
        whitened = np.linalg.solve(factor, residual)
        return float(0.5 * whitened @ whitened + np.log(np.diag(factor)).sum() + 0.5 * np.square(h - centre).sum())

    solved = minimize(
        loss,
        np.log(start.to_list()),
        method="L-BFGS-B",
        bounds=[(c - 4, c + 4) for c in centre],
        options={"maxiter": iterations},
    )
    return Spreads.from_list([float(f"{v:.4g}") for v in np.exp(solved.x)])


@dataclass(frozen=True, slots=True)
class Calibration:
    """Spreads learned from the packaged readings: from all of them, and without each model in turn.

    Attributes:
        all: from every packaged reading; for models that are not among them.
        without: by model key, from the readings of the other models.
        without_system, without_family: by system and by family of systems, from the readings of the others.
    """

    all: Spreads
    without: dict[str, Spreads]
    without_system: dict[str, Spreads]
    without_family: dict[str, Spreads]


def load_calibration() -> Calibration:
    """The packaged calibration, `estimator/data/calibration.json`, made by `scripts/make_calibration.py`."""
    document = json.loads(packaged("calibration.json"))
    parts = (document[part] for part in ("without", "without_system", "without_family"))
    return Calibration(
        Spreads.from_list(document["all"]),
        *({key: Spreads.from_list(values) for key, values in part.items()} for part in parts),
    )


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What the packaged readings say of the shared coefficients, for a group they know nothing else about.

    Attributes:
        mean: of `FEATURES`, added to PRIOR_MEAN; shape [features].
        covariance: shape [features, features].
    """

    mean: Array
    covariance: Array


def coefficients(spreads: Spreads, training: Sequence[Case]) -> Coefficients:
    """Posterior of the shared coefficients given readings of other systems."""
    import numpy as np

    X = np.array([c.features for c in training])
    prior = np.diag(np.square(spreads.shared))
    K = Pairs.of(training, training).covariance(spreads) + np.diag(noise(spreads, training))
    gain = np.linalg.solve(K, X @ prior).T
    residual = np.array([c.z for c in training]) - PRIOR_MEAN
    return Coefficients(gain @ residual, prior - gain @ X @ prior)
