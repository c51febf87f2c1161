"""The compiled CPU core's products, every format and shape class, against float64 on unpacked weights.

The bounds follow from the arithmetic; a wrong scale, nibble order or expert is shown to be far outside them.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moegauge.errors import DeviceError
from moegauge.formats import FORMATS
from moegauge.kernels import packing
from moegauge.kernels.cpu import layout
from moegauge.kernels.cpu.core import Core, cores, library
from moegauge.kernels.cpu.structs import FORMAT_INDEX, KINDS, CMatrix, COperation, CView, region
from moegauge.kernels.program import GatedProduct, Product

pytestmark = pytest.mark.skipif(library() is None, reason="installed without a C++ compiler")

ISAS = ["AVX-512 VBMI", "AVX-512 VNNI", "AVX-512", "AVX2", "NEON", "plain C++"]


@pytest.fixture(scope="module", params=ISAS)
def core(request: pytest.FixtureRequest) -> Core:
    try:
        return Core(1, request.param)
    except DeviceError:
        pytest.skip(f"{request.param} is not to be had on this machine")


def product(core: Core, packed: packing.Packed, x: np.ndarray, weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """y [B, rows] of one matrix, through the same record a step program uses; y is poisoned first."""
    y = np.full((max(1, len(x)), packed.rows), np.nan, np.float32)
    x = np.ascontiguousarray(x, np.float32)
    tensor = np.array([packed.tensor_scale], np.float32)
    matrix = CMatrix(
        weights.ctypes.data, scales.ctypes.data, tensor.ctypes.data, 0, 0, 0, packed.rows, packed.columns,
        FORMAT_INDEX[packed.format.name],
        layout.interleaving(packed.format.name, packed.columns, core.lanes) is not None,
    )  # fmt: skip
    operations = (COperation * 1)()
    op = operations[0]
    op.kind, op.batch, op.blocks, op.n_matrices = KINDS[Product], len(x), 1, 1
    op.x, op.y = CView(x.ctypes.data, packed.columns, packed.columns), CView(y.ctypes.data, packed.rows, packed.rows)
    op.matrices = ctypes.pointer(matrix)
    memory = (weights, scales, tensor, x, y)
    core.run(core.load(operations, [region(a) for a in memory]), 0, 1)
    return y[: len(x)]


def expected(packed: packing.Packed, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(y, bound) in float64. Integer formats round inputs by half a step of 1/32767 (int8) or 1/8127 (4-bit) of the
    largest; sums of n terms in float32, in four lanes or more, by n / 4 + 16 roundings of 2^-24."""
    w = packing.unpack(packed)
    steps = {"int8": 32767, "int4": 8127, "int4_g128": 8127, "mxfp4": 8127, "nvfp4": 8127}.get(packed.format.name)
    size = np.abs(x) @ np.abs(w).T
    bound = size * (packed.columns / 4 + 16) * 2.0**-24
    if steps:
        bound += 0.5 / steps * np.abs(x).max(axis=1, keepdims=True) * np.abs(w).sum(axis=1)
    return x @ w.T, bound + 1e-30


def case(name: str, rows: int, columns: int, batch: int, seed: int) -> tuple[packing.Packed, np.ndarray]:
    rng = np.random.default_rng(seed)
    packed = packing.quantise(rng.standard_normal((rows, columns)) * 0.02, name)
    return packed, rng.standard_normal((batch, columns)).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("rows", "columns", "batch"),
    [
        (64, 512, 1), (64, 512, 64), (1, 1, 1), (3, 7, 2), (17, 130, 3), (33, 136, 5), (130, 296, 1), (16, 8, 4),
        (257, 2880, 1), (40, 1000, 7), (64, 128, 0),
    ],
)  # fmt: skip
def test_products_stay_within_their_bound(core: Core, name: str, rows: int, columns: int, batch: int) -> None:
    packed, x = case(name, rows, columns, batch, rows + columns)
    y = product(core, packed, x, *layout.pack(packed, core.lanes))
    value, bound = expected(packed, x)
    assert y.shape == value.shape
    assert (np.abs(y - value) <= bound).all()


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 90), columns=st.integers(1, 400), batch=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_any_shape(name: str, rows: int, columns: int, batch: int, seed: int) -> None:
    best = Core(1)
    packed, x = case(name, rows, columns, batch, seed)
    value, bound = expected(packed, x)
    assert (np.abs(product(best, packed, x, *layout.pack(packed, best.lanes)) - value) <= bound).all()


@pytest.mark.parametrize("name", [n for n in FORMATS if FORMATS[n].scale_bits])
def test_a_wrong_scale_is_outside_the_bound(core: Core, name: str) -> None:
    packed, x = case(name, 64, 512, 1, 0)
    weights, scales = layout.pack(packed, core.lanes)
    size = packed.format.scale_bits // 8
    middle = scales.size // size // 2 * size
    scales[middle + size - 1] ^= 1 if name in ("mxfp4", "mxfp8", "nvfp4") else 0x01 if size == 2 else 0x40
    value, bound = expected(packed, x)
    assert (np.abs(product(core, packed, x, weights, scales) - value) > bound).any()


@pytest.mark.parametrize("name", ["int4", "int4_g128", "mxfp4", "nvfp4"])
def test_a_wrong_nibble_order_is_outside_the_bound(core: Core, name: str) -> None:
    packed, x = case(name, 64, 512, 1, 0)
    weights, scales = layout.pack(packed, core.lanes)
    swapped = (weights >> 4) | (weights << 4)
    value, bound = expected(packed, x)
    assert (np.abs(product(core, packed, x, swapped, scales) - value) > bound).mean() > 0.9


def test_extreme_scales_and_every_code(core: Core) -> None:
    """Every e4m3 code but NaN, subnormal ones included, through a row each; scales from 2^-20 to 2^20."""
    every = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
    rows = len(every)
    weights = np.repeat(every[:, None], 128, axis=1)
    for scale in (2.0**-20, 1.0, 2.0**20):
        scales = np.full((2, 1), scale, np.float32).view(np.uint8)
        packed = packing.from_bytes("fp8", rows, 128, weights, scales, 1.0)
        x = np.zeros((1, 128))
        x[0, 77] = 1.0
        y = product(core, packed, x, *layout.pack(packed, core.lanes))
        np.testing.assert_array_equal(y[0], packing.unpack(packed)[:, 77])  # one product: exact


@pytest.mark.parametrize("code", [0, 1, 60, 127, 200, 254])
def test_e8m0_scales_over_their_range(core: Core, code: int) -> None:
    """2^-127, a subnormal float32, to 2^127, with inputs that bring the result back to float32."""
    weights = np.arange(256, dtype=np.uint8).reshape(16, 16)
    packed = packing.from_bytes("mxfp4", 16, 32, weights, np.full(16, code, np.uint8), 1.0)
    x = np.zeros((1, 32))
    x[0, 5] = 2.0 ** min(120, max(-100, 127 - code))
    y = product(core, packed, x, *layout.pack(packed, core.lanes))
    np.testing.assert_allclose(y[0], packing.unpack(packed)[:, 5] * x[0, 5], rtol=1e-6)


def test_a_nan_input_spoils_the_output(core: Core) -> None:
    for name in FORMATS:
        packed, x = case(name, 32, 64, 2, 0)
        x[1, 3] = np.nan
        y = product(core, packed, x, *layout.pack(packed, core.lanes))
        assert np.isfinite(y[0]).all(), name
        assert np.isnan(y[1]).all(), name


def test_the_gate_over_its_range(core: Core) -> None:
    """silu's e^x is a polynomial: from where it underflows to where it overflows, and infinities and NaN."""
    values = np.concatenate([np.linspace(-200, 200, 4001), [-1e30, 1e30, -88.7, 88.8, 0.0, np.inf, np.nan]])
    values = values.astype(np.float32).astype(np.float64)  # as the matrix holds them
    x = np.zeros((1, 16), np.float32)
    x[0, 0] = 1.0
    weights = np.zeros((2, len(values), 16))
    weights[0, :, 0], weights[1, :, 0] = values, 1.0
    y = np.full((1, len(values)), np.nan, np.float32)
    kept, matrices = [], (CMatrix * 2)()
    for i, matrix in enumerate(weights):
        packed = packing.quantise(matrix, "f32")
        data, _ = layout.pack(packed, core.lanes)
        kept.append(data)
        matrices[i] = CMatrix(
            data.ctypes.data, None, None, 0, 0, 0, packed.rows, 16, FORMAT_INDEX["f32"],
            layout.interleaving("f32", 16, core.lanes) is not None,
        )  # fmt: skip
    operations = (COperation * 1)()
    op = operations[0]
    op.kind, op.batch, op.blocks, op.n_matrices, op.matrices = KINDS[GatedProduct], 1, 1, 2, matrices
    op.x, op.y = CView(x.ctypes.data, 16, 16), CView(y.ctypes.data, len(values), len(values))
    core.run(core.load(operations, [region(a) for a in (*kept, x, y)]), 0, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = values / (1 + np.exp(-values))
    np.testing.assert_allclose(y[0], exact.astype(np.float32), rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("name", FORMATS)
def test_threads_agree(name: str) -> None:
    packed, x = case(name, 517, 1024, 3, 0)
    answers = []
    for threads in range(1, len(cores()) + 1):
        core = Core(threads)
        answers.append(product(core, packed, x, *layout.pack(packed, core.lanes)))
    for other in answers[1:]:
        np.testing.assert_array_equal(answers[0], other)


def test_layout_keeps_every_byte() -> None:
    for name in FORMATS:
        packed, _ = case(name, 50, 96, 1, 3)
        weights, scales = layout.pack(packed, 8)
        np.testing.assert_array_equal(np.sort(weights), np.sort(packed.weights.reshape(-1)))
        np.testing.assert_array_equal(np.sort(scales), np.sort(packed.scales.reshape(-1)))


def test_too_many_threads_is_one_line() -> None:
    with pytest.raises(DeviceError, match="threads asked for"):
        Core(10_000)
    with pytest.raises(DeviceError, match="threads asked for"):
        Core(0)
