"""Points through a made-up device: what ends up in a case, what is skipped, what is refused."""

from __future__ import annotations

import weakref
from typing import Any

import made_up
import pytest

from moegauge.bench.clock.roof import find_roof
from moegauge.bench.plan.points import Point
from moegauge.bench.run.case import Settings, formula_bytes
from moegauge.bench.run.sweep import Bench, run_sweep
from moegauge.errors import ColdError, NumericsError, RecordError


def sweep(device: Any, points: list[Point], fakes: Any, build: Any, done: Any = (), on_case: Any = None) -> Any:
    cases: list[Any] = []
    shapes = {p.model: made_up.tiny(p.model) for p in points}
    bench = Bench(device, find_roof(device), Settings(), builder=build)
    failures = run_sweep(points, shapes, bench.decode, done=set(done), on_case=on_case or cases.append)
    return cases, failures


def measured(device: Any, fakes: Any, point: Point, step: Any) -> Any:
    bench = Bench(device, find_roof(device), Settings(), builder=lambda *_: step)
    return next(bench.decode(point, made_up.tiny(), set()))


def test_a_case_says_what_was_read_and_how_fast(device: Any, fakes: Any) -> None:
    step = fakes.FakeStep(device, 10**8, kernels=20, floor=1e-3)
    case = measured(device, fakes, Point("tiny", "fp8", 4, 7), step)
    # 20 kernels of 1 ms and 0.1 GB at 1 GB/s
    assert case.median_ms == pytest.approx(120.0)
    assert case.tokens_per_s == pytest.approx(4 / 0.12)
    assert case.gb_per_s == pytest.approx(0.1 / 0.12)
    assert case.roof_fraction == pytest.approx(0.1 / 0.12)
    assert case.roof_fraction_samples == pytest.approx([0.1 / 0.12] * len(case.samples_ms))
    assert case.roof_samples_gb_per_s == pytest.approx([1.0] * len(case.samples_ms))
    assert (case.kernels_per_step, case.batch, case.context, case.layers) == (20, 4, 7, 2)
    assert (case.bytes.weights, case.bytes.scales, case.bytes.total) == (10**8 - 10, 10, 10**8)
    assert case.settled
    assert case.warnings == []


def test_bytes_are_those_of_each_sample_s_own_step(device: Any, fakes: Any) -> None:
    step = fakes.FakeStep(device, 10**8, floor=0.0)
    sizes = iter([10**8, 3 * 10**8] * 500)

    def run() -> None:  # a batch whose routing differs from step to step
        step.bytes = next(sizes)
        device.spend(step.bytes / device.bandwidth)

    step.run = run
    case = measured(device, fakes, Point("tiny", batch=4), step)
    assert case.roof_fraction_samples == pytest.approx([1.0] * len(case.samples_ms))
    assert case.bytes.total == pytest.approx(2 * 10**8, rel=0.05)


def test_the_larger_of_the_two_gates_is_kept(device: Any, fakes: Any) -> None:
    step = fakes.FakeStep(device, 10**7, errors=iter([1e-6, 3e-4]))
    case = measured(device, fakes, Point("tiny"), step)
    assert case.max_relative_error == 3e-4


@pytest.mark.parametrize("bad_at", [0, 1])
def test_a_wrong_answer_has_no_time(device: Any, fakes: Any, bad_at: int) -> None:
    def errors() -> Any:
        for _ in range(bad_at):
            yield 1e-6
        raise NumericsError("layer 0: error 0.5, bound 0.01.")

    steps = []

    def build(shape: Any, *_: Any) -> Any:
        gate = errors() if shape.name == "wrong" else iter([1e-6] * 9)
        steps.append(fakes.FakeStep(device, 10**7, errors=gate))
        return steps[-1]

    cases, failures = sweep(device, [Point("wrong"), Point("right")], fakes, build)
    assert [c.model for c in cases] == ["right"]
    assert [f.point.model for f in failures] == ["wrong"]
    assert all(step.closed for step in steps)


def test_points_already_measured_are_not_measured_again(device: Any, fakes: Any) -> None:
    points = [Point("a"), Point("b"), Point("b", "fp8")]
    built = []

    def build(shape: Any, _backend: Any, point: Point, _settings: Any) -> Any:
        built.append(point)
        return fakes.FakeStep(device, 10**7)

    cases, _ = sweep(device, points, fakes, build, done={("a", "native", 1, 0, None), ("b", "fp8", 1, 0, None)})
    assert built == [Point("b")]
    assert len(cases) == 1


def test_a_full_disk_stops_the_sweep_at_once(device: Any, fakes: Any) -> None:
    def full(_: Any) -> None:
        raise RecordError("no space")

    with pytest.raises(RecordError, match="no space"):
        sweep(device, [Point("a"), Point("b")], fakes, lambda *_: fakes.FakeStep(device, 10**7), on_case=full)


def test_faster_than_the_roof_is_a_warning(device: Any, fakes: Any) -> None:
    step = fakes.FakeStep(device, 10**8, floor=0.0)
    step.traffic = lambda _: fakes.FakeTraffic(2 * 10**8, 0, 0)  # half of it came from a cache
    case = measured(device, fakes, Point("tiny"), step)
    assert any("cache" in text for text in case.warnings)


def test_formula_bytes_count_the_whole_embedding_once(fakes: Any) -> None:
    shape = made_up.tiny()
    # bf16: attention 64 x 64, two of four experts of three 64 x 64 matrices; float32 router; norms; head; embedding
    layer = 2 * 64 * 64 + 2 * 3 * 2 * 64 * 64 + 4 * 4 * 64 + 2 * 64
    assert formula_bytes(shape) == 2 * layer + 2 * 100 * 64 * 2


def test_a_case_gives_its_bytes_by_format(device: Any, fakes: Any) -> None:
    case = measured(device, fakes, Point("tiny", batch=2, context=10), fakes.FakeStep(device, 10**8))
    expert, dense, head = 3 * 64 * 64 * 2, 64 * 64 * 2, 100 * 64 * 2
    # two distinct experts a layer, as the fake step says; two layers of 64 cached elements, ten tokens, two sequences
    assert case.formats == {
        "bf16": 2 * (2 * expert + dense) + head,
        "kv:bf16": 2 * 2 * 10 * 64 * 2,
        "f32": 2 * 4 * 64 * 4,
    }


def test_kernels_are_timed_one_kind_at_a_time(device: Any, fakes: Any) -> None:
    step = fakes.FakeStep(device, 3 * 10**7, kernels=20, floor=1e-3)
    bench = Bench(device, find_roof(device), Settings(), builder=lambda *_: step)
    cases: list[Any] = []
    done = {("tiny", "fp8", 1, 0, "experts up")}
    assert (
        run_sweep([Point("tiny", "fp8")], {"tiny": made_up.tiny()}, bench.kernels, done=done, on_case=cases.append)
        == []
    )
    assert [(c.kind, c.kernel, c.kernels_per_step) for c in cases] == [("kernel", "experts down", 10)]
    assert cases[0].median_ms == pytest.approx(10 + 10)  # 10 ms of floors, a third of 30 MB at 1 GB/s
    assert step.closed


def test_a_lost_device_fails_its_point_and_not_the_run(device: Any, fakes: Any) -> None:
    def build(shape: Any, *_: Any) -> Any:
        if shape.name == "lost":
            raise RuntimeError("CUDA error: unspecified launch failure\nmore")
        return fakes.FakeStep(device, 10**7)

    cases, failures = sweep(device, [Point("lost"), Point("kept")], fakes, build)
    assert [c.model for c in cases] == ["kept"]
    assert str(failures[0].error).startswith("RuntimeError: CUDA error: unspecified launch failure. Run again")


def test_a_kind_that_reads_too_little_is_skipped_and_named(device: Any, fakes: Any) -> None:
    step = fakes.FakeStep(device, 3 * 10**7)
    whole = step.part
    parts = []

    def part(kind: str) -> Any:
        if kind == "experts up":
            raise ColdError("one step reads 5 kB.")
        parts.append(whole(kind))
        return parts[-1]

    step.part = part
    said: list[Any] = []
    bench = Bench(device, find_roof(device), Settings(), builder=lambda *_: step, on_skip=lambda *a: said.append(a))
    cases = list(bench.kernels(Point("tiny"), made_up.tiny(), set()))
    assert [c.kernel for c in cases] == ["experts down"]
    assert said == [(Point("tiny"), "experts up", "one step reads 5 kB.")]
    assert [p.closed for p in parts] == [True]


def test_a_kind_with_a_wrong_answer_costs_no_other_kind(device: Any, fakes: Any) -> None:
    step = fakes.FakeStep(device, 3 * 10**7)
    whole = step.part

    def part(kind: str) -> Any:
        made = whole(kind)
        if kind == "experts up":
            made.check = lambda: (_ for _ in ()).throw(NumericsError("wrong."))
        return made

    step.part = part
    bench = Bench(device, find_roof(device), Settings(), builder=lambda *_: step)
    cases: list[Any] = []
    failures = run_sweep([Point("tiny")], {"tiny": made_up.tiny()}, bench.kernels, done=set(), on_case=cases.append)
    assert [c.kernel for c in cases] == ["experts down"]
    assert [str(f.error) for f in failures] == ["wrong."]


def test_a_failure_holds_nothing_of_its_step_and_any_library_s_error_is_one(device: Any, fakes: Any) -> None:
    class TritonError(Exception):
        """No RuntimeError."""

    class Memory:
        """An arena's."""

    kept: list[Any] = []

    def build(shape: Any, *_: Any) -> Any:
        memory = Memory()
        kept.append(weakref.ref(memory))
        raise TritonError("ptxas died\nmore")

    cases, failures = sweep(device, [Point("one")], fakes, build)
    assert cases == []
    assert str(failures[0].error).startswith("TritonError: ptxas died. Run again")
    assert "in build" in failures[0].trace
    assert kept[0]() is None
