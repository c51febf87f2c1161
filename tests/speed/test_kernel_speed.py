"""Expert products at batch 1 beside the read roof, and what a user would pick instead in torch.

    python -m pytest tests/speed/test_kernel_speed.py --benchmark-only --benchmark-json speed.json

`extra_info` holds bytes, GB/s, the roof measured around every round, and the median of the paired ratios. Matrices
rotate through an arena larger than five last-level caches, so every round reads memory.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moegauge.bench.step.rings import Layout
from moegauge.errors import DeviceError
from moegauge.kernels.cpu.backend import CpuBackend
from moegauge.kernels.cpu.core import library
from moegauge.kernels.devices import get_backend
from moegauge.kernels.program import Product, Program, View
from moegauge.shape import Matrix

pytestmark = pytest.mark.skipif(library() is None, reason="installed without a C++ compiler")

FORMATS = ("bf16", "fp8", "int8", "int4", "mxfp4", "mxfp8", "nvfp4")
# (rows, columns) of one expert's gate or up projection, and experts per token: config.json of each model.
SHAPES = {"deepseek-v3": (2048, 7168, 8), "glm-4.7": (1536, 5120, 8), "gpt-oss": (2880, 2880, 4)}
ROUNDS = 30
ROUND_BYTES = (
    200_000_000  # a round reads at least this: milliseconds, so that a paired roof sample sees the same minute
)


@pytest.fixture(scope="module")
def cpu() -> Any:
    return get_backend("cpu")


@pytest.fixture(scope="module")
def roof(cpu: Any) -> Callable[[], float]:
    """Bytes/s of the fastest read pattern here, measured anew on each call."""
    streams = cpu.streams(1 << 28)
    best = min(streams, key=lambda s: min(cpu.time(s.run) for _ in range(5)))
    return lambda: best.bytes / cpu.time(best.run)


def paired(benchmark: Any, cpu: Any, roof: Callable[[], float], run: Callable[[], Any], size: int) -> None:
    """Time `run`, a roof sample before each round, and note the ratios."""
    samples: list[float] = []
    seconds: list[float] = []

    def before() -> None:
        samples.append(roof())

    def timed() -> None:
        seconds.append(cpu.time(run))

    benchmark.pedantic(timed, setup=before, rounds=ROUNDS, warmup_rounds=2)
    ratios = [size / s / r for s, r in zip(seconds, samples, strict=True)][2:]
    benchmark.extra_info.update(
        device=cpu.description,
        bytes=size,
        gb_per_s=round(size / statistics.median(seconds) / 1e9, 2),
        roof_gb_per_s=round(statistics.median(samples) / 1e9, 2),
        roof_fraction=round(statistics.median(ratios), 3),
    )


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_core(benchmark: Any, cpu: Any, roof: Callable[[], float], name: str, model: str) -> None:
    rows, columns, experts = SHAPES[model]
    matrix = Matrix("gate_proj", "routed_expert", rows, columns, name)
    times = max(2 * experts, -(-ROUND_BYTES // matrix.bytes))
    layout = Layout()
    x, y = View("x", 0, columns), View("y", 0, rows * experts)
    operations = tuple(
        Product("experts", x, y, tuple(layout.weight(matrix) for _ in range(experts)))
        for _ in range(-(-times // experts))
    )
    arena = cpu.arena(layout.demand)
    runnable = cpu.compile(Program(model, 1, {"x": columns, "y": rows * experts}, operations), arena)
    runnable.write("x", np.random.default_rng(0).standard_normal((1, columns), dtype=np.float32))
    size = sum(w.bytes for op in operations for w, _ in op.weights())
    paired(benchmark, cpu, roof, runnable.run, size)
    arena.close()


def _torch_products(name: str, rows: int, columns: int) -> tuple[Callable[[], Any], int]:
    """One product of torch's own for a matrix, and the bytes it must read."""
    torch = pytest.importorskip("torch")
    x = torch.randn(1, columns, dtype=torch.bfloat16)
    if name == "bf16":
        w = torch.randn(rows, columns, dtype=torch.bfloat16)
        return lambda: torch.nn.functional.linear(x, w), 2 * rows * columns
    if name == "int8":
        q = torch.randint(-128, 127, (rows, columns), dtype=torch.int8)
        scales = torch.rand(rows, dtype=torch.bfloat16)
        return lambda: torch.ops.aten._weight_int8pack_mm(x, q, scales), rows * columns + 2 * rows
    codes = torch.randint(0, 15, (rows, columns), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.rand(columns // 32, rows, 2, dtype=torch.bfloat16)  # scale and zero point
    return (
        lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 32, scales),
        rows * columns // 2 + columns // 32 * rows * 4,
    )


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("name", ["bf16", "int8", "int4"])
def test_torch(benchmark: Any, cpu: Any, roof: Callable[[], float], name: str, model: str) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(cpu.threads)
    rows, columns, _ = SHAPES[model]
    _, one = _torch_products(name, 32, columns)
    size = one // 32 * rows
    products = [_torch_products(name, rows, columns) for _ in range(max(2, -(-ROUND_BYTES // size)))]

    def run() -> None:
        for product, _ in products:
            product()

    paired(benchmark, cpu, roof, run, sum(s for _, s in itertools.chain(products)))


@pytest.mark.parametrize("isa", ["AVX-512 VBMI", "AVX-512 VNNI", "AVX-512", "AVX2", "NEON", "plain C++"])
@pytest.mark.parametrize("name", FORMATS)
def test_from_cache(benchmark: Any, name: str, isa: str) -> None:
    """How fast one thread decodes a matrix that stays in its cache: what the arithmetic alone allows. Processor time,
    so that a busy machine does not show."""
    try:
        core = CpuBackend(1, isa)
    except DeviceError:
        pytest.skip(f"{isa} is not to be had on this machine")
    rows, columns = 16, 4096
    layout = Layout()
    weight = layout.weight(Matrix("gate_proj", "routed_expert", rows, columns, name))
    operation = Product("cached", View("x", 0, columns), View("y", 0, 64 * rows), (weight,) * 64)
    arena = core.arena(layout.demand)
    runnable = core.compile(Program("cached", 1, {"x": columns, "y": 64 * rows}, (operation,) * 16), arena)
    runnable.write("x", np.random.default_rng(0).standard_normal((1, columns), dtype=np.float32))
    runnable.run()
    seconds: list[float] = []

    def timed() -> None:
        start = time.process_time()
        runnable.run()
        seconds.append(time.process_time() - start)

    benchmark.pedantic(timed, rounds=20)
    benchmark.extra_info.update(device=core.description, gb_per_s=round(16 * 64 * weight.bytes / min(seconds) / 1e9, 1))
