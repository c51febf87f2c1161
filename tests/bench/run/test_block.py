"""Points in rounds on the real core: one shared arena, one sample each a round, what fails costs only itself."""

from __future__ import annotations

import itertools
from typing import Any

import made_up
import pytest

from moegauge.bench.clock.pairs import Limits
from moegauge.bench.clock.roof import find_roof
from moegauge.bench.plan.points import Point
from moegauge.bench.run import block
from moegauge.bench.run.block import Rounds
from moegauge.bench.run.case import Settings
from moegauge.bench.run.sweep import Bench
from moegauge.bench.step.build import DecodeStep, plan_step, shared_pools
from moegauge.errors import NumericsError
from moegauge.kernels.cpu.backend import CpuBackend
from moegauge.kernels.cpu.core import library

pytestmark = pytest.mark.skipif(library() is None, reason="installed without a C++ compiler")

MIB = 1 << 20
POINTS = [Point("a", "bf16"), Point("b", "fp8"), Point("a", "mxfp4", batch=2)]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> CpuBackend:
    backend = CpuBackend(threads=1)
    backend.last_level_cache = 1 << 16
    monkeypatch.setattr("moegauge.bench.clock.roof.PASS_BYTES", {"cpu": 4 * MIB})
    monkeypatch.setattr("moegauge.bench.step.build.MINIMUM_ARENA", 4 * MIB)
    return backend


def measured(backend: CpuBackend, points: list[Point], **changes: Any) -> tuple[Rounds, list[Any]]:
    shapes = {name: made_up.decoder(mixer) for name, mixer in (("a", "gqa"), ("b", "mla"))}
    limits = Limits(min_samples=4, time_limit_s=0.05, warmup_s=0.0, sample_s=0.001)
    bench = Bench(backend, find_roof(backend, rounds=1), Settings(limits=limits))
    cases: list[Any] = []
    rounds = Rounds(bench, on_case=cases.append, **changes)
    rounds.run(points, shapes, set())
    return rounds, cases


def test_every_point_gives_one_sample_a_round_from_one_arena(
    backend: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    arenas = []
    real = CpuBackend.arena
    monkeypatch.setattr(CpuBackend, "arena", lambda self, *a, **k: arenas.append(real(self, *a, **k)) or arenas[-1])
    rounds, cases = measured(backend, POINTS)
    assert rounds.failures == []
    assert [(c.format, c.batch) for c in cases] == [("bf16", 1), ("fp8", 1), ("mxfp4", 2)]
    assert len(arenas) == 1
    turns = {len(c.samples_ms) + len(c.disturbed_ms) for c in cases}
    assert len(turns) == 1  # as many turns each
    for case in cases:
        assert len(case.round) == len(case.samples_ms) == len(case.roof_fraction_samples)
        assert case.round == sorted(set(case.round))
        assert max(case.round) < max(turns)


def test_a_block_ends_where_memory_or_its_number_of_points_does(
    backend: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "MOST_POINTS", 2)
    said: list[str] = []
    _, cases = measured(backend, POINTS, on_start=said.append)
    assert len(cases) == 3
    assert [text for text in said if text.startswith("rounds of")] == ["rounds of 2 points", "rounds of 1 points"]


def test_a_wrong_answer_costs_only_its_point(backend: CpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    real = DecodeStep.check
    calls = itertools.count()

    def check(self: DecodeStep, *rest: Any) -> float:
        if next(calls) == 1:
            raise NumericsError("layer 0: error 0.5, bound 0.01.")
        return real(self, *rest)

    monkeypatch.setattr(DecodeStep, "check", check)
    rounds, cases = measured(backend, POINTS)
    assert [f.point for f in rounds.failures] == [POINTS[1]]
    assert [c.format for c in cases] == ["bf16", "mxfp4"]


def test_what_there_is_no_time_for_is_named(backend: CpuBackend) -> None:
    rounds, cases = measured(backend, POINTS, seconds_left=lambda: 0.0)
    assert rounds.unmeasured == POINTS
    assert cases == []


def test_a_shared_arena_holds_the_largest_pool_of_each_kind(backend: CpuBackend) -> None:
    plans = [
        plan_step(made_up.decoder(mixer).cast(name), backend, reuse=0.0)
        for mixer, name in (("gqa", "bf16"), ("mla", "fp8"))
    ]
    pools = shared_pools(plans)
    assert set(pools) == set(plans[0].pools) | set(plans[1].pools)
    assert all(pools[name] == max(one.pools.get(name, 0) for one in plans) for name in pools)
