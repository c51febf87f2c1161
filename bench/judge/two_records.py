"""Compare two records point by point: same, faster, slower or undecided, by bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moegauge.bench.clock import statistics
from moegauge.errors import RecordError
from moegauge.record import Case, Record

# A difference smaller than this is called the same: two runs of one binary differ by about as much (docs/measuring.md).
SAME = 0.02


@dataclass(frozen=True, slots=True)
class SpeedRatio:
    """One point in two records: B against A.

    Attributes:
        before, after: the point in A and in B.
        ratio, low, high: speed of B over speed of A with a 95 % bootstrap interval.
        verdict: `same` (whole interval within 2 %), `faster`, `slower`, or `undecided`.
        paired: True when speeds are taken relative to the roof beside each sample (records of one machine).
    """

    before: Case
    after: Case
    ratio: float
    low: float
    high: float
    verdict: str
    paired: bool

    def to_json(self) -> dict[str, Any]:
        """One entry of `against.cases`."""
        return {
            "model": self.before.model,
            "kernel": self.before.kernel,
            "format": self.before.format,
            "batch": self.before.batch,
            "context": self.before.context,
            "before_tokens_per_s": self.before.tokens_per_s,
            "after_tokens_per_s": self.after.tokens_per_s,
            "ratio": self.ratio,
            "interval": [self.low, self.high],
            "verdict": self.verdict,
            "relative_to_roof": self.paired,
        }


def judge(low: float, high: float, same: float = SAME) -> str:
    """What an interval of a speed ratio says: same, faster, slower or undecided."""
    if 1 / (1 + same) <= low and high <= 1 + same:
        return "same"
    if low > 1:
        return "faster"
    if high < 1:
        return "slower"
    return "undecided"


def against(before: Record, after: Record) -> list[SpeedRatio]:
    """Compare two records point by point.

    On one machine a point's speed is its share of the roof beside it, so a machine that was slower that day is not a
    slower program. On unlike machines it is plain time.

    Raises:
        RecordError: the records have no point in common.
    """
    paired = before.machine_key == after.machine_key
    newer = {_point(case): case for case in after.own_cases}
    pairs = [(case, newer[_point(case)]) for case in before.own_cases if _point(case) in newer]
    if not pairs:
        raise RecordError("the two records have no point in common.", advice="Measure the same models and formats.")
    verdicts = []
    for a, b in pairs:
        speed: Callable[[Case], list[float]] = _shares if paired and a.bytes == b.bytes else _rates
        ratio, low, high = statistics.ratio_interval(speed(b), speed(a))
        verdicts.append(SpeedRatio(a, b, ratio, low, high, judge(low, high), speed is _shares))
    return verdicts


def _point(case: Case) -> tuple[Any, ...]:
    """What makes it the same question, whatever answered it: launch mode, threads and backend may differ."""
    return case.kind, case.model, case.kernel, case.format, case.batch, case.context, case.kv_format, case.routing


def _rates(case: Case) -> list[float]:
    return [1e3 / t for t in case.samples_ms]


def _shares(case: Case) -> list[float]:
    """Share of the roof beside each sample."""
    return case.roof_fraction_samples
