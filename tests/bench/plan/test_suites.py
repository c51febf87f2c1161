"""Suites and the lists of the command line."""

from __future__ import annotations

import pytest

from moegauge.bench.plan import suites
from moegauge.errors import UnknownNameError, UsageError
from moegauge.formats import FORMATS


@pytest.mark.parametrize("name", suites.SUITES)
def test_a_suite_has_points_each_once_in_formats_that_exist(name: str) -> None:
    points = suites.suite_points(suites.get_suite(name))
    assert points
    assert len(points) == len(set(points))
    assert {p.format for p in points} <= {*FORMATS, "native"}
    assert len({p.model for p in points}) >= 3  # leaving one model out needs two others


@pytest.mark.parametrize("name", ["standard", "full", "gpu"])
def test_the_committed_suites_cover_at_least_six_models(name: str) -> None:
    assert len({p.model for p in suites.suite_points(suites.get_suite(name))}) >= 6


def test_an_unknown_suite_or_format_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'standard'"):
        suites.get_suite("standrad")
    with pytest.raises(UnknownNameError, match="Did you mean 'mxfp4'"):
        suites.check_formats(["native", "mxpf4"])


def test_lists() -> None:
    assert suites.parse_list("a, b,,a", "--model") == ("a", "b")
    assert suites.parse_counts("1,8,32k", "--context", 0, 131072) == (1, 8, 32768)
    for bad in ("", ",", "x", "-1", "0.5", "65", "1e9", "9" * 40, "\u0663"):
        with pytest.raises(UsageError, match="--batch"):
            suites.parse_counts(bad, "--batch", 1, 64)
