"""Every kernel and format on the GPU against float64."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("gpu_programs", Path(__file__).with_name("gpu_programs.py"))
programs = sys.modules.setdefault("gpu_programs", importlib.util.module_from_spec(_SPEC))
_SPEC.loader.exec_module(programs)

pytestmark = pytest.mark.gpu
LAUNCH_MODES = importlib.import_module("moegauge.kernels.triton.backend").LAUNCH_MODES
FORMATS = ("bf16", "fp8", "int8", "int4", "int4_g128", "mxfp4", "mxfp8", "nvfp4")


def gated(backend, arena, program, scale=1.0):
    runnable = backend.compile(program, arena)
    programs.start(runnable, scale)
    programs.gate(backend, arena, runnable)
    return runnable


@pytest.mark.parametrize("fmt", [*FORMATS, "f32"])
@pytest.mark.parametrize(("rows", "columns"), [(2048, 7168), (5120, 1536), (2880, 2880), (64, 256), (40, 100)])
@pytest.mark.parametrize("batch", [1, 3])
def test_dense_products(backend, arena, fmt, rows, columns, batch):
    gated(backend, arena, programs.product(fmt, rows, columns, batch))


@pytest.mark.parametrize("fmt", ["bf16", "fp8", "mxfp4"])
@pytest.mark.parametrize("batch", [8, 9, 17, 64])
def test_dense_products_of_many_tokens(backend, arena, fmt, batch):
    gated(backend, arena, programs.product(fmt, 1024, 2048, batch, accumulate=True))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("batch", [1, 2, 16])
def test_expert_layers(backend, arena, fmt, batch):
    gated(backend, arena, programs.layer(fmt, 1024, 512, 32, 4, batch))


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (4, 4), (8, 2)])
def test_one_expert_all_experts_and_repeated_experts(backend, arena, batch, experts, top_k):
    gated(backend, arena, programs.layer("mxfp4", 256, 128, experts, top_k, batch, shared=""))


@pytest.mark.parametrize("cache", ["bf16", "fp8"])
@pytest.mark.parametrize("kind", ["gqa", "mla"])
@pytest.mark.parametrize(("batch", "length"), [(1, 0), (1, 1), (1, 4096), (3, 777)])
def test_attention(backend, arena, kind, cache, batch, length):
    gated(backend, arena, programs.attention(kind, cache, 16, batch, length), 0.2)


@pytest.mark.parametrize("mode", LAUNCH_MODES)
def test_every_launch_mode_gives_the_same_numbers(backend, arena, mode):
    import numpy as np

    from moegauge.kernels.triton.backend import TritonBackend

    if mode == "pdl" and backend.capability < (9, 0):
        pytest.skip("programmatic dependent launch needs compute capability 9.0")
    program = programs.layer("mxfp4", 1024, 512, 32, 4, 2)
    answers = []
    for name in ("eager", mode):
        runnable = TritonBackend(launch_mode=name).compile(program, arena)
        for _ in range(3):
            programs.start(runnable)
            runnable.run()
            backend.synchronize()
        answers.append({name: runnable.read(name) for name in program.registers})
    for name in program.registers:
        assert np.array_equal(answers[0][name], answers[1][name]), name


def test_the_read_roof_is_plausible(backend):
    """Above a tenth of a terabyte a second and below any memory there is: a cached or skipped read shows here."""
    stream = backend.streams(max(1 << 30, 10 * backend.last_level_cache))[3]
    stream.run()
    rate = stream.bytes / min(backend.time(stream.run) for _ in range(5))
    assert 1e11 < rate < 1.2e13


def test_every_stream_of_the_sweep_is_slower_than_any_memory(backend):
    """A stream whose loads were optimised away would be faster than 12 TB/s."""
    for stream in backend.sweep(max(1 << 30, 10 * backend.last_level_cache))[::11]:
        stream.run()
        rate = stream.bytes / min(backend.time(stream.run) for _ in range(3))
        assert 1e10 < rate < 1.2e13, stream.pattern


def test_a_chain_runs_every_node_in_order_and_has_a_floor(backend):
    from moegauge.bench.clock.boundaries import measure_floor
    from moegauge.kernels.triton.launching.empty_chain import BOUNDARIES, Chain

    for name in backend.chains:
        chain = Chain(10, BOUNDARIES[name], backend.processors, backend.device)
        chain.run()
        backend.synchronize()
        first = chain.counts.clone()
        chain.run()
        backend.synchronize()
        assert (chain.counts - first == 10).all(), name
        assert measure_floor(backend, name, rounds=5).us_per_kernel > 0, name


def test_a_profile_tells_grid_registers_and_instructions(backend, arena):
    runnable = backend.compile(programs.layer("mxfp4", 1024, 512, 32, 4, 1), arena)
    programs.start(runnable)
    runnable.run()
    backend.synchronize()
    found = {one.kernel: one for one in runnable.launches()}
    up = found["experts_up"]
    assert up.resident > 0
    assert 0 < up.registers <= 255
    assert 0.5 < up.instructions_per_weight < 20
    assert up.weights >= 4 * 2 * 1024 * 512


def test_too_large_an_arena_and_too_many_tokens_are_one_clear_line(backend, arena):
    from moegauge.errors import DeviceError

    with pytest.raises(DeviceError, match="arena-bytes"):
        backend.arena({"bf16.weight": 1 << 44})
    with pytest.raises(DeviceError, match="at most 64"):
        backend.compile(programs.product("bf16", 64, 256, 65), arena)
