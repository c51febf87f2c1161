"""Whole decode steps of made-up models against float64, their bytes, and what makes the numerical gate fail."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_up
import numpy as np
import pytest

from moegauge import models
from moegauge.bench.step.build import DecodeStep, build_step, traffic
from moegauge.bench.step.reuse import readings, reuse_distance
from moegauge.errors import ColdError, DeviceError, NumericsError, ShapeError, UnknownNameError, UsageError
from moegauge.formats import FORMATS
from moegauge.kernels.backend import Backend
from moegauge.kernels.cpu.core import library
from moegauge.kernels.devices import get_backend
from moegauge.kernels.numpy_backend import NumpyBackend
from moegauge.kernels.program import ExpertsUp, Place, Product, Program, View, Weight
from moegauge.shape import Matrix, ModelShape

HIDDEN = made_up.HIDDEN
shape = made_up.decoder
needs_core = pytest.mark.skipif(library() is None, reason="installed without a C++ compiler")


@pytest.fixture(scope="module", params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "cpu" and library() is None:
        pytest.skip("installed without a C++ compiler")
    return get_backend(request.param)


def build(model: ModelShape, backend: Backend, *, format: str = "native", **options: Any) -> DecodeStep:
    return build_step(model.cast(format), backend, **{"arena_bytes": 1 << 24, "reuse": 0.0, **options})


@pytest.mark.parametrize("kind", ["gqa", "window", "mla", "linear"])
@pytest.mark.parametrize("fmt", ["native", *FORMATS])
@pytest.mark.parametrize(
    ("batch", "context", "kv"), [(0, 0, "bf16"), (1, 0, "bf16"), (1, 300, "fp8"), (5, 700, "bf16")]
)
def test_every_operation_is_right(backend: Backend, kind: str, fmt: str, batch: int, context: int, kv: str) -> None:
    step = build(shape(kind), backend, format=fmt, batch=batch, context=context, kv_format=kv)
    error = step.check()
    # The largest bound: inputs of 4-bit formats off by 2^-14 of the largest of their run.
    assert error < (1e-6 if backend.name == "reference" else 3e-3)
    step.run()
    step.check()
    step.close()


@pytest.mark.parametrize("kind", ["gqa", "mla", "linear"])
def test_bytes_are_those_of_the_shape(backend: Backend, kind: str) -> None:
    model = shape(kind)
    step = build(model, backend)
    step.run()
    counted = step.traffic()
    assert counted.weights + counted.scales == model.bytes_per_token
    assert counted.kv == (2 * 1000 * 3 * 2 if kind == "linear" else 0)
    assert counted.distinct_experts == 2
    step.close()


@needs_core
def test_kv_bytes_follow_context_window_and_format() -> None:
    cpu = get_backend("cpu")
    for kind, context, kv, size in (("gqa", 300, "bf16", 2), ("window", 300, "fp8", 1), ("mla", 300, "bf16", 2)):
        model = shape(kind)
        step = build(model, cpu, batch=3, context=context, kv_format=kv)
        assert step.traffic().kv == 3 * size * model.cache_elements(context)
        step.close()


@needs_core
def test_batches_read_each_distinct_expert_once() -> None:
    cpu = get_backend("cpu")
    model = shape(experts=16, top_k=4)
    one = build(model, cpu)
    one.run()
    many = build(model, cpu, batch=8)
    many.run()
    distinct = many.traffic().distinct_experts
    assert 8 < distinct <= 16
    routed = model.layers[1].experts[0].expert_bytes
    rows = 7 * 2 * HIDDEN  # seven more embedding rows
    expected = one.traffic().total + rows + 2 * (distinct - 4) * routed
    assert many.traffic().total == expected


@needs_core
@pytest.mark.parametrize("name", ["gpt-oss-20b", "glm-4.7", "deepseek-v3", "kimi-k2-thinking"])
def test_a_released_model_decodes_at_its_true_bytes(name: str) -> None:
    """Two layers of each, dense and routed, in an arena of half a GiB; the whole depth is left to `validate`."""
    model = models.load(name)
    routed = next(i for i, layer in enumerate(model.layers) if layer.experts)
    cut = replace(model, layers=(model.layers[0], model.layers[routed]), embedding=replace(model.embedding, rows=999),
                  head=model.head and replace(model.head, rows=999))  # fmt: skip
    step = build(cut, get_backend("cpu"), arena_bytes=1 << 29)
    step.check(4)
    step.run()
    counted = step.traffic()
    assert counted.weights + counted.scales == cut.bytes_per_token
    step.close()


@needs_core
def test_answers_do_not_depend_on_threads() -> None:
    answers = []
    for threads in (1, None):
        step = build(shape(), get_backend("cpu", threads=threads), batch=3, context=300)
        step.run()
        answers.append(step._last.read("vocabulary"))
        step.close()
    np.testing.assert_array_equal(answers[0], answers[1])


@needs_core
def test_the_core_and_the_reference_agree_on_a_whole_step() -> None:
    """Through every layer, errors of one operation feeding the next; bf16 weights, so only sums are rounded. The
    reference gets every matrix of the core's arena in canonical order, just before its operation."""
    step = build(shape(), get_backend("cpu"), batch=2, context=50)
    program, theirs = step.programs[0], step._arena
    arena = NumpyBackend("reference").arena(theirs.pools)
    for name, size in theirs.pools.items():
        arena.write(name, 0, theirs.read(name, 0, size))
    slow = NumpyBackend("reference").compile(program, arena)
    step.run()
    for i, operation in enumerate(program.operations):
        for weight, _ in operation.weights():
            if isinstance(weight, Weight):
                wide = weight.weights.bytes // weight.rows
                for slot, row in itertools.product(range(weight.slots), range(weight.rows)):
                    at = weight.weights.at(slot) + row * wide
                    arena.write(weight.weights.pool, at, theirs.read(weight.weights.pool, at, wide, weight))
        slow.run_operation(i)
    got, expected = step._last.read("vocabulary"), slow.read("vocabulary")
    step.close()
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def spoil_weight(step: DecodeStep, pool: str) -> None:
    """Let the reference see other weights than the kernels read."""
    original = step._arena.read

    def read(name: str, offset: int, size: int, within: Any = None) -> Any:
        raw = original(name, offset, size, within)
        return (raw >> 4) | (raw << 4) if name == pool else raw

    step._arena.read = read  # type: ignore[method-assign]


@needs_core
def test_the_gate_refuses_swapped_nibbles() -> None:
    step = build(shape(), get_backend("cpu"), format="mxfp4")
    spoil_weight(step, "mxfp4.weight")
    with pytest.raises(NumericsError, match=r"tiny, batch 1, context 0, layer 0: q, k, v: output \d+ of token 0 is"):
        step.check()


@needs_core
def test_the_gate_refuses_another_expert() -> None:
    step = build(shape(), get_backend("cpu"))
    lap = step._laps[0]
    choice = lap.choice

    def other(route: str) -> Any:
        true = choice(route)
        return replace(true, slots=(true.slots + 1).astype(np.int32))

    lap.choice = other  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match="layer 1: route: token 0, expert"):
        step.check()


@needs_core
def test_the_gate_refuses_an_operation_that_did_not_run() -> None:
    step = build(shape(), get_backend("cpu"))
    lap = step._laps[0]
    run = lap.run_operation
    skipped = next(i for i, op in enumerate(lap.program.operations) if isinstance(op, ExpertsUp))
    lap.run_operation = lambda i: None if i == skipped else run(i)  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match=r"experts up: output .* is nan"):
        step.check()


def played_distance(step: DecodeStep) -> float:
    """Fewest bytes between two readings of one line of 256 bytes, from the slots routers really chose."""
    last: dict[tuple[str, int], int] = {}
    read, nearest = 0, math.inf
    for lap in [*step._laps, *step._laps]:
        lap.run()
        shared: set[int] = set()
        for op in lap.program.operations:
            choice = lap.choice(op.route) if hasattr(op, "route") else None
            chosen = sorted(set(choice.slots.ravel().tolist())) if choice else [0]
            # The gain two operations of one layer share is read once and counted once.
            for place, slots in readings(op, shared):
                for slot in chosen if slots else [0]:
                    for line in range(place.at(slot) // 256, (place.at(slot) + place.bytes + 255) // 256):
                        nearest = min(nearest, read - last.get((place.pool, line), -math.inf))
                        last[place.pool, line] = read
                    read += place.bytes
    return nearest


def test_successive_runs_read_other_places(backend: Backend) -> None:
    """The whole schedule, played: between two readings of one place lie at least `reuse` caches."""

    class Small(NumpyBackend):
        last_level_cache = 200_000

    small = Small("reference")
    small.last_level_cache = 200_000
    step = build_step(shape(), small, arena_bytes=3 << 20, reuse=5)
    assert len(step.programs) > 1
    assert played_distance(step) >= 5 * 200_000
    step.close()


class OnPaper:
    """A backend that allocates and runs nothing, for schedules of models of any size."""

    name, description, threads, memory = "cpu", "on paper", 1, 14 << 30
    matrix_formats = frozenset(FORMATS)
    usual_arena = 0

    def __init__(self, last_level_cache: int) -> None:
        self.last_level_cache = last_level_cache
        self.asked: list[int] = []

    def arena(self, pools: dict[str, int], seed: int = 0) -> Any:
        self.asked.append(sum(pools.values()))
        return SimpleNamespace(pools=dict(pools), close=lambda: None)

    def compile(self, program: Program, arena: Any) -> Any:
        assert all(arena.pools[pool] >= size for pool, size in program.pools.items())
        return SimpleNamespace(program=program, write=lambda *_: None)


@pytest.mark.parametrize(
    ("name", "fmt", "batch", "context", "cache"),
    [
        ("gpt-oss-20b", "native", 1, 0, 32 << 20), ("gpt-oss-120b", "mxfp4", 8, 4096, 50 << 20),
        ("mixtral-8x7b", "native", 1, 0, 32 << 20), ("glm-4.7", "bf16", 8, 0, 50 << 20),
        ("deepseek-v3", "native", 64, 4096, 32 << 20), ("kimi-k2-thinking", "native", 1, 0, 50 << 20),
    ],
)  # fmt: skip
def test_no_shipped_model_meets_a_place_in_the_cache(name: str, fmt: str, batch: int, context: int, cache: int) -> None:
    """Not in a whole step and not in any kind of kernel alone, whatever its routers choose."""
    paper = OnPaper(cache)
    step = build_step(models.load(name).cast(fmt), paper, batch=batch, context=context)  # type: ignore[arg-type]
    assert reuse_distance(step.programs) >= 5 * cache
    cold = []
    for kind in step.kinds:
        try:
            assert reuse_distance(step.part(kind).programs) >= 5 * cache
        except ColdError:
            cold.append(kind)
    assert set(cold) <= {"rows", "route", "attention"}
    assert ("attention" in cold) == (context == 0)


def test_the_distance_on_paper_is_that_of_plain_counting() -> None:
    """Against a list of every byte read, on schedules small enough for it."""
    rng = np.random.default_rng(5)
    for _ in range(200):
        programs = []
        for _ in range(int(rng.integers(1, 4))):
            operations = []
            for i in range(int(rng.integers(1, 5))):
                place = Place("p", int(rng.integers(0, 12)), int(rng.integers(1, 6)))
                weight = Weight("w", "attention", 1, place.bytes, "int8", place)
                operations.append(Product(f"{i}", View("x", 0, 1), View("y", 0, 1), (weight,)))
            programs.append(Program("", 1, {}, tuple(operations)))
        # (byte, the place it was read as, when that began, when the operation was over)
        last: dict[int, tuple[Place, int, int]] = {}
        now, nearest = 0, math.inf
        for program in programs * 2:
            for op in program.operations:
                place = op.matrices[0].weights  # type: ignore[attr-defined]
                for byte in range(place.offset, place.offset + place.bytes):
                    if byte in last:
                        before, first, done = last[byte]
                        nearest = min(nearest, now - (first if before == place else done))
                    last[byte] = place, now, now + place.bytes
                now += place.bytes
        assert reuse_distance(programs) == nearest


def test_two_experts_in_one_slot_are_seen() -> None:
    """Batch 8 of 16 experts in rings of four slots: slots 0 and 1 come back with the third expert."""
    step = build(shape(experts=16, top_k=2), get_backend("reference"), batch=8)
    program = step.programs[0]
    up = next(op for op in program.operations if isinstance(op, ExpertsUp))
    route = next(op for op in program.operations if op.label == up.route)
    crowded = replace(route, slots=4)  # type: ignore[call-arg]
    size = sum(w.bytes for w, routed in up.weights() if routed)
    assert reuse_distance([replace(program, operations=(crowded, up))]) <= 2 * size


def test_a_kind_alone_walks_as_far_as_the_whole(backend: Backend) -> None:
    """A tiny head, re-read each run, would come from the cache: it gets laps of its own, and so does every kind."""
    small = NumpyBackend("reference")
    small.last_level_cache = 100_000
    step = build_step(shape("mla"), small, context=40)
    for kind in step.kinds:
        if kind in ("rows", "route"):
            with pytest.raises(ColdError):
                step.part(kind)
            continue
        part = step.part(kind)
        assert set(part.kinds) <= {kind, "route"}
        assert part.check() < 1e-6
        assert played_distance(part) >= 500_000, kind
        part.close()
    step.run()  # closing a part leaves the whole
    assert step.check() < 1e-6
    step.close()


def test_traffic_is_that_of_the_runs_asked_for() -> None:
    small = NumpyBackend("reference")
    small.last_level_cache = 400_000
    step = build_step(shape(experts=16, top_k=2), small, batch=6)
    assert len(step.programs) > 2
    each = []
    for _ in step.programs:
        step.run()
        each.append(step.traffic().total)
    assert len(set(each)) > 1
    assert step.traffic(len(each)).total == pytest.approx(np.mean(each), abs=1)
    step.close()


def test_routing_laws(tmp_path: Path) -> None:
    reference = get_backend("reference")
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps([[[1, 2], [1, 3]], [[4, 5]]]))
    step = build(shape(), reference, batch=2, routing=f"trace:{trace}")
    step.run()
    first, second = (step._last.choice(r.label).ids for r in step._last.program.routes)
    # Layer 1 takes entry 1 of the trace, layer 2 entry 0.
    np.testing.assert_array_equal(np.sort(first), [[4, 5], [4, 5]])
    np.testing.assert_array_equal(np.sort(second), [[1, 2], [1, 3]])
    skewed = build(shape(experts=64), reference, batch=32, routing="zipf:2")
    even = build(shape(experts=64), reference, batch=32)
    for s in (skewed, even):
        s.run()
    assert skewed.traffic().distinct_experts < 0.7 * even.traffic().distinct_experts
    # Uniform: 64 (1 - (1 - 2/64)^32) = 40.8 expected.
    assert 34 < even.traffic().distinct_experts < 48


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": -1}, UsageError, "must not be negative"),
        ({"format": "fp7"}, UnknownNameError, "unknown format 'fp7'"),
        ({"kv_format": "int8"}, UnknownNameError, "unknown KV format"),
        ({"routing": "even"}, UsageError, "unknown routing 'even'"),
        ({"routing": "zipf:x"}, UsageError, "exponent"),
        ({"routing": "trace:/nowhere.json"}, UsageError, "not a routing trace"),
        ({"arena_bytes": 1000, "reuse": 5.0}, DeviceError, "--arena-bytes"),
        ({"arena_bytes": 1 << 20, "reuse": 5.0}, DeviceError, "would be read again before"),
        ({"arena_bytes": 1 << 30, "reuse": 1e9}, DeviceError, "too little to be timed from memory"),
    ],
)
def test_bad_requests_are_one_line(options: dict[str, Any], error: type[Exception], message: str) -> None:
    reference = get_backend("reference")
    with pytest.raises(error, match=message) as caught:
        build_step(shape().cast(options.pop("format", "native")), reference, **options)
    assert "\n" not in str(caught.value)


def test_shapes_that_do_not_fit_are_named() -> None:
    unequal = made_up.mlp("dense_mlp", 200, HIDDEN)[:1] + made_up.mlp("dense_mlp", 100, HIDDEN)[1:]
    bad = replace(shape(), layers=(replace(shape().layers[0], matrices=unequal),))
    with pytest.raises(ShapeError, match="layer 0"):
        build(bad, get_backend("reference"))
    narrow = replace(made_up.MIXERS["gqa"], heads=8)
    with pytest.raises(ShapeError, match="layer 0: attention projections give 192 outputs"):
        build(replace(shape(), layers=(replace(shape().layers[0], attention=narrow),)), get_backend("reference"))


def test_fallback_without_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moegauge.kernels.cpu.core.library", lambda: None)
    with pytest.warns(RuntimeWarning, match="compiled CPU core is absent"):
        fallback = get_backend("cpu")
    assert fallback.name == "cpu"
    assert "no compiled core" in fallback.description
    step = build(shape(), fallback, format="fp8", batch=2, context=20)
    assert step.check() < 1e-4
    stream = fallback.streams(1 << 20)[0]
    assert fallback.time(stream.run) > 0


def test_an_arena_larger_than_memory_is_one_line(backend: Backend) -> None:
    with pytest.raises(DeviceError, match=r"1125.90 TB does not fit in the .* Lower it with --arena-bytes"):
        backend.arena({"bf16.weight": 1 << 50})


def test_unknown_devices() -> None:
    with pytest.raises(UnknownNameError, match="unknown device 'tpu'"):
        get_backend("tpu")


def test_kernel_boundaries_are_listed(backend: Backend) -> None:
    step = build(shape("mla"), backend)
    assert step.kernels == len(step.kernel_names) == 1 + 8 + 2 * 10 + 1
    assert step.kernel_names[-1] == "head: logits"
    gains = [op for op in step.programs[0].operations if isinstance(op, Product) and op.gain]
    assert len(gains) == 3 + 2 + 1
    assert traffic(step._laps[0]).total > 0
    step.close()


def test_the_default_arena_holds_the_largest_matrix_of_any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moegauge.bench.step.build.MINIMUM_ARENA", 4096)
    monkeypatch.setattr("moegauge.bench.step.build.CACHES", 0)
    wide = replace(shape(), embedding=Matrix("embedding", "embedding", 5000, HIDDEN, "bf16"))  # a head of 0.96 MB, tied
    step = build_step(wide.cast("fp8"), NumpyBackend("reference"), reuse=0.0)
    assert step.check() < 0.01
    step.close()
    with pytest.raises(DeviceError, match="smaller than the largest matrices of one step"):
        build_step(wide.cast("fp8"), NumpyBackend("reference"), reuse=0.0, arena_bytes=4096)


def test_joined_latents_are_read_inside_their_register() -> None:
    """Queries from their latents twice over (A.X K2): more columns than any projection of the residual gives."""
    attention = made_up.mla(64, 4, query=24, latent=32, rope=8, nope=16, value=16)
    twice = tuple(replace(m, columns=48) if m.name == "q_b_proj" else m for m in attention.matrices)
    shape = made_up.model([made_up.dense_layer(replace(attention, matrices=twice), 32, 64)], 64)
    step = build_step(shape, get_backend("reference"), context=3, arena_bytes=1 << 24, reuse=0.0)
    for program in step.programs:
        for op in program.operations:
            assert all(v.offset + v.width <= program.registers[v.register] for v in op.views()), op.label
    step.check()
    step.close()
