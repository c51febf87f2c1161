"""The additive law of many published systems at once: constants of families, devices and groups, learned from readings.

A group is one system on one device. The logarithm of each constant of `additive.PARAMETERS` is, for a group,

    prior mean + common + of its family of systems + of its device + its own

every part normal with mean 0; a reading's log(seconds) is the law's plus deviations of the model in the family and in
the group (in level, by doubling of streams, by context), of the depth where that is not known, and noise. The law is
not linear in the constants, so it is taken along its tangent at the posterior mean and that is found again until it
stands still (Gauss-Newton, which makes the posterior Gaussian: Laplace's approximation). Given the standard deviations
(`Spreads`) everything is linear algebra; they are learned by maximum a posteriori likelihood, with the model under test
left out (`scripts/make_calibration.py`). A reading that lies far off what all others say of it counts for less.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from moegauge.estimator import additive
from moegauge.estimator.additive import PARAMETERS, PRIOR, TokenStep, TokenSteps
from moegauge.estimator.architectures import architectures, find, kept_apart
from moegauge.estimator.packaged import packaged
from moegauge.estimator.readings import Reading, read_packaged

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

LEVELS = ("family", "device", "group")
CONTEXT_SCALE = 2048  # tokens at which a model's own deviation by context is log 2
OUTLIER = 2.5  # standard deviations off what the others say, beyond which a reading is given more noise
# Gauss-Newton from the prior mean: noise added to every reading (standard deviation, log), so that far readings pull
# before any is told an outlier; then as it is.
ROUNDS = (0.5, 0.3, 0.2, 0.1, 0.1, 0.0, 0.0, 0.0)
WARM_ROUNDS = (0.1, 0.0, 0.0)  # from the posterior of nearly the same readings
FAR = 1.0  # the most a log constant moves in one of them

# Dense share of the active parameters of an MoE whose architecture is not known, and cached elements per layer.
UNKNOWN_DENSE_SHARE = 0.45
UNKNOWN_CACHE = 1200.0
# Bits of the dense matrices where a format's name says that they differ from the experts'; first match.
DENSE_BITS = (
    (re.compile(r"f16 gguf", re.IGNORECASE), 16.0),
    (re.compile(r"mxfp4 (gguf|moe)|mxfp4-q8", re.IGNORECASE), 8.5),
    (re.compile(r"mxfp4|nvfp4|rest bf16", re.IGNORECASE), 16.0),
)


QUANTISED = re.compile(r"fp8|nvfp4|w4a4", re.IGNORECASE)  # formats whose products take quantised activations


@dataclass(frozen=True, slots=True)
class Spreads:
    """Standard deviations of what `hierarchy` adds up, in log units.

    Attributes:
        family, device, group: of each constant, by level; the order of `PARAMETERS`.
        model_family, model_group: of a model's level within one family of systems, one group.
        model_floor: of the logarithm of a model's own floor within one family: its kernels are its own.
        model_batch: of a model's slowing within one group, by doubling of streams.
        model_context: likewise by log(1 + context / 2048).
        noise: of one reading; unverified: further noise of one that nobody vouches for.
    """

    family: tuple[float, ...]
    device: tuple[float, ...]
    group: tuple[float, ...]
    model_family: float
    model_group: float
    model_floor: float
    model_batch: float
    model_context: float
    noise: float
    unverified: float

    def to_list(self) -> list[float]:
        """All of them in one list."""
        return [*self.family, *self.device, *self.group, *astuple(self)[3:]]

    @classmethod
    def from_list(cls, values: Sequence[float]) -> Spreads:
        """The inverse of `to_list`.

        Raises:
            ValueError: one is missing or not positive.
        """
        n = len(PARAMETERS)
        if len(values) != 3 * n + len(fields(cls)) - 3 or not all(v > 0 and math.isfinite(v) for v in values):
            raise ValueError("spreads must be positive and complete")
        return cls(tuple(values[:n]), tuple(values[n : 2 * n]), tuple(values[2 * n : 3 * n]), *values[3 * n :])


# What was thought before any fit; fitted spreads are drawn towards these (log standard deviation SPREAD_DEVIATION).
SPREAD_DEVIATION = 1.0
GUESS = Spreads(
    family=(0.12, 0.5, 0.5, 0.5, 0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.3, 0.3, 0.5, 0.15),
    device=(0.12, 0.25, 0.3, 0.3, 0.1, 0.1, 0.15, 0.08, 0.08, 0.05, 0.2, 0.15, 0.4, 0.1),
    group=(0.12, 0.4, 0.4, 0.6, 0.35, 0.2, 0.2, 0.12, 0.12, 0.08, 0.3, 0.3, 0.6, 0.15),
    model_family=0.06,
    model_group=0.05,
    model_floor=0.25,
    model_batch=0.08,
    model_context=0.05,
    noise=0.03,
    unverified=0.15,
)


@dataclass(frozen=True, slots=True)
class Depth:
    """Decoder layers by active parameters, from the known architectures: log L = mean(log A), normal.

    Attributes:
        intercept, slope: of the mean; the logarithm of active parameters over 10^10.
        deviation: standard deviation of log L.
        largest: log(active parameters) of the largest known; nothing says that larger ones are deeper.
    """

    intercept: float
    slope: float
    deviation: float
    largest: float

    def log_layers(self, log_active: Any) -> Any:
        """Mean of log(layers) for log(active parameters)."""
        import numpy as np

        return self.intercept + self.slope * (np.minimum(log_active, self.largest) - math.log(1e10))


@lru_cache(maxsize=2)
def depth(moe: bool) -> Depth:
    """The prior of the depth of an MoE or a dense model whose architecture is not known."""
    import numpy as np

    rows = [a for a in architectures() if (a.routed > 0) == moe]
    x = np.log([a.dense + a.routed for a in rows]) - math.log(1e10)
    y = np.log([a.layers for a in rows])
    slope, intercept = np.polyfit(x, y, 1)
    return Depth(
        float(intercept),
        float(slope),
        float(np.std(y - intercept - slope * x, ddof=2)),
        float(x.max() + math.log(1e10)),
    )


@dataclass(frozen=True, slots=True)
class Case:
    """A reading as the law sees it.

    Attributes:
        step: what the step does.
        group, family, device, model: labels; equal labels share deviations.
        context: tokens.
        log_seconds: log of the step's time; NaN when it is to be predicted.
        depth_deviation: standard deviation of log(layers); 0 where the depth is known.
        unverified: true of readings nobody vouches for.
    """

    step: TokenStep
    group: str
    family: str
    device: str
    model: str
    context: float
    log_seconds: float = math.nan
    depth_deviation: float = 0.0
    unverified: bool = False


def quantised(reading_format: str) -> float:
    """1.0 where a format's products take quantised activations."""
    return float(QUANTISED.search(reading_format) is not None)


_NOWHERE = Case(TokenStep(1, 1, 0, 1, 8, 8, 0, 1, 1, 1, 0, 0, 0), "", "", "", "", 0.0)


def role_bits(reading_format: str, bits: float, share: float) -> tuple[float, float]:
    """Bits of dense and of routed parameters whose mean over the file is `bits`.

    Args:
        reading_format: the format as given.
        bits: mean over the file.
        share: dense share of the *total* parameters.
    """
    dense = next((b for pattern, b in DENSE_BITS if pattern.search(reading_format)), bits)
    routed = (bits - share * dense) / (1 - share) if share < 1 else bits
    return (dense, routed) if routed > 0.6 * bits else (bits, bits)


def case(reading: Reading) -> Case:
    """A reading as a case: dense and routed parameters from the counted architecture where its name is known."""
    known = find(reading.key, reading.total)
    devices = 1 if reading.pipelined else reading.devices
    if known is None:
        share = UNKNOWN_DENSE_SHARE if reading.moe else 1.0
        dense, routed = share * reading.active, (1 - share) * reading.active
        expansion = (reading.total - dense) / routed if routed else 1.0
        prior = depth(reading.moe)
        layers = math.exp(prior.log_layers(math.log(reading.active)))
        deviation, total, cache = prior.deviation, reading.total, UNKNOWN_CACHE * layers * reading.context
    else:
        dense, routed, expansion = known.dense, known.routed, known.expansion
        layers, deviation, total = float(known.layers), 0.0, known.total
        cache = known.cache_elements(reading.context) * known.cache_copies(devices)
    moe = routed > 0
    dense_bits, routed_bits = role_bits(reading.format, reading.bits, 1 - routed * expansion / total if moe else 1.0)
    if not moe:
        dense_bits = reading.bits
    step = TokenStep(
        layers=layers,
        dense=dense,
        routed=routed,
        expansion=expansion,
        dense_bits=dense_bits,
        routed_bits=routed_bits,
        kv_bytes=cache * reading.batch * additive.KV_BYTES,
        streams=reading.batch,
        devices=devices,
        bandwidth=reading.bandwidth,
        moe=float(moe),
        recurrent=known.recurrent if known else 0.0,
        quantised=quantised(reading.format),
    )
    return Case(
        step=step,
        group="|".join(reading.group),
        family=family_of(reading.system),
        device=device_of(reading.device),
        model=known.name if known else reading.key,
        context=reading.context,
        log_seconds=math.log(reading.seconds),
        depth_deviation=deviation,
        unverified=reading.unverified,
    )


def family_of(system: str) -> str:
    """The first word of a system's name."""
    return re.split(r"[ (,\-/]", system.lower())[0] or system


def device_of(device: str) -> str:
    """A device's name without case and without what stands in brackets."""
    return re.sub(r"\(.*?\)", "", device.lower()).strip()


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower())) - {""}


def labels(cases: Sequence[Case], others: Sequence[Case]) -> dict[str, Any]:
    """By label, where `cases` and `others` are alike; booleans, shape [cases, others]."""
    import numpy as np

    columns = {
        "family": [[c.family for c in side] for side in (cases, others)],
        "device": [[c.device for c in side] for side in (cases, others)],
        "group": [[c.group for c in side] for side in (cases, others)],
        "model": [[c.model for c in side] for side in (cases, others)],
    }
    found = {}
    for name, sides in columns.items():
        number: dict[str, int] = {}  # numbers compare a hundred times faster than strings
        a, b = (np.array([number.setdefault(label, len(number)) for label in side]) for side in sides)
        found[name] = a[:, None] == b[None, :]
    return found


def own_columns(cases: Sequence[Case], by_layers: Array) -> dict[str, Array]:
    """What a model's own deviations are multiplied by; shape [cases] each."""
    import numpy as np

    return {
        "level": np.ones(len(cases)),
        "floor": by_layers,
        "batch": np.log2([c.step.streams for c in cases]),
        "context": np.log1p(np.array([c.context for c in cases]) / CONTEXT_SCALE),
        "depth": by_layers * np.array([c.depth_deviation for c in cases]),
    }


def own_covariance(spreads: Spreads, same: dict[str, Any], a: dict[str, Array], b: dict[str, Array]) -> Array:
    """Covariance of the models' own deviations; shape [cases, others]."""
    import numpy as np

    model, grouped, family = (same["model"] & same[x] for x in ("model", "group", "family"))
    found = spreads.model_family**2 * family + spreads.model_group**2 * grouped
    found = found + spreads.model_floor**2 * family * np.outer(a["floor"], b["floor"])
    for name, deviation in (("batch", spreads.model_batch), ("context", spreads.model_context)):
        found = found + deviation**2 * grouped * np.outer(a[name], b[name])
    return np.asarray(found + model * np.outer(a["depth"], b["depth"]))


def noise_of(spreads: Spreads, cases: Sequence[Case]) -> Array:
    """Variance of one reading's own noise; shape [cases]."""
    import numpy as np

    return np.array([spreads.noise**2 + (spreads.unverified**2 if c.unverified else 0.0) for c in cases])


@dataclass(frozen=True, slots=True)
class Tangent:
    """The law at a point per case.

    Attributes:
        jacobian: of log(seconds) by the constants; shape [cases, parameters].
        z: log(seconds) less what the tangent says at the prior mean; shape [cases].
        own: see `own_columns`.
    """

    jacobian: Array
    z: Array
    own: dict[str, Array]

    @classmethod
    def at(cls, cases: Sequence[Case], constants: Array) -> Tangent:
        """At `constants`, shape [cases, parameters]."""
        import numpy as np

        value, jacobian, by_layers = additive.log_seconds(constants, TokenSteps.of([c.step for c in cases]))
        away = np.einsum("ip,ip->i", jacobian, constants - prior_mean())
        return cls(jacobian, np.array([c.log_seconds for c in cases]) - value + away, own_columns(cases, by_layers))


def prior_mean() -> Array:
    """Means of `PRIOR`; shape [parameters]."""
    import numpy as np

    return np.array([mean for mean, _ in PRIOR.values()])


@dataclass(frozen=True, slots=True)
class Posterior:
    """The readings conditioned on.

    Attributes:
        cases: they.
        constants: posterior mean of each case's group's constants; shape [cases, parameters].
        tangent: of the law there.
        noise: variance of each reading's own noise, more for one far off; shape [cases].
        inverse: inverse covariance of z; shape [cases, cases].
        solved: inverse times z; shape [cases].
    """

    spreads: Spreads
    cases: tuple[Case, ...]
    constants: Array
    tangent: Tangent
    noise: Array
    inverse: Array
    solved: Array

    def of_group(self, target: Case) -> tuple[Array, Array]:
        """Mean and covariance of the constants of the target's group; shapes [parameters], [parameters, parameters]."""
        import numpy as np

        levels = _levels(self.spreads, labels([target], self.cases))
        prior = sum(variances for _, variances in levels)
        if not self.cases:
            return prior_mean(), np.diag(prior)
        # covariance of the target's constants with each z; [parameters, cases]
        cross = (sum(mask[0][:, None] * variances for mask, variances in levels) * self.tangent.jacobian).T
        return prior_mean() + cross @ self.solved, np.diag(prior) - cross @ self.inverse @ cross.T

    def place(self, stack: str, device: str) -> Case:
        """A case that stands for a program on a device, both named as people name them; see `of_group` and `predict`.

        The device is the label of readings all of whose words are in the name, the longest of them; the group is the
        system of the stack's family with the most readings there. What is not known keeps its name, and nothing shared.
        """
        words = _words(device)
        labels = {c.device for c in self.cases if c.device and _words(c.device) <= words}
        label = max(labels, key=lambda known: (len(known), known), default=device_of(device))
        family = family_of(stack) if stack else ""
        groups = Counter(c.group for c in self.cases if (c.family, c.device) == (family, label))
        group = groups.most_common(1)[0][0] if groups else f"{stack}|{label}"
        return replace(_NOWHERE, group=group, family=family, device=label)

    def own_variance(self, target: Case) -> float:
        """Variance of log(seconds) beside the constants': the model's own deviations and noise, not floor and depth."""
        s = self.spreads
        batch = s.model_batch * math.log2(target.step.streams)
        context = s.model_context * math.log1p(target.context / CONTEXT_SCALE)
        found = s.model_family**2 + s.model_group**2 + batch**2 + context**2 + s.noise**2
        return found + (s.unverified**2 if target.unverified else 0.0)

    def predict(self, target: Case) -> tuple[float, float]:
        """log(seconds) of a step of a model that is not among the cases, and its standard deviation."""
        import numpy as np

        mean, covariance = self.of_group(target)
        value, slope, by_layers = additive.log_seconds(mean[None], TokenSteps.of([target.step]))
        variance = float(slope[0] @ covariance @ slope[0]) + self.own_variance(target)
        variance += float(by_layers[0]) ** 2 * (target.depth_deviation**2 + self.spreads.model_floor**2)
        return float(value[0]), float(np.sqrt(variance))


def condition(spreads: Spreads, cases: Sequence[Case], start: Posterior | None = None) -> Posterior:
    """Condition on readings.

    Args:
        spreads: standard deviations.
        cases: readings with times.
        start: a posterior of (most of) the same cases, whose constants are where to begin.
    """
    import numpy as np

    cases = tuple(cases)
    if not cases:
        empty = np.zeros((0, len(PARAMETERS)))
        nothing = np.zeros(0)
        return Posterior(spreads, (), empty, Tangent(empty, nothing, {}), nothing, np.zeros((0, 0)), nothing)
    same = labels(cases, cases)
    levels = _levels(spreads, same)
    constants = np.tile(prior_mean(), (len(cases), 1))
    if start is not None and start.cases:
        known = {c.group: x for c, x in zip(start.cases, start.constants, strict=True)}
        constants = np.array([known[c.group] if c.group in known else start.of_group(c)[0] for c in cases])
    least: Array = noise_of(spreads, cases)
    noise: Any = least + (ROUNDS[0] ** 2 if start is None else 0.0)
    used = noise
    for added in ROUNDS if start is None else WARM_ROUNDS:
        tangent = Tangent.at(cases, constants)
        J = tangent.jacobian
        K = own_covariance(spreads, same, tangent.own, tangent.own)
        for mask, variances in levels:
            K += mask * ((J * variances) @ J.T)
        inverse = np.asarray(np.linalg.inv(K + np.diag(noise)), dtype=np.float64)
        solved = inverse @ tangent.z
        moved = prior_mean() + sum((mask @ (J * solved[:, None])) * variances for mask, variances in levels)
        constants = constants + np.clip(moved - constants, -FAR, FAR)
        # A reading off what all others say of it gets the noise that makes it OUTLIER deviations off.
        of_others = 1 / np.diag(inverse) - noise
        off = solved / np.diag(inverse)
        used = noise
        noise = least + added**2 if added else np.asarray(np.maximum(np.square(off / OUTLIER) - of_others, least))
    return Posterior(spreads, cases, constants, tangent, used, inverse, solved)


def _levels(spreads: Spreads, same: dict[str, Any]) -> list[tuple[Array, Array]]:
    """(where two cases share a level, variances of the constants there), the level common to all first."""
    import numpy as np

    everywhere = np.ones(same["family"].shape)
    shared = np.square([deviation for _, deviation in PRIOR.values()])
    own = zip(LEVELS, (spreads.family, spreads.device, spreads.group), strict=True)
    return [(everywhere, shared), *((same[level].astype(float), np.square(values)) for level, values in own)]


def fit_spreads(cases: Sequence[Case], start: Spreads = GUESS, rounds: int = 3, iterations: int = 40) -> Spreads:
    """Spreads of maximum a posteriori likelihood, log spreads drawn towards `GUESS` with deviation SPREAD_DEVIATION.

    Args:
        cases: readings with times.
        start: where to begin.
        rounds: how often the law's tangent is taken anew; iterations: of the search along each.
    """
    import numpy as np
    from scipy.optimize import minimize

    cases = tuple(cases)
    spreads, posterior = start, None
    centre = np.log(GUESS.to_list())
    for _ in range(rounds):
        posterior = condition(spreads, cases, posterior)
        solved = minimize(
            _loss(posterior, centre),
            np.log(spreads.to_list()),
            jac=True,
            method="L-BFGS-B",
            bounds=[(c - 3, c + 3) for c in centre],
            options={"maxiter": iterations},
        )
        spreads = Spreads.from_list([float(f"{v:.4g}") for v in np.exp(solved.x)])
    return spreads


def likelihood(spreads: Spreads, cases: Sequence[Case]) -> float:
    """Log posterior of spreads given readings, up to a constant, at their own tangent."""
    import numpy as np

    loss = _loss(condition(spreads, cases), np.log(GUESS.to_list()))
    return -loss(np.log(spreads.to_list()))[0]


def _loss(posterior: Posterior, centre: Array) -> Callable[[Array], tuple[float, Array]]:
    """Minus the log posterior of log spreads along the posterior's tangent, and its gradient."""
    import numpy as np

    cases, t = posterior.cases, posterior.tangent
    J, n = t.jacobian, len(PARAMETERS)
    same = labels(cases, cases)
    unverified = np.array([float(c.unverified) for c in cases])
    levels = [same[level].astype(float) for level in LEVELS]
    family, group = same["model"] & same["family"], same["model"] & same["group"]
    columns = ((family, "level"), (group, "level"), (family, "floor"), (group, "batch"), (group, "context"))
    own = [mask * np.outer(t.own[name], t.own[name]) for mask, name in columns]
    fixed = (J * np.square([d for _, d in PRIOR.values()])) @ J.T + 1e-9 * np.eye(len(cases))
    fixed += same["model"] * np.outer(t.own["depth"], t.own["depth"])
    # A reading far off keeps the further noise it was given.
    fixed += np.diag(np.maximum(posterior.noise - noise_of(posterior.spreads, cases), 0.0))

    def loss(h: Array) -> tuple[float, Array]:
        squares = np.exp(2 * h)
        K = fixed + np.diag(squares[-2] + squares[-1] * unverified)
        for i, mask in enumerate(levels):
            K += mask * ((J * squares[i * n : (i + 1) * n]) @ J.T)
        for i, part in enumerate(own):
            K += squares[3 * n + i] * part
        factor = np.linalg.cholesky(K)
        inverse = np.linalg.inv(K)
        solved = inverse @ t.z
        W = inverse - np.outer(solved, solved)
        gradient = [np.einsum("ip,ip->p", J, (W * mask) @ J) for mask in levels]
        gradient += [np.array([*(np.vdot(W, part) for part in own), np.trace(W), np.diag(W) @ unverified])]
        off = (h - centre) / SPREAD_DEVIATION
        value = 0.5 * float(t.z @ solved) + float(np.log(np.diag(factor)).sum()) + 0.5 * float(off @ off)
        return value, np.concatenate(gradient) * squares + off / SPREAD_DEVIATION

    return loss


def _every(_: Reading) -> bool:
    return True


def _few_passes(reading: Reading) -> bool:
    # Above eight tokens llama.cpp goes over to other kernels, build by build; no smooth law follows them, and they
    # would widen what is said of every other system.
    return reading.system.endswith("(tokens per pass)") and reading.batch in (1, 2, 4, 8)


def _few_depths(reading: Reading) -> bool:
    return round(reading.context) in (64, 8256, 32832, 65600)


# Files of round two whose fit parts are fitted to, with which of their rows: of the sweeps a few points of each curve
# are enough, and one set of flags of each build.
SWEEPS = {
    "throughput_datacentre_client.csv": _every,
    "throughput_concurrency.csv": _every,
    "throughput_tokens_per_pass.csv": _few_passes,
    "throughput_context.csv": _few_depths,
}


@lru_cache(maxsize=1)
def training() -> tuple[Reading, ...]:
    """What the packaged calibration is fitted to: throughput.csv, and of the files of `SWEEPS` the models that are not
    kept apart. A result that two files hold counts once."""
    rows = list(read_packaged("throughput.csv"))
    for name, wanted in SWEEPS.items():
        rows += [r for r in read_packaged(name) if wanted(r) and not kept_apart(r.key, r.total)]
    return tuple({identity(r): r for r in reversed(rows)}.values())[::-1]


def identity(reading: Reading) -> tuple[object, ...]:
    """Equal for one result in two files."""
    rounded = (round(reading.batch, 1), round(reading.context), round(reading.tokens_per_s, 1))
    return (*reading.group, reading.devices, reading.key, reading.bits, *rounded)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is learned of the readings of `training`, from all of them and without some; made by a script.

    Attributes:
        all: spreads, for models that are not among the readings.
        without: by model, from the readings of the others.
        without_system, without_family: by system and by family of systems, from those of the others.
        unseen: mean and covariance of the constants of a system and device of which nothing is known.
        residuals: of each trial of the back-test on those readings, for `closed.widths`.
        accuracy: by regime, how far off and how well covered those trials are, for `estimate` to quote.
    """

    all: Spreads
    without: dict[str, Spreads]
    without_system: dict[str, Spreads]
    without_family: dict[str, Spreads]
    unseen: tuple[Array, Array]
    residuals: dict[str, list[list[Any]]]
    accuracy: dict[str, Any]


@lru_cache(maxsize=1)
def load_calibration() -> Calibration:
    """The packaged calibration, `estimator/data/calibration.json`, made by `scripts/make_calibration.py`."""
    import numpy as np

    document = json.loads(packaged("calibration.json"))
    parts = {
        part: {key: Spreads.from_list(values) for key, values in document[part].items()}
        for part in ("without", "without_system", "without_family")
    }
    return Calibration(
        all=Spreads.from_list(document["all"]),
        **parts,
        unseen=(np.array(document["unseen"]["mean"]), np.array(document["unseen"]["covariance"])),
        residuals=document["residuals"],
        accuracy=document["accuracy"],
    )


@lru_cache(maxsize=1)
def fitted() -> Posterior:
    """The law conditioned on every reading of `training`."""
    return condition(load_calibration().all, [case(r) for r in training()])
