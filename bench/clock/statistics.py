"""Median, median absolute deviation and seeded bootstrap intervals of timing samples.

All samples are kept; nothing is trimmed.

The bootstrap is Efron's percentile bootstrap of the median, widened where neighbouring samples are alike; its seed is
fixed, so a record's intervals can be computed again from its samples to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
RESAMPLES = 2000
SEED = 20_240
HELD = 1_000_000  # resampled numbers in memory at a time, 16 MB with their places
VISIBLE = 1.0  # a correlation counts from so many standard errors, 1 / sqrt(n)
MINIMUM = 5  # samples below which nothing is resampled


def median(samples: Sequence[float]) -> float:
    """The median."""
    return float(np.median(np.asarray(samples, dtype=np.float64)))


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    return float(np.mean(list(values)))


def mad(samples: Sequence[float]) -> float:
    """Median absolute deviation from the median, not scaled."""
    values = np.asarray(samples, dtype=np.float64)
    return float(np.median(np.abs(values - np.median(values))))


def correlation(samples: Sequence[float], visible: float = VISIBLE) -> float:
    """Lag-1 correlation of the samples' ranks, as high as it may well be; 0 where none is visible.

    The estimate is low by about (1 + 3 r) / n (Kendall 1954), and one standard error, sqrt((1 - r^2) / n), is added.
    0.97 at most, as far as a few dozen samples can tell.
    """
    n = len(samples)
    _, which, counts = np.unique(np.asarray(samples, dtype=np.float64), return_inverse=True, return_counts=True)
    if n <= MINIMUM or len(counts) == 1:
        return 0.0
    ranks = (np.cumsum(counts) - (counts + 1) / 2)[which] - (n - 1) / 2
    r = float(ranks[:-1] @ ranks[1:] / (ranks @ ranks))
    if r < visible / np.sqrt(n):
        return 0.0
    r = min(0.97, r + (1 + 3 * r) / n)
    return float(min(0.97, r + np.sqrt((1 - r * r) / n)))


def effective(samples: Sequence[float], visible: float = VISIBLE) -> float:
    """How many independent samples say as much: n (1 - r) / (1 + r) of an AR(1) process of lag-1 correlation r, three
    at least."""
    r = correlation(samples, visible)
    return max(3.0, len(samples) * (1 - r) / (1 + r))


def block_length(samples: Sequence[float]) -> int:
    """How many neighbouring samples say about as much as one: 1 where their ranks are not visibly correlated.

    For an AR(1) process of lag-1 correlation r Carlstein's block length (Annals of Statistics 14, 1986) is
    (2 r / (1 - r^2))^(2/3) n^(1/3); a third of the samples at most.
    """
    n = len(samples)
    _, which, counts = np.unique(np.asarray(samples, dtype=np.float64), return_inverse=True, return_counts=True)
    if n <= MINIMUM or len(counts) == 1:
        return 1
    ranks = (np.cumsum(counts) - (counts + 1) / 2)[which] - (n - 1) / 2
    # The estimate is low by about (1 + 3 r) / n (Kendall 1954); r = 0.97 is as far as a few dozen samples can tell.
    r = float(ranks[:-1] @ ranks[1:] / (ranks @ ranks))
    if r < 1 / np.sqrt(n):
        return 1
    r = min(0.97, r + (1 + 3 * r) / n)
    return max(1, min(n // 3, int(np.ceil((2 * r / (1 - r**2)) ** (2 / 3) * n ** (1 / 3)))))


def bootstrap_medians(
    samples: Sequence[float], *, resamples: int = RESAMPLES, seed: int = SEED, block: int = 1
) -> npt.NDArray[np.float64]:
    """Medians of `resamples` resamplings with replacement, shape [resamples]; of runs of `block` neighbours, the first
    following the last."""
    values = np.asarray(samples, dtype=np.float64)
    n = len(values)
    random = np.random.default_rng(seed)
    medians = np.empty(resamples)
    at_once = max(1, HELD // max(n, 1))  # as many as are held; which are drawn does not depend on it
    for begin in range(0, resamples, at_once):
        some = min(at_once, resamples - begin)
        picks = random.integers(0, n, size=(some, -(-n // block)))
        if block > 1:
            picks = ((picks[:, :, None] + np.arange(block)) % n).reshape(some, -1)[:, :n]
        medians[begin : begin + some] = np.median(values[picks], axis=1)
    return medians


def interval(
    samples: Sequence[float],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    visible: float = VISIBLE,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the median, widened for as few samples as these say as much as (`effective`).

    Both ends move away from the median by sqrt(n / effective), which is what correlation does to the deviation of a
    mean, and by Student's quantile for so many samples over the normal one. `scripts/coverage.py` prints how often the
    interval then holds the true median. Where no sample is negative, as of times and rates, it begins at 0 at least.
    With fewer than five samples it is their whole range: resampling three numbers tells nothing.
    """
    if len(samples) < MINIMUM:
        return float(min(samples)), float(max(samples))
    tail = (1 - level) / 2
    medians = bootstrap_medians(samples, resamples=resamples, seed=seed)
    low, high = np.percentile(medians, [100 * tail, 100 * (1 - tail)])
    middle, wider = median(samples), _wider(samples, tail, visible)
    least = 0.0 if min(samples) >= 0 else float("-inf")  # what is never negative has no negative median
    return max(least, middle - wider * (middle - float(low))), middle + wider * (float(high) - middle)


def _wider(samples: Sequence[float], tail: float, visible: float) -> float:
    """What correlation and the number of samples do to an interval of independent resamplings."""
    from scipy.special import ndtri, stdtrit

    alike = effective(samples, visible)
    return float(np.sqrt(len(samples) / alike) * stdtrit(max(1.0, alike - 1), 1 - tail) / ndtri(1 - tail))


def relative_half_width(samples: Sequence[float], *, resamples: int = 400) -> float:
    """Half the interval's width over the median: what sampling stops on.

    Any positive correlation counts here: who stops early has few samples, among which a high one may not be visible.
    """
    low, high = interval(samples, resamples=resamples, visible=0.0)
    return (high - low) / 2 / median(samples)


def ratio_interval(
    above: Sequence[float], below: Sequence[float], *, level: float = LEVEL
) -> tuple[float, float, float]:
    """Ratio of two medians, `above` / `below`, with its percentile bootstrap interval: (ratio, low, high).

    The two sample sets are independent (two runs) and are resampled with different seeds.
    """
    if min(len(above), len(below)) < MINIMUM:
        low, high = min(above) / max(below), max(above) / min(below)
    else:
        # In logarithms both medians' distances add like independent errors.
        ends = []
        for samples, seed in ((above, SEED), (below, SEED + 1)):
            low, high = interval(samples, level=level, seed=seed)
            middle = median(samples)
            ends.append((np.log(middle / max(low, 1e-3 * middle)), np.log(high / middle)))
        (down, up), (under, over) = ends
        middle = median(above) / median(below)
        low, high = float(middle * np.exp(-np.hypot(down, over))), float(middle * np.exp(np.hypot(up, under)))
    return median(above) / median(below), low, high
