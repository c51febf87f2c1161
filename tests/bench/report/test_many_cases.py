"""A report of thousands of cases: memory, size and fits grow with them, not with their square."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import numpy as np
import pytest

from moegauge.bench.clock import statistics
from moegauge.bench.judge import compare as comparing
from moegauge.bench.report.page import page
from moegauge.estimator.law import one_term_leave_one_model_out
from moegauge.estimator.observe import observe
from moegauge.record import pool


def cases(fakes: Any, n: int, models: int) -> list[Any]:
    rng = random.Random(1)
    found = []
    for i in range(n):
        kernels, total = rng.randint(100, 700), int(10 ** rng.uniform(8, 10))
        ms = (kernels * 5e-3 + total / 18e6) * rng.uniform(0.99, 1.01)
        found.append(
            fakes.make_case(
                f"model-{i % models}", ms, total, kernels_per_step=kernels, layers=kernels // 7, context=i // models,
                formula_bytes=total, warnings=["w" * 80] * 3,
            )
        )  # fmt: skip
    return found


def test_memory_and_size_are_a_few_kilobytes_a_case(fakes: Any) -> None:
    n = 400
    record = fakes.make_record(cases(fakes, n, 200))
    page([record], ["r"])  # what is imported and cached once
    tracemalloc.start()
    text = page([record], ["r"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6, peak  # a bootstrap of all roof samples at once took 1.3 MB a case
    assert len(text) < 10_000 * n  # 20 MB for 2,000 cases
    assert "and 700 more in the record" in text
    assert "200 models: each is predicted without the models of its own fold of 16" in text


def test_of_many_models_none_is_predicted_from_itself(fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "MOST_FITS", 4)
    monkeypatch.setattr(comparing, "FOLDS", 3)
    measured = cases(fakes, 9, 9)
    honest = comparing.compare(pool([fakes.make_record(measured)], ["r"]))
    measured[4] = fakes.make_case("model-4", 3 * measured[4].median_ms, measured[4].bytes.total,
                                  kernels_per_step=measured[4].kernels_per_step, layers=measured[4].layers)  # fmt: skip
    odd = comparing.compare(pool([fakes.make_record(measured)], ["r"]))
    assert odd.points[4].predicted_tokens_per_s == pytest.approx(honest.points[4].predicted_tokens_per_s)
    assert odd.points[4].case.model == "model-4"
    assert max(abs(p.error or 1.0) for p in honest.points) < 0.1


def test_the_one_term_formula_in_one_pass_is_the_formula_point_by_point(fakes: Any) -> None:
    measured = cases(fakes, 12, 6)
    found = comparing.compare(pool([fakes.make_record(measured)], ["r"]))
    plain = [observe(case) for case in measured if case.context == 0]
    for point in found.points:
        others = [o for o in plain if o.model != point.case.model]
        (expected,) = one_term_leave_one_model_out([*others, point.observation])[-1:]
        assert point.simple_error == pytest.approx(expected.error, rel=1e-9)


@pytest.mark.parametrize("block", [1, 3])
def test_resamplings_do_not_depend_on_how_many_are_held(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(1).normal(size=37)
    whole = statistics.bootstrap_medians(samples, resamples=501, block=block)
    monkeypatch.setattr(statistics, "HELD", 37 * 7)
    assert (statistics.bootstrap_medians(samples, resamples=501, block=block) == whole).all()
