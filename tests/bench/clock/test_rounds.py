"""Rounds: paired samples, changing order, throttled rounds left out of everybody's."""

from __future__ import annotations

from typing import Any

import pytest

from moegauge.bench.clock.pairs import Limits
from moegauge.bench.clock.rounds import contest
from moegauge.errors import DeviceError

LIMITS = Limits(min_samples=4, warmup_s=0.0, time_limit_s=1e9)


class Machine:
    """Steps and a roof whose times are computed; what runs is logged."""

    def __init__(self, speeds: dict[str, float]) -> None:
        self.now, self.log, self.slowness = 0.0, [], 1.0
        self.steps = {name: self._step(name, speed) for name, speed in speeds.items()}

    def _step(self, name: str, seconds: float) -> Any:
        def step(count: int) -> float:
            self.log.append(name)
            self.now += seconds * count * self.slowness
            return seconds * count * self.slowness

        return step

    def roof(self, seconds: float) -> float:
        self.log.append("roof")
        self.now += seconds
        return 1e9 / self.slowness

    def sleep(self, seconds: float) -> None:
        self.log.append(f"rest {seconds:g}")
        self.now += seconds

    def run(self, **changes: Any) -> Any:
        options = {"limits": LIMITS, "clock": lambda: self.now, "sleep": self.sleep, "rest_s": 0.5, **changes}
        return contest(self.steps, self.roof, **options)


def test_every_program_gives_one_sample_a_round_beside_its_own_roof() -> None:
    machine = Machine({"ours": 0.1, "theirs": 0.2})
    results = machine.run()
    assert results["ours"].seconds == pytest.approx([0.1] * 6)
    assert results["theirs"].seconds == pytest.approx([0.2] * 6)
    assert all(len(r.roof_bytes_per_s) == 6 and r.settled for r in results.values())


def test_a_rest_follows_every_sample_and_is_not_timed() -> None:
    machine = Machine({"ours": 0.1, "theirs": 0.2})
    machine.run()
    warmed, rounds = machine.log[:4], machine.log[4:]
    assert warmed == ["ours", "roof", "theirs", "roof"]
    assert len(rounds) == 6 * 2 * 2 * 2  # rounds, programs, step and roof, each with its rest
    assert rounds[1::2] == ["rest 0.5"] * 24
    assert not any(word.startswith("rest") for word in rounds[::2])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_place_in_the_round_and_in_the_pair_both_change(count: int) -> None:
    machine = Machine({f"p{i}": 0.1 for i in range(count)})
    machine.run(limits=Limits(min_samples=4 * count, warmup_s=0.0, time_limit_s=1e9))
    order = [word for word in machine.log if not word.startswith("rest")][2 * count :]  # after warming up
    rounds = [order[i : i + 2 * count] for i in range(0, len(order), 2 * count)]
    firsts = {next(w for w in r if w != "roof") for r in rounds}
    assert firsts == set(machine.steps)
    for name in machine.steps:  # before and after its roof equally often
        before = sum(
            pair.index(name) == 0 for r in rounds for pair in zip(r[::2], r[1::2], strict=True) if name in pair
        )
        assert before == len(rounds) / 2


def test_a_round_with_one_throttled_pair_counts_for_nobody() -> None:
    class Throttle:
        calls = 0

        def read(self) -> dict[str, Any]:
            self.calls += 1
            return {"throttled": self.calls == 3}  # the first pair of the second round

    machine = Machine({"ours": 0.1, "theirs": 0.2})
    results = machine.run(throttle=Throttle())
    for result in results.values():
        assert len(result.throttled_s) == 1
        assert len(result.seconds) == 6
        assert [state["throttled"] for state in result.states] == [False, True] + 5 * [False]


def test_nothing_but_throttled_rounds_is_an_error() -> None:
    class Hot:
        def read(self) -> dict[str, Any]:
            return {"throttled": True}

    with pytest.raises(DeviceError, match="throttling"):
        Machine({"ours": 0.1}).run(throttle=Hot(), limits=Limits(min_samples=4, warmup_s=0.0, time_limit_s=3.0))


def test_the_time_limit_holds_for_each_program() -> None:
    def wild(count: int, state: dict[str, float] = {"n": 0}) -> float:  # noqa: B006 - the state is the point
        state["n"] += 1
        return count * (1.0 if state["n"] % 2 else 3.0)

    machine = Machine({"ours": 1.0, "theirs": 1.0})
    machine.steps["theirs"] = wild
    results = machine.run(limits=Limits(min_samples=3, warmup_s=0.0, time_limit_s=20.0))
    assert not results["theirs"].settled
    assert results["ours"].settled
    assert results["ours"].elapsed_s >= 40
