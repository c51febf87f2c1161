"""Median, median absolute deviation and seeded bootstrap intervals of timing samples.

All samples are kept; nothing is trimmed.

The bootstrap is Efron's percentile bootstrap of the median; its seed is fixed, so a record's intervals can be
computed again from its samples to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
RESAMPLES = 2000
SEED = 20_240
HELD = 1_000_000  # resampled numbers in memory at a time, 16 MB with their places
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
    samples: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """Percentile bootstrap interval of the median, of runs of neighbours where these are alike (`block_length`).

    With fewer than five samples the interval is their whole range: resampling three numbers tells nothing.
    """
    if len(samples) < MINIMUM:
        return float(min(samples)), float(max(samples))
    tail = 100 * (1 - level) / 2
    medians = bootstrap_medians(samples, resamples=resamples, seed=seed, block=block_length(samples))
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(low), float(high)


def relative_half_width(samples: Sequence[float], *, resamples: int = 400) -> float:
    """Half the interval's width over the median: what sampling stops on."""
    low, high = interval(samples, resamples=resamples)
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
        ratios = bootstrap_medians(above, block=block_length(above)) / bootstrap_medians(
            below, seed=SEED + 1, block=block_length(below)
        )
        tail = 100 * (1 - level) / 2
        low, high = (float(v) for v in np.percentile(ratios, [tail, 100 - tail]))
    return median(above) / median(below), low, high
