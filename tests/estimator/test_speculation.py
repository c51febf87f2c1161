"""The speculation term: which published rows can be used, the cost of a draft found again, and its use by predict."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from moegauge import hardware, models
from moegauge.estimator import hierarchy, predict, speculation
from moegauge.estimator.parallel import Parallel
from moegauge.estimator.predict import Draft
from moegauge.estimator.speculation import Drafted, fit, log_speed_up


def test_rows_that_pair_a_plain_speed_with_stated_tokens_per_step() -> None:
    rows, skipped = speculation.read()
    assert len(rows) + len(skipped) == 13  # of 22 rows nine are the plain ones
    assert {r.architecture for r in rows if not r.kept} == {"qwen3.5-27b", "qwen3.5-35b-a3b"}
    assert [r.model for r in rows if r.kept] == ["Inkling-975B-A41B NVFP4"]
    first = rows[0]
    assert (first.tokens, first.yields) == (2, pytest.approx(1 + 2 * 0.7971, abs=1e-4))
    assert first.speed_up == pytest.approx(12.4 / 6.5)
    # One of 64 layers, the head, and a projection of two hidden states on one.
    assert first.draft.dense == pytest.approx((25628601600 - 1271398400) / 64 + 1271398400 + 2 * 5120**2)
    reasons = {s.model: s.reason for s in skipped}
    assert "stated" in reasons["Qwen3.8-2.4T-A95B FP8"]
    assert "CPUs" in reasons["DeepSeek-V4-Flash"]
    assert "without a draft" in reasons["Muse-Glimmer-30B NVFP4"]


def made_up(cost: float) -> list[Drafted]:
    """The packaged rows as if a draft cost so many times what the law has."""
    found = []
    for row in speculation.read()[0]:
        at, _ = hierarchy.fitted().of_group(speculation._place(row))
        found.append(replace(row, speed_up=math.exp(log_speed_up(row, math.log(cost), at))))
    return found


@pytest.mark.parametrize("cost", [0.7, 1.0, 2.5])
def test_the_cost_of_a_draft_is_found_again(cost: float) -> None:
    known = fit(made_up(cost))
    assert abs(known.log_cost - math.log(cost)) < 2 * known.deviation
    assert known.noise == speculation.NOISE
    row = made_up(cost)[0]
    assert known.predict(row)[0] == pytest.approx(row.speed_up, rel=0.05)


def test_without_rows_the_prior_speaks() -> None:
    known = fit([])
    assert (known.log_cost, known.readings) == (pytest.approx(0, abs=1e-9), 0)
    assert known.deviation == pytest.approx(speculation.PRIOR_DEVIATION, rel=0.01)


def test_every_row_is_judged_without_its_own_model_and_none_by_what_is_kept_apart() -> None:
    for row, known in speculation.judge():
        assert known.readings == (8 if row.kept else 4)
        predicted, deviation = known.predict(row)
        assert abs(math.log(row.speed_up / predicted)) < 2 * deviation
    assert speculation.fitted().readings == 8


def test_predict_pays_the_fitted_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, device = models.load("deepseek-v3"), hardware.device("NVIDIA B200 SXM")

    def drafted(cost: float) -> predict.Forecast:
        known = replace(speculation.fitted(), log_cost=math.log(cost))
        monkeypatch.setattr(speculation, "fitted", lambda: known)
        return predict.by_device(shape, device, stack="SGLang", parallel=Parallel(8), draft=Draft(3, 0.7))

    one, two = drafted(1.0), drafted(2.0)
    assert two.seconds["draft"] == pytest.approx(2 * one.seconds["draft"])
    assert one.interval[1] / one.interval[0] > 1.1
