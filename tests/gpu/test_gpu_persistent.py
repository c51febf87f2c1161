"""The persistent mode on the GPU: its barriers, its answers, and a grid that cannot be resident."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("gpu_programs", Path(__file__).with_name("gpu_programs.py"))
programs = sys.modules.setdefault("gpu_programs", importlib.util.module_from_spec(_SPEC))
_SPEC.loader.exec_module(programs)

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def persistent(backend):
    """The same GPU, whose steps are one launch."""
    from moegauge.kernels.triton.backend import TritonBackend

    return TritonBackend(launch_mode="persistent")


def answers(backend, arena, program, runs=1):
    """Every register after each of some runs from the same start."""
    runnable = backend.compile(program, arena)
    found = []
    for _ in range(runs):
        programs.start(runnable, 0.2)
        runnable.run()
        backend.synchronize()
        found.append({name: runnable.read(name) for name in program.registers})
    return found


@pytest.mark.parametrize("fmt", ["bf16", "fp8", "int8", "int4", "int4_g128", "mxfp4", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("batch", [1, 2, 16])
def test_expert_layers_pass_the_gate(persistent, arena, fmt, batch):
    runnable = persistent.compile(programs.layer(fmt, 1024, 512, 32, 4, batch), arena)
    programs.start(runnable)
    programs.gate(persistent, arena, runnable)


@pytest.mark.parametrize("cache", ["bf16", "fp8"])
@pytest.mark.parametrize("kind", ["gqa", "mla"])
@pytest.mark.parametrize(("batch", "length"), [(1, 0), (1, 1), (1, 4096), (3, 777)])
def test_attention_passes_the_gate(persistent, arena, kind, cache, batch, length):
    runnable = persistent.compile(programs.attention(kind, cache, 16, batch, length), arena)
    programs.start(runnable, 0.2)
    programs.gate(persistent, arena, runnable)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_layer_without_attention_gives_the_numbers_of_the_graph(persistent, arena, batch):
    import numpy as np

    from moegauge.kernels.triton.backend import TritonBackend

    program = programs.layer("mxfp4", 1024, 512, 32, 4, batch)
    (graph,), (one,) = answers(TritonBackend(launch_mode="graph"), arena, program), answers(persistent, arena, program)
    for name in program.registers:
        # The norm's sum of squares is added in another order, so its bfloat16 result may differ by one unit.
        np.testing.assert_allclose(one[name], graph[name], rtol=2e-2, atol=2e-3 * np.abs(graph[name]).max())


def test_a_hundred_runs_of_the_largest_grid_agree_bit_for_bit(persistent, arena):
    """Every run passes some ten barriers with every program that fits; a stale read or a lost arrival shows as another
    number or as a launch that never ends."""
    import numpy as np

    program = programs.layer("mxfp4", 1024, 512, 32, 4, 2)
    first, *others = answers(persistent, arena, program, 100)
    for i, other in enumerate(others):
        for name in program.registers:
            assert np.array_equal(first[name], other[name]), (i, name)


def test_any_smaller_grid_gives_the_same_numbers(backend, persistent, arena):
    import numpy as np

    from moegauge.kernels.triton.launching.persistent import Persistent

    program = programs.layer("fp8", 1024, 512, 32, 4, 1)
    runnable = persistent.compile(program, arena)
    found = []
    for grid in (None, 1, 33, backend.processors):
        one = Persistent(runnable._launches, "cuda", backend.capability, backend.processors, grid=grid)
        programs.start(runnable)
        one.step()
        backend.synchronize()
        found.append({name: runnable.read(name) for name in program.registers})
    for other in found[1:]:
        for name in program.registers:
            assert np.array_equal(found[0][name], other[name]), name


def test_a_grid_that_cannot_be_resident_is_refused_and_does_not_hang(backend, persistent, arena):
    from moegauge.errors import DeviceError
    from moegauge.kernels.triton.launching.persistent import Persistent

    runnable = persistent.compile(programs.layer("fp8", 1024, 512, 32, 4, 1), arena)
    one = Persistent(runnable._launches, "cuda", backend.capability, backend.processors, grid=64 * backend.processors)
    with pytest.raises(DeviceError, match="not resident"):
        one.step()
