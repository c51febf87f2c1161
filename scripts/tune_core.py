"""Time the CPU core's choices: expert products with other prefetch distances, chunk sizes, row orders.

    python scripts/tune_core.py --format fp8,mxfp4 --model deepseek-v3

Prints the median share of the roof. `rows apart` reads the same bytes as if rows lay one after another, four of them
side by side; its answers are wrong (the bytes are interleaved), so it is only a timing. 4-bit formats have no such
reader.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np

from moegauge import models
from moegauge.bench.step.rings import Layout
from moegauge.kernels.cpu.backend import CpuBackend, CpuRunnable
from moegauge.kernels.program import Product, Program, View
from moegauge.shape import Matrix

PREFETCH, CHUNK = 8192, 1 << 18  # bytes: the core's own (kernels/cpu/native/executor.h)
VARIANTS = {
    "as it is": (PREFETCH, CHUNK, True),
    "no prefetch": (0, CHUNK, True),
    "prefetch 2 KiB": (2048, CHUNK, True),
    "prefetch 4 KiB": (4096, CHUNK, True),
    "prefetch 16 KiB": (16384, CHUNK, True),
    "chunks of 64 KiB": (PREFETCH, 1 << 16, True),
    "chunks of 1 MiB": (PREFETCH, 1 << 20, True),
    "rows apart": (PREFETCH, CHUNK, False),
}
BYTES = 300_000_000  # one sample reads at least this: some 6 ms, so that the roof beside it sees the same moment


def experts(backend: CpuBackend, model: str, name: str) -> tuple[CpuRunnable, int, Callable[[], None]]:
    """Products with many experts' gate matrices of one input; the bytes they read; what gives the arena back."""
    shape = models.load(model)
    pool = next(pool for layer in shape.layers for pool in layer.experts)
    rows, columns = pool.matrices[0].rows, pool.matrices[0].columns
    matrix = Matrix("gate_proj", "routed_expert", rows, columns, name)
    layout, k = Layout(), pool.top_k
    x, y = View("x", 0, columns), View("y", 0, rows * k)
    count = -(-BYTES // (k * matrix.bytes))
    products = tuple(Product("experts", x, y, tuple(layout.weight(matrix) for _ in range(k))) for _ in range(count))
    arena = backend.arena(layout.demand)
    runnable = backend.compile(Program(model, 1, {"x": columns, "y": rows * k}, products), arena)
    assert isinstance(runnable, CpuRunnable)
    runnable.write("x", np.random.default_rng(0).standard_normal((1, columns), dtype=np.float32))
    return runnable, sum(w.bytes for op in products for w, _ in op.weights()), arena.close


def interleaving(runnable: CpuRunnable, interleaved: bool) -> None:
    """Let the core take every matrix for interleaved, or not."""
    for record in runnable._code.operations:
        for i in range(record.n_matrices):
            record.matrices[i].interleaved = interleaved


def main() -> None:
    """Every variant of every format, as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", default="bf16,fp8,int8,int4,mxfp4,nvfp4")
    parser.add_argument("--model", default="deepseek-v3")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    backend = CpuBackend()
    streams = backend.streams(1 << 29)
    best = max(streams, key=lambda s: max(s.bytes / backend.time(s.run) for _ in range(6)))
    print(f"{backend.description}; {options.model}; roof: {best.pattern}")
    print(f"{'':18}", *(f"{name:>8}" for name in VARIANTS), sep="  ")
    for name in options.format.split(","):
        runnable, size, close = experts(backend, options.model, name)
        shares: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        order = [
            v for v, (_, _, interleaved) in VARIANTS.items() if interleaved or name not in ("int4", "mxfp4", "nvfp4")
        ]
        for turn in range(options.rounds):
            for variant in order[turn % len(order) :] + order[: turn % len(order)]:
                prefetch, chunk, interleaved = VARIANTS[variant]
                backend.tune(prefetch, chunk)
                interleaving(runnable, interleaved)
                before = backend.time(best.run)
                seconds = backend.time(runnable.run)
                after = backend.time(best.run)
                shares[variant].append(size / seconds / (best.bytes * 2 / (before + after)))
        close()
        print(
            f"{name:18}",
            *(f"{statistics.median(s):{len(v)}.3f}" if (s := shares[v]) else " " * len(v) for v in VARIANTS),
            sep="  ",
        )


if __name__ == "__main__":
    main()
