"""SVG charts: scales and marks."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from moegauge.bench.report.svg import MARKS, Chart, Scale, _shape, legend, number


def test_a_log_scale_places_equal_ratios_equally_far_apart() -> None:
    scale = Scale(1.0, 100.0, True)
    assert [scale.place(v) for v in (1, 10, 100)] == pytest.approx([0.0, 0.5, 1.0])


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("values", [[1.0], [2.0, 3.0], [0.3, 400.0], [7e-4, 9e5]])
def test_a_scale_holds_its_values_and_some_ticks(values: list[float], log: bool) -> None:
    scale = Scale.around(values, log=log)
    assert scale.low < min(values) <= max(values) < scale.high
    assert all(scale.low <= t <= scale.high for t in scale.ticks())
    assert 1 <= len(scale.ticks()) <= 30


def test_a_scale_from_zero_starts_there() -> None:
    assert Scale.around([3.0, 4.0], zero=True).low == 0.0


def test_ticks_are_round() -> None:
    assert Scale(0.0, 1.0).ticks(5) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert [number(v) for v in (0, 0.5, 1250.0, 20.0)] == ["0", "0.5", "1,250", "20"]


def test_a_chart_is_well_formed_and_named_and_everything_in_it_is_escaped() -> None:
    evil = '"><script>alert(1)</script>&'
    chart = Chart(evil, evil, Scale(1, 10, True), Scale(0, 1), evil, evil)
    chart.line([(1, 0), (10, 1)], "law", evil)
    chart.mark(2, 0.5, 3, "f0", evil)
    chart.ring(2, 0.5, evil)
    chart.label(2, 0.5, evil)
    chart.whisker(2, 0.4, 0.6, "f0")
    root = ET.fromstring(chart.svg())
    assert root.get("role") == "img"
    assert root.get("aria-label", "").startswith(evil)
    assert not [e for e in root.iter() if e.tag.endswith("script")]
    assert ET.fromstring(legend([(evil, "f0", 1), ("b", "law", None), ("c", "", -1)])) is not None


def test_a_point_lands_where_its_values_say() -> None:
    chart = Chart("c", "", Scale(0, 1), Scale(0, 1), "x", "y", 420)
    assert (chart.px(0), chart.py(0)) == (62, 420 - 46)
    assert (chart.px(1), chart.py(1)) == (720 - 14, 14)


@pytest.mark.parametrize("name", MARKS)
def test_every_mark_is_a_closed_path(name: str) -> None:
    path = _shape(name, 10, 10)
    assert path.startswith("M")
    assert path.endswith("Z")


def test_labels_keep_clear_of_each_other_and_inside_the_chart() -> None:
    chart = Chart("c", "c", Scale(0, 10), Scale(0, 1), "x", "y")
    names = [f"model number {i}" for i in range(6)]
    for i, name in enumerate(names):
        chart.label(9.5 - 0.1 * i, 0.5, name)
    boxes = []
    for text in ET.fromstring(chart.svg()).iter("text"):
        if text.get("class") == "name":
            wide = 6.8 * len(text.text or "")
            left = float(text.get("x", "")) - (wide if text.get("text-anchor") == "end" else 0)
            boxes.append((left, float(text.get("y", "")), wide))
    assert len(boxes) == len(names)
    assert all(left >= 62 and left + wide <= 720 for left, _, wide in boxes)
    for i, (left, down, wide) in enumerate(boxes):
        for other, down_other, wide_other in boxes[:i]:
            assert left + wide <= other or other + wide_other <= left or abs(down - down_other) >= 14
