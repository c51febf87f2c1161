"""A step run in segments with slices of the roof between: the same answers to the bit, every byte of both counted."""

from __future__ import annotations

from collections.abc import Iterator

import made_up
import numpy as np
import pytest

from moegauge.bench.step.build import DecodeStep, build_step
from moegauge.kernels.cpu.backend import CpuBackend, CpuStream
from moegauge.kernels.cpu.core import cores, library

pytestmark = pytest.mark.skipif(library() is None, reason="installed without a C++ compiler")

MIB = 1 << 20


@pytest.fixture(scope="module", params=sorted({1, min(2, len(cores()))}))
def backend(request: pytest.FixtureRequest) -> CpuBackend:
    return CpuBackend(threads=request.param)


@pytest.fixture(scope="module", params=[("gqa", 1, 0), ("mla", 3, 40), ("gqa", 4, 300)])
def step(backend: CpuBackend, request: pytest.FixtureRequest) -> Iterator[DecodeStep]:
    mixer, batch, context = request.param
    step = build_step(made_up.decoder(mixer), backend, batch=batch, context=context, reuse=0.0, arena_bytes=64 * MIB)
    yield step
    step.close()


def stream_of(backend: CpuBackend) -> CpuStream:
    stream = backend.streams(8 * MIB)[0]
    assert isinstance(stream, CpuStream)
    return stream


def registers(step: DecodeStep) -> dict[str, np.ndarray]:
    lap = step._laps[0]
    return {name: lap.read(name) for name in lap.program.registers}


def poison(step: DecodeStep) -> None:
    for name in step._laps[0].program.registers:
        step._laps[0].write(name, np.full_like(step._laps[0].read(name), 7.0))


@pytest.mark.parametrize("size", [1, 3000, 100_000, 1 << 40])
@pytest.mark.parametrize("reads", [True, False])
def test_cutting_changes_no_bit(backend: CpuBackend, step: DecodeStep, size: int, reads: bool) -> None:
    lap = step._laps[0]
    poison(step)
    lap.run()
    whole = registers(step)
    poison(step)
    segments = lap.run_cut(size, stream_of(backend) if reads else None)
    for name, values in registers(step).items():
        assert np.array_equal(values.view(np.uint32), whole[name].view(np.uint32)), name
    assert all(s.step_s > 0 for s in segments)
    assert all(0 <= s.step_lost_s <= s.step_s for s in segments)
    assert all((s.roof_s > 0) == (s.roof_bytes > 0) for s in segments)
    assert any(s.roof_bytes for s in segments) == reads
    if size == 1 << 40:
        assert len(segments) == 1


def test_segments_are_as_long_as_asked_and_cut_long_operations(backend: CpuBackend) -> None:
    """The head is 32 MB of 33: with segments of 2 MiB it is cut within."""
    hidden = made_up.HIDDEN
    shape = made_up.model(made_up.decoder().layers, hidden, vocabulary=32 * 10**6 // (2 * hidden))
    step = build_step(shape, backend, reuse=0.0, arena_bytes=256 * MIB)
    try:
        segments = step.run_cut(2 * MIB, stream_of(backend))
        total = step.traffic().total
    finally:
        step.close()
    assert len(segments) == pytest.approx(total / (2 * MIB), abs=3)
    # slices are whole MiB, one more than half a MiB each on average
    assert sum(s.roof_bytes for s in segments) == pytest.approx(total, rel=0.5)
    assert all(MIB <= s.roof_bytes <= 4 * MIB for s in segments)


def test_slices_go_on_where_the_last_one_ended(backend: CpuBackend, step: DecodeStep) -> None:
    stream = stream_of(backend)
    before, read = stream.at, 0
    for _ in range(3):
        read += sum(s.roof_bytes for s in step.run_cut(100_000, stream))
        assert stream.at == (before + read) % stream.bytes
