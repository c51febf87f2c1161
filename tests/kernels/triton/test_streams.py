"""Streams of every width and chains of empty kernels under the interpreter; what is compiled once for all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

CODE = """
import torch
from moegauge.kernels.triton.launching.empty_chain import Boundary, Chain
from moegauge.kernels.triton.backend import TritonBackend, TritonStream
backend = TritonBackend("cpu")
buffer = torch.randint(0, 1000, (1 << 14,), dtype=torch.int32)
for width in (4, 8, 16):
    for unroll in (1, 4):
        stream = TritonStream(buffer, 1, (2, 4, unroll), width)
        assert stream.bytes <= buffer.numel() * 4 and stream.bytes % (32 * 4 * width * unroll) == 0
        stream.run()
        lanes = 8 * width * 4
        want = 0
        rows = buffer[: stream.bytes // 4].reshape(-1, unroll, lanes)
        for program in range(2):
            total = torch.zeros(lanes, dtype=torch.int32)
            for turn in rows[program::2].reshape(-1, lanes):
                total ^= turn
            want = total.sum(dtype=torch.int32)
            assert stream._out[program] == want, (width, unroll, program)
for boundary, nodes in ((Boundary("eager"), [5] * 3), (Boundary("eager", 2, 1, counts=True), [5] * 7)):
    chain = Chain(5, boundary, 3, "cpu")
    chain.run()
    assert chain.counts.tolist() == nodes
assert backend.chains == ("eager",)
print("same")
"""


def test_streams_read_every_word_once_and_chains_run_every_node():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "same", done.stderr[-2000:]


def test_launches_alike_but_for_addresses_and_sizes_are_compiled_once():
    import torch

    from moegauge.kernels.triton.launching.launch import Launch
    from moegauge.kernels.triton.launching.precompile import distinct

    memory = torch.zeros(64, dtype=torch.int32)

    def launch(x, width=4, warps=4, **constants):
        return Launch("kernel", (1,), {"x": x, "width": width}, {"BLOCK": 8, **constants}, warps=warps)

    alike = [launch(memory), launch(memory[4:], 99)]
    assert len(distinct(alike)) == 1
    assert len(distinct([*alike, launch(memory[1:])])) == 2  # not on 16 bytes
    assert len(distinct([*alike, launch(memory.to(torch.int64))])) == 2
    assert len(distinct([*alike, launch(memory, BLOCK=16)])) == 2
    assert len(distinct([*alike, launch(memory, warps=8)])) == 2


def test_a_sixteen_byte_stream_loads_sixteen_bytes():
    from moegauge.kernels.triton.inspect import compile_report

    assert [compile_report.access_bytes(f"LDG.E{s} R4, desc[UR4][R2.64]") for s in ("", ".64", ".EF.128", ".U8")] == [
        4,
        8,
        16,
        1,
    ]
    good = {"case": "c", "target": 90, "registers": 64, "shared": 0, "stack": 0, "wide_loads": 0, "per_weight": 0}
    assert not compile_report.Report(**good, budget=0, access=16, wanted=16).fault
    assert "loads 8 bytes" in compile_report.Report(**good, budget=0, access=8, wanted=16).fault
    widths = {case.access for case in compile_report.cases(90, True) if case.kernel == "stream.stream"}
    assert widths == {4, 8, 16}


def test_programs_that_fit_are_bounded_by_warps_registers_and_shared_memory():
    from moegauge.kernels.triton.launching.residency import resident

    assert resident(32, 0, 4, 233472, (9, 0)) == 16  # 64 warps
    assert resident(32, 0, 4, 102400, (8, 9)) == 12  # 48 warps
    assert resident(128, 0, 1, 233472, (9, 0)) == 16  # 65,536 registers
    assert resident(32, 77824, 8, 233472, (9, 0)) == 2  # shared memory


def test_empty_operations_run_on_the_cpu_core():
    from moegauge.kernels.cpu.core import library

    if library() is None:
        pytest.skip("the compiled core was not built")
    from moegauge.bench.clock.boundaries import measure_floor
    from moegauge.kernels.cpu.backend import CpuBackend

    backend = CpuBackend(1)
    assert backend.chains == ("operation", "product")
    for name in backend.chains:
        floor = measure_floor(backend, name, rounds=3)
        assert len(floor.samples_us) == 3
