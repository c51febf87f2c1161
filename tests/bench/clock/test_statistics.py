"""Against Python's own statistics module, and against what an interval must do."""

from __future__ import annotations

import random
import statistics as oracle

import numpy as np
import pytest
import scipy.stats

from moegauge.bench.clock import statistics


def samples(seed: int, n: int, centre: float = 10.0, spread: float = 1.0) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(centre, spread) for _ in range(n)]


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_median_and_mad_are_the_textbook_ones(n: int) -> None:
    values = samples(n, n)
    middle = oracle.median(values)
    assert statistics.median(values) == pytest.approx(middle)
    assert statistics.mad(values) == pytest.approx(oracle.median(abs(v - middle) for v in values))


def test_the_interval_is_the_same_every_time() -> None:
    assert statistics.interval(samples(1, 30)) == statistics.interval(samples(1, 30))


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        low, high = statistics.interval(samples(seed, 25), resamples=500)
        held += low <= 10.0 <= high
    assert 180 <= held <= 200  # 95 % of 200 is 190; binomial deviation 3


def test_few_samples_give_their_range() -> None:
    assert statistics.interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_the_interval_narrows_with_more_samples() -> None:
    assert statistics.relative_half_width(samples(2, 200)) < statistics.relative_half_width(samples(2, 20))


def test_the_ratio_of_medians_and_its_interval() -> None:
    ratio, low, high = statistics.ratio_interval(samples(3, 50, 20.0), samples(4, 50, 10.0))
    assert low < 2.0 < high
    assert ratio == pytest.approx(2.0, rel=0.1)
    assert statistics.ratio_interval([2.0, 2.2], [1.0, 1.1]) == (pytest.approx(2.0), 2.0 / 1.1, 2.2)


def alike(seed: int, n: int, correlation: float) -> list[float]:
    """An AR(1) process around 10."""
    generator, value, out = random.Random(seed), 0.0, []
    for _ in range(n):
        value = correlation * value + (1 - correlation**2) ** 0.5 * generator.gauss(0, 1)
        out.append(10 + value)
    return out


def test_independent_samples_are_resampled_one_by_one_and_alike_ones_in_runs() -> None:
    assert sum(statistics.block_length(samples(seed, 60)) == 1 for seed in range(50)) > 35
    assert all(statistics.block_length(alike(seed, 100, 0.9)) > 5 for seed in range(20))
    assert statistics.block_length([1.0] * 4) == 1
    assert statistics.block_length([1.0] * 60) == 1
    assert statistics.block_length([2.0, 1.0] * 30) == 1


def test_the_interval_of_alike_samples_covers_more_than_one_by_one() -> None:
    blocks = single = 0
    for seed in range(100):
        values = alike(seed, 100, 0.7)
        low, high = statistics.interval(values, resamples=300)
        blocks += low <= 10 <= high
        medians = statistics.bootstrap_medians(values, resamples=300)
        low, high = np.percentile(medians, [2.5, 97.5])
        single += low <= 10 <= high
    assert blocks > single + 10
    assert blocks > 75


def test_median_mad_and_interval_are_scipy_s() -> None:
    values = samples(7, 41)
    assert statistics.mad(values) == pytest.approx(scipy.stats.median_abs_deviation(values))
    assert statistics.block_length(values) == 1
    theirs = scipy.stats.bootstrap(
        (values,), np.median, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    low, high = statistics.interval(values)
    width = high - low
    assert abs(low - theirs.low) < 0.15 * width
    assert abs(high - theirs.high) < 0.15 * width


def test_the_interval_of_times_holds_no_negative_one() -> None:
    """Few samples far apart are widened past zero, and a record that said so could not be read again."""
    low, high = statistics.interval([1.0, 1.0, 1.0, 9.0, 9.0, 9.0])
    assert low == 0 < high
    assert statistics.interval([-1.0, -1.0, -1.0, 7.0, 7.0, 7.0])[0] < -1
