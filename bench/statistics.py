"""Median, median absolute deviation and seeded bootstrap intervals. All samples are kept; nothing is trimmed.

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


def bootstrap_medians(
    samples: Sequence[float], *, resamples: int = RESAMPLES, seed: int = SEED
) -> npt.NDArray[np.float64]:
    """Medians of `resamples` resamplings with replacement, shape [resamples]."""
    values = np.asarray(samples, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    return np.asarray(np.median(values[picks], axis=1), dtype=np.float64)


def interval(
    samples: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """Percentile bootstrap interval of the median.

    With fewer than five samples the interval is their whole range: resampling three numbers tells nothing.
    """
    if len(samples) < 5:
        return float(min(samples)), float(max(samples))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(bootstrap_medians(samples, resamples=resamples, seed=seed), [tail, 100 - tail])
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
    if min(len(above), len(below)) < 5:
        low, high = min(above) / max(below), max(above) / min(below)
    else:
        ratios = bootstrap_medians(above) / bootstrap_medians(below, seed=SEED + 1)
        tail = 100 * (1 - level) / 2
        low, high = (float(v) for v in np.percentile(ratios, [tail, 100 - tail]))
    return median(above) / median(below), low, high
