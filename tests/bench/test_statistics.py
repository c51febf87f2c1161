"""Against Python's own statistics module, and against what an interval must do."""

from __future__ import annotations

import random
import statistics as oracle

import pytest

from moegauge.bench import statistics


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
