"""Measure the host seconds of a GPU point: composing, lowering and the gate's reference, per operation.

    TRITON_INTERPRET=1 python scripts/host_times.py

What `moegauge.bench.plan.budget` estimates with. Capturing a graph and compiling kernels are not in it.
"""

from __future__ import annotations

import os
import time

import numpy as np

from moegauge import models
from moegauge.bench.step.build import build_step, step_kinds
from moegauge.kernels.program import Route
from moegauge.kernels.reference import Reference
from moegauge.kernels.triton.backend import TritonBackend

POINTS = (("deepseek-v3", "fp8"), ("gpt-oss-120b", "mxfp4"))
SAMPLED = 120  # operations whose reference is timed


def main() -> None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
    backend = TritonBackend(device="cpu")
    backend.processors, backend.last_level_cache, backend.memory = 132, 60 << 20, 6 << 30
    print("model         format  operations  build ms/op  reference ms/op: 16 outputs  2 outputs")
    for name, fmt in POINTS:
        shape = models.resolve(name).cast(fmt)
        step = build_step(shape, backend)
        begin = time.perf_counter()
        for _ in range(3):  # a build composes three times: demand, laps, places
            step_kinds(shape)
        backend.compile(step.programs[0], step._arena)
        built = time.perf_counter() - begin
        lap, rng, costs = step._laps[0], np.random.default_rng(0), []
        for register, width in lap.program.registers.items():
            lap.write(register, rng.standard_normal((1, width)).astype(np.float32))
        operations = [op for op in lap.program.operations[:SAMPLED] if not isinstance(op, Route)]
        for rows in (16, 2):
            reference = Reference(step._arena, backend.precision, lap.choice, lap.read, rng, rows)
            begin = time.perf_counter()
            for op in operations:
                reference.expect(op)
            costs.append(1e3 * (time.perf_counter() - begin) / len(operations))
        print(
            f"{name:13} {fmt:6} {step.kernels:11} {1e3 * built / step.kernels:12.2f} {costs[0]:28.2f} {costs[1]:10.2f}"
        )
        step.close()


if __name__ == "__main__":
    main()
