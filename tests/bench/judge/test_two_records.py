"""Verdicts on pairs of records whose answer is known."""

from __future__ import annotations

from typing import Any

import pytest

from moegauge.bench.judge.two_records import against, judge
from moegauge.errors import RecordError


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.995, 1.005, "same"),
        (1.001, 1.015, "same"),
        (1.01, 1.03, "faster"),
        (0.9, 0.97, "slower"),
        (0.9, 1.1, "undecided"),
        (0.97, 1.001, "undecided"),
    ],
)
def test_verdicts(low: float, high: float, verdict: str) -> None:
    assert judge(low, high) == verdict


class TestAgainst:
    def wobble(self, fakes: Any, centre: float, noise: float = 0.002, **changes: Any) -> Any:
        times = [centre * (1 + noise * (i % 5 - 2)) for i in range(20)]
        return fakes.make_case(samples_ms=times, **changes)

    @pytest.mark.parametrize(("time", "verdict"), [(10.0, "same"), (9.0, "faster"), (11.0, "slower")])
    def test_by_time(self, fakes: Any, time: float, verdict: str) -> None:
        a = fakes.make_record([self.wobble(fakes, 10.0)])
        b = fakes.make_record([self.wobble(fakes, time)])
        found = against(a, b)
        assert [v.verdict for v in found] == [verdict]
        assert found[0].ratio == pytest.approx(10.0 / time, rel=1e-3)

    def test_too_noisy_to_say(self, fakes: Any) -> None:
        a = fakes.make_record([self.wobble(fakes, 10.0, 0.2)])
        b = fakes.make_record([self.wobble(fakes, 10.5, 0.2)])
        assert against(a, b)[0].verdict == "undecided"

    def test_a_slower_day_is_not_a_slower_program(self, fakes: Any) -> None:
        a = fakes.make_record([self.wobble(fakes, 10.0)])
        b = fakes.make_record([self.wobble(fakes, 12.0, roof=20.0 / 1.2)])
        assert against(a, b)[0].verdict == "same"
        elsewhere = fakes.make_record(b.cases, machine={"id": "other", "device": "cpu"})
        assert against(a, elsewhere)[0].verdict == "slower"

    def test_only_common_points_are_judged(self, fakes: Any) -> None:
        a = fakes.make_record([self.wobble(fakes, 10.0), self.wobble(fakes, 10.0, model="x")])
        b = fakes.make_record([self.wobble(fakes, 10.0, model="x"), self.wobble(fakes, 10.0, model="y")])
        assert [v.before.model for v in against(a, b)] == ["x"]
        with pytest.raises(RecordError, match="no point in common"):
            against(a, fakes.make_record([self.wobble(fakes, 1.0, model="z")]))
