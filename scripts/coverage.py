"""Simulate how often a point's interval covers the true median, although sampling stops on it.

    python scripts/coverage.py [RUNS]

Steps and roofs with a known median are timed by `moegauge.bench.clock.pairs.measure` as `bench` does it, on a clock
 that passes only when something runs. Noise is lognormal: independent, or an AR(1) process in the logarithm, as
on a host whose neighbours come and go. Printed as the Markdown table of docs/measuring.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator

import numpy as np

from moegauge.bench.clock.pairs import Limits, measure
from moegauge.bench.clock.statistics import interval

SPREAD = 0.03  # standard deviation of log(time)
LIMIT_S = 10.0  # `bench`'s default; the step takes 0.05 s, the roof beside it as long


def noise(rng: np.random.Generator, correlation: float) -> Iterator[float]:
    """Factors whose median is 1 and whose logarithms follow each other with this correlation."""
    value = rng.standard_normal()
    while True:
        yield math.exp(SPREAD * value)
        value = correlation * value + math.sqrt(1 - correlation**2) * rng.standard_normal()


def run(seed: int, correlation: float) -> tuple[bool, int, bool]:
    """(covered, samples, settled) of one point."""
    rng = np.random.default_rng(seed)
    factors, now = noise(rng, correlation), [0.0]

    def spend(seconds: float) -> float:
        now[0] += seconds
        return seconds

    def step(times: int) -> float:
        return spend(0.05 * times * next(factors))

    def roof(seconds: float) -> float:
        spend(seconds)
        return 1e9

    clock: Callable[[], float] = lambda: now[0]  # noqa: E731
    result = measure(step, roof, limits=Limits(time_limit_s=LIMIT_S, warmup_s=0.0), clock=clock)
    low, high = interval(result.seconds)
    return low <= 0.05 <= high, len(result.seconds), result.settled


def main(runs: int) -> None:
    """Print the table."""
    sys.stdout.write("| correlation of neighbours | covered | median samples | settled |\n|--:|--:|--:|--:|\n")
    for correlation in (0.0, 0.3, 0.6, 0.9):
        covered, samples, settled = zip(*(run(seed, correlation) for seed in range(runs)), strict=True)
        sys.stdout.write(
            f"| {correlation} | {np.mean(covered):.0%} | {np.median(samples):.0f} | {np.mean(settled):.0%} |\n"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
