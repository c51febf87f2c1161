"""The map of where the formula holds: shares of the law's own terms, and errors a reader can check by hand."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest

from moegauge.bench.report.formula_chart import formula_chart
from moegauge.estimator import formula
from moegauge.estimator.additive import PARAMETERS, TokenStep
from moegauge.estimator.closed.contradictions import Ratio
from moegauge.estimator.formula import MapPoint
from moegauge.estimator.readings import read


@pytest.fixture(scope="module")
def points() -> list[MapPoint]:
    return formula.points()


@pytest.fixture(scope="module")
def post() -> dict[str, Any]:
    return formula.post()


def step(**changed: float) -> TokenStep:
    plain: dict[str, float] = {
        "layers": 10,
        "dense": 4e9,
        "routed": 0,
        "expansion": 1,
        "dense_bits": 8,
        "routed_bits": 8,
        "kv_bytes": 0,
        "streams": 1,
        "devices": 1,
        "bandwidth": 1e12,
        "moe": 0,
        "recurrent": 0,
        "quantised": 0,
    }
    return TokenStep(**{**plain, **changed})


def test_the_share_is_floors_over_the_whole_step() -> None:
    constants = [math.log(200) if name == "floor" else 0.0 for name in PARAMETERS]  # efficiency 1, 200 us a layer
    assert formula.floor_share(constants, step()) == pytest.approx(2e-3 / (2e-3 + 4e-3))
    assert formula.device_layer_bytes(step(devices=4, kv_bytes=1e9)) == pytest.approx(5e9 / 40)


def test_half_of_the_step_is_floor_times_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    class Known:
        def place(self, *_: str) -> None: ...

        def of_group(self, _: object) -> tuple[list[float], None]:
            return [math.log(200) if name == "floor" else 0.0 for name in PARAMETERS], None

    half = formula.half_bytes(Known(), "", "", 1e12, 1)  # type: ignore[arg-type]
    assert half == pytest.approx(200e-6 * 1e12)


def test_errors_are_those_of_the_other_models(readings_csv: Any) -> None:
    path = readings_csv(
        {"model": "a", "active_params": 1e9, "total_params": 1e9, "tokens_per_s": 100},
        {"model": "b", "active_params": 2e9, "total_params": 2e9, "tokens_per_s": 40},
    )
    first, second = formula.points(read(path)[0])
    # Calibrated on b: 2 x 40 = 80 where a made 100; on a: 100 / 2 = 50 where b made 40.
    assert first.error == pytest.approx(-0.2)
    assert second.error == pytest.approx(0.25)
    assert (first.fold, second.fold) == (pytest.approx(1.25), pytest.approx(1.25))


def test_every_reading_of_one_stream_is_a_point_once(points: list[MapPoint]) -> None:
    assert len(points) > 350
    assert len({(p.reading.group, p.reading.key, p.reading.tokens_per_s, p.reading.context) for p in points}) > 340
    assert all(0 < p.floor_share < 1 and p.bytes_per_device_layer > 0 for p in points)
    assert {"B200", "MI300X"} <= {p.reading.device for p in points}
    assert all(p.reading.batch < 1.5 for p in points)


def test_the_formula_errs_where_floors_are_large(points: list[MapPoint]) -> None:
    few, _, _, most = formula.bands(points)
    assert sum(row["n"] for row in formula.bands(points)) == len(points)
    assert few["median_fold"] < 1.2 < 1.5 < most["median_fold"]
    assert few["bytes_per_device_layer"] > 4 * most["bytes_per_device_layer"]
    assert formula.bands([])[0]["median_fold"] is None


def test_deepseek_by_place() -> None:
    sglang, tile, amd = formula.stacks()
    assert (sglang["tokens_per_s"], amd["tokens_per_s"]) == (109.17, 41.95)
    assert sglang["effective_bandwidth"] == pytest.approx(4.1e12, rel=0.01)
    assert min(sglang["floor_share"], amd["floor_share"]) > 0.8
    assert tile["floor_share"] is None
    assert tile["read_as"] == pytest.approx(36.6e9 * 109.17 / 600, rel=0.01)
    assert amd["read_as"] == pytest.approx(2.6 * sglang["read_as"], rel=0.01)


def test_stated_ratios_and_the_floors_they_need() -> None:
    rows = formula.contradictions()
    assert [f"{row['by_formula'] + 1e-9:.2f}" for row in rows] == ["1.74", "1.19", "1.03"]
    for row in rows:
        floor = row["floor_ms_needed"] / 1e3
        ratio = Ratio.of({"slow": 10.0, "fast": 20.0}, "slow", "fast", 3.0)
        assert (0.1 - ratio.floor_s) / (0.05 - ratio.floor_s) == pytest.approx(3.0)
        assert floor > 0
        assert 0 < row["floor_share_needed"] < 1
    assert Ratio.of({"slow": 10.0, "fast": 20.0}, "slow", "fast", 1.5).floor_s < 0  # less than the speeds say


def test_the_post_on_the_map(post: dict[str, Any]) -> None:
    assert [row["model"] for row in post["calibration"]] == ["DeepSeek V3.1", "GLM-4.7", "Kimi K2 Thinking"]
    assert len(post["estimates"]) == 6
    opus = post["estimates"][0]
    assert opus["bytes_per_device_layer"] == pytest.approx(4.25e12 / 43 / 8 / post["layers"])
    (low, high), (free_low, free_high) = opus["law_at_its_assumptions"]["80"], opus["law"]["80"]
    assert free_low < opus["published_fp8"][1] < free_high
    assert high / low < free_high / free_low
    for row in (*post["calibration"], *post["estimates"]):
        assert 0 <= row["floor_share"]["80"][0] <= row["floor_share"]["median"] <= 1


def test_the_chart_holds_every_point(points: list[MapPoint], post: dict[str, Any]) -> None:
    root = ElementTree.fromstring(formula_chart(points, formula.halves(), post))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    marks = [e for e in root.iter() if e.get("class", "").startswith("mark")]
    assert len(marks) == len(points) + 9 + 5  # the post's, and the legend
    assert len([e for e in root.iter() if e.get("class", "") == "line law"]) == len(formula.MARKED)
