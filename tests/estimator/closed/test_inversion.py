"""Our inversion: deterministic, wider when less is known, aware of depth, and silent when it cannot say."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moegauge import models
from moegauge.errors import ObservationError, UnknownNameError, UsageError
from moegauge.estimator.closed.assumptions import ASSUMPTIONS, parse
from moegauge.estimator.closed.condition import Condition, Open
from moegauge.estimator.closed.estimate import estimate as document
from moegauge.estimator.closed.fleets import Served, fleets
from moegauge.estimator.closed.inversion import POINTS, Estimate, estimate
from moegauge.estimator.closed.points import quasi_random

DAY = date(2026, 3, 12)
# Values in the middle of each prior.
MIDDLE = {
    "precision": 2.0,
    "batch": 8.0,
    "context": 4000.0,
    "speculation": 1.0,
    "replica": 1.0,
    "hardware": 1.0,
    "stack": 1.0,
    "floor": 50.0,
    "layers": 75.0,
    "dense_share": 0.42,
    "expansion": 30.0,
    "kv": 1100.0,
}


def served(model: str, speed: float, shape: str = "") -> Served:
    return Served(1, model, "p", speed, DAY, "per token", "standard", models.load(shape) if shape else None)


KNOWN = (served("a", 117, "deepseek-v3"), served("b", 132, "glm-4.7"), served("c", 187, "kimi-k2-thinking"))


def one(speed: float = 43.0, **options: Any) -> Estimate:
    return estimate(KNOWN, [served("x", speed)], **{"points": 4096, **options})[0]


def width(result: Estimate, percent: str = "80") -> float:
    low, high = result.active[percent]
    return math.log(high / low)


def test_same_seed_same_answer() -> None:
    assert one().to_json() == one().to_json()
    assert one().to_json() != one(seed=1).to_json()


def test_seeds_agree() -> None:
    medians = [math.log(one(seed=seed, points=POINTS).active["median"]) for seed in range(4)]
    assert max(medians) - min(medians) < 0.06


@pytest.mark.parametrize("name", sorted(ASSUMPTIONS))
def test_freeing_an_assumption_never_narrows(name: str) -> None:
    """From all held to one free: the intervals of active or total parameters widen, none shrinks beyond noise."""
    held = one(fixed=MIDDLE)
    freed = one(fixed={k: v for k, v in MIDDLE.items() if k != name})
    assert width(freed) > width(held) - 0.03
    assert freed.variance[name] >= 0.0
    total = [math.log(r.total["80"][1] / r.total["80"][0]) for r in (held, freed)]
    assert total[1] > total[0] - 0.03
    if name in ("precision", "speculation", "replica", "dense_share"):
        assert width(freed) > 1.02 * width(held)
    if name == "expansion":
        assert total[1] > 1.05 * total[0]


def test_intervals_nest_and_bracket_the_median() -> None:
    result = one()
    for span in (result.active, result.total):
        low95, low80, low50 = (span[p][0] for p in ("95", "80", "50"))
        high50, high80, high95 = (span[p][1] for p in ("50", "80", "95"))
        assert low95 < low80 < low50 < span["median"] < high50 < high80 < high95


def test_faster_is_smaller() -> None:
    assert one(100.0).active["median"] < one(50.0).active["median"] < one(25.0).active["median"]


def test_more_layers_leave_fewer_bytes() -> None:
    """At one speed a deeper model must read less: floors by layer take the rest of the step."""
    shallow, deep = (one(fixed={**MIDDLE, "layers": n}).active["median"] for n in (40.0, 160.0))
    assert deep < 0.93 * shallow


def test_a_batch_counts_against_total_parameters() -> None:
    """With many streams a sparse model reads more of itself, so the same speed leaves fewer active parameters."""
    sparse, dense = (one(fixed={**MIDDLE, "batch": 32.0, "expansion": x}).active["median"] for x in (48.0, 4.0))
    assert sparse < 0.5 * dense


def test_a_release_with_prediction_layers_may_be_served_speculatively() -> None:
    """DeepSeek-V3 and GLM-4.7 ship a layer to draft with, Kimi K2 none; a family's name says nothing."""
    assert [Open.of(models.load(name)).drafts for name in ("deepseek-v3", "glm-4.7", "kimi-k2")] == [True, True, False]
    assert Open.of(replace(models.load("kimi-k2"), mtp_parameters=1)).drafts
    assert not Open.of(replace(models.load("glm-4.7"), mtp_parameters=0)).drafts


def test_the_cache_takes_its_share() -> None:
    """With long contexts a fatter cache leaves fewer bytes for weights at the same speed."""
    held = {**MIDDLE, "batch": 32.0, "context": 16_000.0}
    thin, fat = (one(fixed={**held, "kv": kv}).active["median"] for kv in (100.0, 4000.0))
    assert fat < 0.9 * thin


def test_open_models_are_found_again() -> None:
    """Each open model within its 80 % interval when it is estimated from the others."""
    for i, row in enumerate(KNOWN):
        assert row.shape is not None
        truth = row.shape.active_without_embedding
        low, high = estimate([k for j, k in enumerate(KNOWN) if j != i], [row], points=4096)[0].active["80"]
        assert low < truth < high


def test_calibrators_of_known_bandwidth_give_that_bandwidth() -> None:
    """Three made-up speeds of one bandwidth: the allowed bytes of a like step are bandwidth x time."""
    u = np.full((4, 6), 0.3)  # no speculation; 16-bit and 8-bit releases served as FP8, as the options are ordered
    ones = np.ones(4)
    seconds = 0.01
    rows = []
    for name in ("deepseek-v3", "qwen3-235b-a22b", "glm-4.7"):
        model = Open.of(models.load(name))
        precision = "released" if model.release == "8-bit" else "fp8"
        size = float(model.bytes(precision, np.ones(1))[0]) + 1.5 * model.cache_elements
        rows.append(served(name, 5e12 / size, name))
    condition = Condition.on(rows, ones, ones, np.full(4, 1e-3), u)
    allowed, deviation = condition.allowed_bytes(np.full(4, seconds), np.full(4, 70.0))
    assert allowed[0] == pytest.approx(5e12 * seconds, rel=0.12)
    assert deviation[0] < 0.35


def test_variance_shares() -> None:
    shares = one(points=POINTS).variance
    assert all(0 <= share <= 1 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1, abs=0.05)
    assert shares["precision"] > shares["kv"]


def test_points_fill_the_cube() -> None:
    points = quasi_random(4096, 12, 0)
    assert points.shape == (4096, 12)
    assert (points > 0).all()
    assert (points < 1).all()
    # The mean of 4096 random numbers is off by 0.0045; these fill more evenly.
    assert np.abs(points.mean(axis=0) - 0.5).max() < 0.002


def test_assumptions_are_checked() -> None:
    assert parse(("batch=4", "precision=fp8")) == {"batch": 4.0, "precision": 2.0}
    with pytest.raises(UnknownNameError, match=r"bach.*batch"):
        parse(("bach=4",))
    with pytest.raises(UsageError, match="batch is 0"):
        parse(("batch=0",))
    with pytest.raises(UsageError, match="layers is nan"):
        parse(("layers=nan",))
    with pytest.raises(UsageError, match="NAME=NUMBER"):
        parse(("batch",))


@pytest.fixture
def speeds(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: tuple[str, str, Any, str, str]) -> Path:
        path = tmp_path / "speeds.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["model", "provider", "tokens_per_s", "date", "metric"])
            writer.writerows(rows)
        return path

    return write


OPEN = [("DeepSeek V3.1", "p", 117, "2026-03-12", "tps"), ("GLM-4.7", "p", 132, "2026-03-12", "tps")]
CLOSED = ("Closed", "p", 43, "2026-03-12", "tps")


def test_an_identifiable_file(speeds: Callable[..., Path]) -> None:
    result = document(path=speeds(*OPEN, CLOSED))
    assert result["identifiable"]
    assert result["why"] == ""
    assert [m["model"] for m in result["measured"]["models"]] == ["Closed"]
    published = result["published"]
    assert published["bandwidth"] == [117 * 37_552_297_472, 132 * 33_632_266_144]
    assert published["models"][0]["bytes_per_token"][0] == pytest.approx(117 * 37_552_297_472 / 43)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([OPEN[0], CLOSED], "1 calibration model"),
        ([OPEN[0], OPEN[0], CLOSED], "1 calibration model"),
        ([*OPEN, ("Closed", "p", 43, "2026-03-12", "256 tokens / whole request")], "mixed"),
        ([*OPEN, ("Closed (Fast)", "p", 43, "2026-03-12", "tps")], "fast and standard"),
        ([*OPEN, ("Closed", "p", 43, "2026-08-12", "tps")], "153 days apart"),
        (OPEN, "no closed model"),
        ([*OPEN, ("Closed", "q", 43, "2026-03-12", "tps")], "q: 0 calibration"),
    ],
)
def test_refusals_say_why(speeds: Callable[..., Path], rows: list[Any], why: str) -> None:
    result = document(path=speeds(*rows))
    assert not result["identifiable"]
    assert why in result["why"]
    assert result["measured"]["models"] == []


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf", "quick", "1e9"])
def test_nonsense_speeds_are_refused_by_line_and_column(speeds: Callable[..., Path], speed: str) -> None:
    with pytest.raises(ObservationError, match="line 3, column tokens_per_s"):
        fleets(speeds(OPEN[0], ("Closed", "p", speed, "2026-03-12", "tps")))


def test_vague_dates_are_left_out(speeds: Callable[..., Path]) -> None:
    _, skipped = fleets(speeds(*OPEN, ("Closed", "p", 43, "2026 undated", "tps")))
    assert [(s.line, s.reason) for s in skipped] == [(4, "date '2026 undated' names no month")]


def test_served_open_models_are_judged_only_when_two_are_left(speeds: Callable[..., Path]) -> None:
    assert document(path=speeds(*OPEN, CLOSED))["backtest"]["served"] == {"n": 0}
    kimi = ("Kimi K2 Thinking", "p", 187, "2026-03-12", "tps")
    assert document(path=speeds(*OPEN, kimi, CLOSED))["backtest"]["served"]["n"] == 3


def test_a_dense_open_model_calibrates_too() -> None:
    """The packaged second reading: 70,553,706,496 parameters of Llama 3.3 70B, five readings of four models."""
    path = Path(__file__).parents[3] / "estimator" / "data" / "vertex-2026-03.csv"
    found, _ = fleets(path)
    dense = [row.shape for row in found[0].open if row.shape and not row.shape.moe_layers]
    assert [shape.total_parameters for shape in dense] == [70_553_706_496]
    result = document(path=path)
    assert result["identifiable"]
    assert result["backtest"]["served"]["n"] == 5


def test_preset_and_its_first_words() -> None:
    result = document(preset="opus-2026-03")
    assert result["backtest"]["sentence"].startswith(
        "On 50 readings of open MoE models in data centres the 80 % interval holds"
    )
    assert result["backtest"]["served"]["n"] == 3
    assert len(result["measured"]["models"]) == len(result["published"]["models"]) == 6
    with pytest.raises(UnknownNameError, match="opus-2026-03"):
        document(preset="opus-2026-3")


def test_cost_is_devices_over_streams_and_the_margin_what_the_price_leaves() -> None:
    fleet = fleets(None)[0][0]
    opus = next(r for r in fleet.closed if r.model == "Opus 4.6")
    held = {"batch": 16.0, "replica": 2.0}
    (found,) = estimate(fleet.open, [opus], fixed=held, points=1 << 10)
    dollars = 2.5 * 16 / 3600 / (43 * 16) * 1e6  # sixteen devices, sixteen streams of 43 tokens/s
    assert found.cost["dollars_per_million"]["median"] == pytest.approx(dollars)
    assert found.cost["margin_80"] == [pytest.approx(1 - dollars / 25)] * 2
    assert replace(found, model="nobody's").cost["margin_80"] is None
