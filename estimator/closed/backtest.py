"""The back-test: every open model of a group is estimated as if it were closed, and its speed predicted.

Backward, a group is one system on one device. Both methods are told the target's tokens/s, weight format and bits,
context, streams and device count, and everything about the other models of the group; neither is told the target's
parameters. Ours is also told whether the target is an MoE, as the inversion of a closed model assumes. Forward, the
target's architecture is known and its speed is not; a group is a system, a device and a number of them.

An oracle may stand beside the inverse: it is the same method with the group's constants told as well as all readings,
the target's among them, tell them. Depth, dense share, sparsity and cache of the target it knows no better.

Priors of ours come from `hierarchy.training` with the target model left out everywhere, the spreads and the widths of
intervals too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from moegauge.errors import ObservationError
from moegauge.estimator.architectures import kept_apart
from moegauge.estimator.closed import widths
from moegauge.estimator.closed.inverse import Density, density
from moegauge.estimator.closed.widths import PERCENTS
from moegauge.estimator.hierarchy import (
    SWEEPS,
    Calibration,
    Case,
    Posterior,
    case,
    condition,
    family_of,
    identity,
    load_calibration,
    training,
)
from moegauge.estimator.one_term import effective_bandwidth, invert
from moegauge.estimator.readings import Reading, Skipped, read, read_packaged
from moegauge.limits import GROUP_READINGS

if TYPE_CHECKING:
    from pathlib import Path

# Readings of one group: each model left out costs a solve of this size cubed.
# Half-widths of central normal intervals in standard deviations.
Z = {50: 0.67449, 80: 1.28155, 95: 1.95996}
MOST_ALIKE = 4  # architectures below which a sweep of a few has no others to be estimated from
RESAMPLES = 2000  # of the bootstrap over models


@dataclass(frozen=True, slots=True)
class Forward:
    """One reading's speed predicted.

    Attributes:
        tokens_per_s: predicted, of one stream; measured.
        deviation: standard deviation of log(tokens_per_s).
        widths: what half-widths are multiplied by, by per cent.
    """

    tokens_per_s: float
    measured: float
    deviation: float
    widths: dict[int, float]

    @property
    def fold(self) -> float:
        """How many times too fast or too slow, at least 1."""
        return _fold(self.tokens_per_s, self.measured)

    @property
    def truth(self) -> float:
        """What was measured."""
        return self.measured

    def interval(self, percent: int) -> tuple[float, float]:
        """Central interval of tokens/s."""
        spread = math.exp(Z[percent] * self.deviation * self.widths[percent])
        return self.tokens_per_s / spread, self.tokens_per_s * spread


@dataclass(frozen=True, slots=True)
class Trial:
    """One reading estimated as if its model were closed.

    Attributes:
        reading: what was measured and what is true.
        model: its architecture's name, or the reading's key.
        calibrators: models of the group it was estimated from.
        published: active parameters by the one-term formula.
        density: of active parameters, ours.
        widths: what half-widths are multiplied by, by per cent.
        forward: its speed predicted; None where no other model was measured on as many devices.
        oracle: active parameters by the oracle's median; None where it was not asked.
    """

    reading: Reading
    model: str
    calibrators: int
    published: float
    density: Density
    widths: dict[int, float]
    forward: Forward | None
    oracle: float | None = None

    @property
    def measured(self) -> float:
        """Active parameters by ours: the posterior median."""
        return self.density.at(0.5)

    @property
    def truth(self) -> float:
        """Active parameters as the file has them."""
        return self.reading.active

    @property
    def fold(self) -> float:
        """How many times too large or too small ours is, at least 1."""
        return _fold(self.measured, self.reading.active)

    @property
    def published_fold(self) -> float:
        """How many times too large or too small, at least 1."""
        return _fold(self.published, self.reading.active)

    @property
    def measured_fold(self) -> float:
        """The same as `fold`."""
        return self.fold

    def interval(self, percent: int) -> tuple[float, float]:
        """Our central interval of active parameters."""
        tail = (1 - percent / 100) / 2
        middle = self.measured
        low, high = (middle * (self.density.at(q) / middle) ** self.widths[percent] for q in (tail, 1 - tail))
        return low, high

    def covered(self, percent: int) -> bool:
        """True when the interval holds the truth."""
        return covers(self, percent)


class Judged(Protocol):
    """An answer with intervals, and the truth."""

    @property
    def fold(self) -> float:
        """How many times too large or too small, at least 1."""
        ...

    @property
    def truth(self) -> float:
        """What is true."""
        ...

    def interval(self, percent: int) -> tuple[float, float]:
        """Central interval."""
        ...


def covers(trial: Judged, percent: int) -> bool:
    """True when its interval holds the truth."""
    low, high = trial.interval(percent)
    return low <= trial.truth <= high


@dataclass(frozen=True, slots=True)
class Folds:
    """Fold errors of one method: `max(estimate / truth, truth / estimate)`."""

    median: float
    p80: float
    p95: float
    worst: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Folds:
        """Quantiles of fold errors, linear between neighbours."""
        return cls(quantile(values, 0.5), quantile(values, 0.8), quantile(values, 0.95), max(values))

    def to_json(self) -> dict[str, float]:
        """The fields as the command prints them."""
        return {
            "median_fold": self.median,
            "p80_fold": self.p80,
            "p95_fold": self.p95,
            "worst_fold": self.worst,
        }


def judged(trials: Sequence[Judged], models: Sequence[str]) -> dict[str, Any]:
    """Folds, coverage, width and score of intervals.

    Args:
        trials: at least one.
        models: of each, for the bootstrap.

    Returns:
        `n`, folds, `coverage_50` and so on, `width_80` (median ratio of the ends), `score_80` (mean interval score of
        logarithms: width plus 10 times what the truth lies outside; Gneiting and Raftery, 2007), and `rejected`: the
        percentages whose coverage differs from what they promise, at 5 %, by a bootstrap over models.
    """
    found: dict[str, Any] = {"n": len(trials), **Folds.of([t.fold for t in trials]).to_json()}
    inside = {p: [covers(t, p) for t in trials] for p in PERCENTS}
    found |= {f"coverage_{p}": sum(inside[p]) / len(trials) for p in PERCENTS}
    logs = [(*(math.log(end) for end in t.interval(80)), math.log(t.truth)) for t in trials]
    found["width_80"] = math.exp(quantile([high - low for low, high, _ in logs], 0.5))
    outside = [high - low + 10 * max(low - true, true - high, 0.0) for low, high, true in logs]
    found["score_80"] = sum(outside) / len(outside)
    found["rejected"] = [p for p in PERCENTS if rejected(inside[p], models, p / 100)]
    return found


def rejected(inside: Sequence[bool], models: Sequence[str], promised: float) -> bool:
    """True when a bootstrap over models says at 5 % that intervals do not hold what they promise."""
    import numpy as np

    names = sorted(set(models))
    held = np.array([[sum(i for i, m in zip(inside, models, strict=True) if m == name)] for name in names])[:, 0]
    count = np.array([sum(m == name for m in models) for name in names])
    chosen = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    low, high = np.quantile(held[chosen].sum(axis=1) / count[chosen].sum(axis=1), [0.025, 0.975])
    return bool(not low - 1e-9 <= promised <= high + 1e-9)


@dataclass(frozen=True, slots=True)
class Backtest:
    """Trials and the rows that made none."""

    trials: tuple[Trial, ...]
    skipped: tuple[Skipped, ...]

    @property
    def published(self) -> Folds:
        """Fold errors of the one-term formula."""
        return Folds.of([t.published_fold for t in self.trials])

    @property
    def measured(self) -> Folds:
        """Fold errors of ours."""
        return Folds.of([t.measured_fold for t in self.trials])

    def coverage(self, percent: int) -> float:
        """Share of trials whose interval of `percent` per cent holds the truth."""
        return sum(t.covered(percent) for t in self.trials) / len(self.trials)

    def chosen(self, wanted: Callable[[Reading], bool]) -> Backtest:
        """Of the readings `wanted` alone."""
        return Backtest(tuple(t for t in self.trials if wanted(t.reading)), ())

    @property
    def sentence(self) -> str:
        """The result in one line."""
        held = ", ".join(f"{self.coverage(p):.0%} of the {p} %" for p in PERCENTS)
        return (
            f"On {len(self.trials)} readings of open models the intervals hold {held}; this method is "
            f"within x{self.measured.p80:.2f} in 80 % of cases (worst x{self.measured.worst:.2f}), the published "
            f"formula within x{self.published.p80:.2f} (worst x{self.published.worst:.2f})."
        )

    def summary(self) -> dict[str, object]:
        """Counts, folds and coverage, no single case."""
        coverage = {f"coverage_{p}": self.coverage(p) for p in PERCENTS}
        backward = inverse(self)
        return {
            "n": len(self.trials),
            "skipped": len(self.skipped),
            "published": self.published.to_json(),
            "measured": {**self.measured.to_json(), **coverage},
            "intervals": {name: backward[name] for name in ("width_80", "score_80", "rejected")},
            "forward": forward(self),
            "by_regime": self.by_regime(),
        }

    def by_regime(self) -> list[dict[str, Any]]:
        """The inverse by place, by kind of model and by streams; `moe` and `batch` are null where either."""
        found = []
        for place in PLACES:
            for moe in (None, True, False):
                for batch in (None, "1", "above 1"):
                    part = [
                        t
                        for t in self.trials
                        if place_of(t.reading) == place
                        and moe in (None, t.reading.moe)
                        and batch in (None, "1" if t.reading.batch == 1 else "above 1")
                    ]
                    if part:
                        row = {"regime": place, "moe": moe, "batch": batch}
                        found.append({**row, **judged(part, [t.model for t in part])})
        return found


def inverse(result: Backtest) -> dict[str, Any]:
    """`judged` of its estimates."""
    return judged(result.trials, [t.model for t in result.trials])


def forward(result: Backtest) -> dict[str, Any]:
    """`judged` of its predictions; only `n` where there is none."""
    known = [(t.forward, t.model) for t in result.trials if t.forward]
    return judged([f for f, _ in known], [m for _, m in known]) if known else {"n": 0}


def oracle(result: Backtest) -> list[dict[str, Any]]:
    """Folds of the oracle by place, and ours over them; empty where it was not asked."""
    found = []
    for place in PLACES:
        part = [t for t in result.trials if t.oracle is not None and place_of(t.reading) == place]
        if part:
            own = Folds.of([t.fold for t in part])
            best = Folds.of([_fold(t.oracle or 1.0, t.truth) for t in part])
            over = {"median": own.median / best.median, "p80": own.p80 / best.p80}
            found.append({"regime": place, "n": len(part), **best.to_json(), "ours_over_oracle": over})
    return found


PLACES = ("one device", "data centre")


def place_of(reading: Reading) -> str:
    """The regime of a reading: one of `PLACES`."""
    return PLACES[reading.devices > 1]


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between order statistics."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _fold(estimate: float, truth: float) -> float:
    return max(estimate / truth, truth / estimate)


def run(
    path: Path | None = None, *, unseen: str = "model", moe_told: bool = True, with_oracle: bool = False
) -> Backtest:
    """Back-test on a file of readings; on the packaged ones without a path.

    Args:
        path: a CSV with the columns of throughput.csv.
        unseen: what the priors are kept from beside the target model: `model` (nothing more), `system` (every reading
            of the target's system fitted to) or `family` (of its whole family of systems).
        moe_told: whether the method may know that the target is an MoE or that it is not; otherwise it goes by how many
            of the group's other models are.
        with_oracle: whether the oracle is asked too.

    Raises:
        ObservationError: the file cannot be used, or no group has two models.
    """
    readings, skipped = read(path)
    return run_on(readings, skipped, training(), load_calibration(), unseen, moe_told, with_oracle)


def run_on(
    readings: Sequence[Reading],
    skipped: Iterable[Skipped],
    known: Sequence[Reading],
    calibration: Calibration,
    unseen: str = "model",
    moe_told: bool = True,
    with_oracle: bool = False,
) -> Backtest:
    """Back-test `readings` with priors from the readings `known`."""
    by_group: dict[tuple[str, str], list[tuple[Reading, Case]]] = defaultdict(list)
    for reading in readings:
        by_group[reading.group].append((reading, case(reading)))
    for members in by_group.values():
        if len(members) > GROUP_READINGS:
            first = members[0][0]
            raise ObservationError(
                f"'{first.system}' on '{first.device}' has {len(members)} readings, more than {GROUP_READINGS}.",
                advice="Keep fewer rows of each model.",
            )
    left_out = list(skipped)
    # Everything that one model's trials share: what the priors are kept from, and the other models of its groups.
    jobs: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for group, members in by_group.items():
        for model in sorted({c.model for _, c in members}):
            if all(c.model == model for _, c in members):
                left_out += [
                    Skipped(r.line, r.model, "no other model of its system and device to learn from")
                    for r, _ in members
                ]
                continue
            hidden = {"model": "", "system": group[0], "family": family_of(group[0])}[unseen]
            jobs[model, hidden].append(group)
    if not jobs:
        raise ObservationError(
            "no system and device has readings of two models, so nothing can be left out.",
            advice="Add a second model measured on the same system and device.",
        )
    background = [(identity(r), r, case(r)) for r in known]
    # Where the constants of all groups stand, to begin from: each job's own solution does not depend on it.
    start = condition(calibration.all, [c for _, _, c in background]) if background else None
    trials: list[Trial] = []
    for (model, hidden), groups in jobs.items():
        spreads = {
            "model": calibration.without.get(model),
            "system": calibration.without_system.get(hidden),
            "family": calibration.without_family.get(hidden),
        }[unseen]
        own = {
            identity(r): c for group in groups for r, c in by_group[group] if c.model != model
        }  # a file may repeat readings that are fitted to; each counts once
        others = [
            c
            for key, r, c in background
            if c.model != model and key not in own and not (hidden and hidden in (r.system, c.family))
        ]
        posterior = condition(spreads or calibration.all, [*others, *own.values()], start)
        omniscient = None
        if with_oracle:
            targets = [c for group in groups for _, c in by_group[group] if c.model == model]
            omniscient = condition(posterior.spreads, [*posterior.cases, *targets], posterior)
        for group in groups:
            members = by_group[group]
            trials += [
                _trial(posterior, r, c, [m for m in members if m[1].model != model], calibration, moe_told, omniscient)
                for r, c in members
                if c.model == model
            ]
    trials.sort(key=lambda t: t.reading.line)
    return Backtest(tuple(trials), tuple(sorted(left_out, key=lambda s: s.line)))


def _trial(
    posterior: Posterior,
    target: Reading,
    seen: Case,
    others: Sequence[tuple[Reading, Case]],
    calibration: Calibration,
    moe_told: bool,
    omniscient: Posterior | None,
) -> Trial:
    """Estimate one reading from the other models of its group."""
    # Effective bandwidth of n devices is not that of one: the formula is calibrated on as many where it can be.
    alike = [o for o, _ in others if o.devices == target.devices] or [o for o, _ in others]
    mean = effective_bandwidth([(o.bytes_per_token, o.tokens_per_s) for o in alike])
    cases = [c for _, c in others]
    models = {c.model: o.moe for o, c in others}
    if moe_told:
        found = density(posterior, target, seen, target.moe, cases)
    else:
        # Jeffreys' prior for a share: half an MoE and half a dense model beside those seen.
        likely = (0.5 + sum(models.values())) / (1.0 + len(models))
        sparse, dense = (density(posterior, target, seen, moe, cases) for moe in (True, False))
        found = sparse.mixed(dense, likely)
    told = None
    if omniscient is not None:
        told = density(posterior, target, seen, target.moe, cases, omniscient.of_group(seen)).at(0.5)
    regime = widths.regime(target.moe, target.devices, target.batch)
    forward = None
    if any(o.devices == target.devices for o, _ in others):
        log_seconds, deviation = posterior.predict(seen)
        wider = widths.factors(calibration.residuals["forward"], regime, seen.model, pooled=True)
        forward = Forward(math.exp(-log_seconds), target.tokens_per_s, deviation, wider)
    return Trial(
        target,
        seen.model,
        len(models),
        invert(mean, target.tokens_per_s) / (target.bits / 8),
        found,
        widths.factors(calibration.residuals["inverse"], regime, seen.model),
        forward,
        told,
    )


def kept_apart_trials(moe_told: bool = True, with_oracle: bool = False) -> dict[str, tuple[Trial, ...]]:
    """Trials of the models that no packaged file of `SWEEPS` was fitted to, by file; arguments as of `run`."""
    found: dict[str, tuple[Trial, ...]] = {}
    for name, wanted in SWEEPS.items():
        rows = [r for r in read_packaged(name) if wanted(r)]
        if len({case(r).model for r in rows}) < MOST_ALIKE:
            continue
        result = run_on(rows, [], training(), load_calibration(), moe_told=moe_told, with_oracle=with_oracle)
        found[name] = tuple(t for t in result.trials if kept_apart(t.reading.key, t.reading.total))
    return found
