"""The back-test: every open model of a group is estimated as if it were closed, from the others.

A group is one system on one device. Both methods are told the target's tokens/s, weight format and bits, context and
device count, and everything about the other models of the group; neither is told the target's parameters. Ours is
also told whether the target is an MoE, as the inversion of a closed model assumes. Priors of ours come from the
packaged readings with the target model left out everywhere (`Calibration`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moegauge.errors import ObservationError
from moegauge.estimator.efficiency import Calibration, Case, Spreads, as_target, case, load_calibration, posterior
from moegauge.estimator.one_term import effective_bandwidth, invert
from moegauge.estimator.readings import Reading, Skipped, read

if TYPE_CHECKING:
    from pathlib import Path

# Readings of one group: each model left out costs a solve of this size cubed.
MAX_GROUP = 500
# Half-widths of central normal intervals in standard deviations.
Z = {50: 0.67449, 80: 1.28155, 95: 1.95996}


@dataclass(frozen=True, slots=True)
class Trial:
    """One reading estimated as if its model were closed.

    Attributes:
        reading: what was measured and what is true.
        calibrators: models of the group it was estimated from.
        published, measured: active parameters by the one-term formula and by ours.
        deviation: standard deviation of log(measured).
    """

    reading: Reading
    calibrators: int
    published: float
    measured: float
    deviation: float

    @property
    def published_fold(self) -> float:
        """How many times too large or too small, at least 1."""
        return _fold(self.published, self.reading.active)

    @property
    def measured_fold(self) -> float:
        """How many times too large or too small, at least 1."""
        return _fold(self.measured, self.reading.active)

    def interval(self, percent: int) -> tuple[float, float]:
        """Our central interval of active parameters."""
        spread = math.exp(Z[percent] * self.deviation)
        return self.measured / spread, self.measured * spread

    def covered(self, percent: int) -> bool:
        """True when the interval holds the truth."""
        low, high = self.interval(percent)
        return low <= self.reading.active <= high


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

    @property
    def sentence(self) -> str:
        """The result in one line."""
        return (
            f"On {len(self.trials)} readings of open models this method is within x{self.measured.p80:.2f} in 80 % of "
            f"cases (worst x{self.measured.worst:.2f}); the published formula within x{self.published.p80:.2f} "
            f"(worst x{self.published.worst:.2f})."
        )

    def summary(self) -> dict[str, object]:
        """Counts, folds and coverage, no single case."""
        coverage = {f"coverage_{p}": self.coverage(p) for p in Z}
        return {
            "n": len(self.trials),
            "skipped": len(self.skipped),
            "published": self.published.to_json(),
            "measured": {**self.measured.to_json(), **coverage},
        }


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between order statistics."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _fold(estimate: float, truth: float) -> float:
    return max(estimate / truth, truth / estimate)


def run(path: Path | None = None, *, unseen: str = "model", moe_told: bool = True) -> Backtest:
    """Back-test on a file of readings; on the packaged ones without a path.

    Args:
        path: a CSV with the columns of throughput.csv.
        unseen: what the priors are kept from beside the target model: `model` (nothing more), `system` (every packaged
            reading of the target's system) or `family` (of its whole family of systems).
        moe_told: whether the method may know that the target is an MoE or that it is not; otherwise it goes by how many
            of the group's other models are.

    Raises:
        ObservationError: the file cannot be used, or no group has two models.
    """
    readings, skipped = read(path)
    known = readings if path is None else read()[0]
    return run_on(readings, skipped, known, load_calibration(), unseen, moe_told)


def run_on(
    readings: Sequence[Reading],
    skipped: Iterable[Skipped],
    known: Sequence[Reading],
    calibration: Calibration,
    unseen: str = "model",
    moe_told: bool = True,
) -> Backtest:
    """Back-test `readings` with priors from the readings `known`."""
    groups: dict[tuple[str, str], list[Reading]] = defaultdict(list)
    for reading in readings:
        groups[reading.group].append(reading)
    background = [(r.system, case(r)) for r in known]
    trials: list[Trial] = []
    left_out = list(skipped)
    for members in groups.values():
        if len(members) > MAX_GROUP:
            raise ObservationError(
                f"'{members[0].system}' on '{members[0].device}' has {len(members)} readings, more than {MAX_GROUP}.",
                advice="Keep the plain decode rows (batch 1, one format each).",
            )
        cases = [case(r) for r in members]
        for key in sorted({r.key for r in members}):
            targets = [i for i, r in enumerate(members) if r.key == key]
            others = [i for i, r in enumerate(members) if r.key != key]
            if not others:
                left_out.extend(
                    Skipped(members[i].line, members[i].model, "no other model of its system and device to learn from")
                    for i in targets
                )
                continue
            system, family = members[0].system, cases[0].family
            spreads = {
                "model": calibration.without.get(key),
                "system": calibration.without_system.get(system),
                "family": calibration.without_family.get(family),
            }[unseen]
            hidden = {"model": (), "system": (system,), "family": (family,)}[unseen]
            trials.extend(
                _trials(
                    [members[i] for i in targets],
                    [members[i] for i in others],
                    [cases[i] for i in others],
                    [c for name, c in background if c.model != key and not {name, c.family} & {*hidden}],
                    spreads or calibration.all,
                    moe_told,
                )
            )
    if not trials:
        raise ObservationError(
            "no system and device has readings of two models, so nothing can be left out.",
            advice="Add a second model measured on the same system and device.",
        )
    trials.sort(key=lambda t: t.reading.line)
    return Backtest(tuple(trials), tuple(sorted(left_out, key=lambda s: s.line)))


def _mixture(first: tuple[float, float], second: tuple[float, float], share: float) -> tuple[float, float]:
    """Mean and standard deviation of a mixture of two normals, `share` of it the first."""
    mean = share * first[0] + (1 - share) * second[0]
    variance = sum(w * (d * d + (m - mean) ** 2) for w, (m, d) in ((share, first), (1 - share, second)))
    return mean, math.sqrt(variance)


def _trials(
    targets: list[Reading],
    others: list[Reading],
    calibrators: list[Case],
    background: list[Case],
    spreads: Spreads,
    moe_told: bool,
) -> list[Trial]:
    """Estimate the targets, all of one model, from the other models of their group."""
    # A file may repeat packaged readings; each counts once.
    own = {(c.group, c.model, c.features, c.z) for c in calibrators}
    training = [c for c in background if (c.group, c.model, c.features, c.z) not in own] + calibrators
    # Told or not, the case is built without the target's parameters: of them it needs MoE or dense alone.
    models = {o.key: o.moe for o in others}
    # Jeffreys' prior for a share: half an MoE and half a dense model beside those seen.
    likely = (0.5 + sum(models.values())) / (1.0 + len(models))
    asked = [as_target(t, moe) for t in targets for moe in (True, False)]
    predicted = posterior(spreads, training, asked)
    trials = []
    for i, target in enumerate(targets):
        # Effective bandwidth of n devices is not that of one: the formula is calibrated on as many where it can be.
        alike = [o for o in others if o.devices == target.devices] or others
        mean = effective_bandwidth([(o.bytes_per_token, o.tokens_per_s) for o in alike])
        sparse, dense = ((float(predicted.mean[j]), float(predicted.deviation[j])) for j in (2 * i, 2 * i + 1))
        z, deviation = _mixture(sparse, dense, float(target.moe) if moe_told else likely)
        read_bytes = math.exp(z) * target.seconds * target.devices * target.bandwidth
        trials.append(
            Trial(
                target,
                len({o.key for o in others}),
                invert(mean, target.tokens_per_s) / (target.bits / 8),
                read_bytes / (target.bits / 8),
                deviation,
            )
        )
    return trials
