"""Packers against independent definitions: ml_dtypes, the OCP tables, gpt-oss and compressed-tensors layouts."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moegauge.errors import NumericsError
from moegauge.formats import FORMATS, get_format
from moegauge.kernels import codes, content, packing

# OCP MX 1.0, table of FP4 E2M1, codes 0 to 15.
OCP_E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def one(format_name: str, weights: list[int], scales: list[int], columns: int, tensor: float = 1.0) -> np.ndarray:
    packed = packing.from_bytes(
        format_name, 1, columns, np.array(weights, np.uint8), np.array(scales, np.uint8), tensor
    )
    return packing.unpack(packed)[0]


def test_every_e4m3_code_is_ml_dtypes() -> None:
    theirs = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    np.testing.assert_array_equal(codes.E4M3, theirs)
    np.testing.assert_array_equal(np.signbit(codes.E4M3[:255]), np.signbit(theirs[:255]))


def test_every_e4m3_code_is_torch() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float64).numpy()
    np.testing.assert_array_equal(codes.E4M3, theirs)


def test_every_e2m1_code_is_the_ocp_table() -> None:
    np.testing.assert_array_equal(codes.E2M1, OCP_E2M1)
    assert np.signbit(codes.E2M1[8])


def test_every_e8m0_code() -> None:
    theirs = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    np.testing.assert_array_equal(codes.E8M0, theirs)
    assert codes.E8M0[0] == 2.0**-127
    assert np.isnan(codes.E8M0[255])


@pytest.mark.parametrize(
    ("encode", "dtype", "limit"),
    [(codes.encode_e4m3, ml_dtypes.float8_e4m3fn, 448.0), (codes.encode_e2m1, ml_dtypes.float4_e2m1fn, 6.0)],
)
def test_encoding_rounds_as_ml_dtypes_does(encode, dtype, limit: float) -> None:
    table = np.arange(128 if limit > 6 else 8, dtype=np.uint8).view(dtype).astype(np.float64)
    table = table[np.isfinite(table)]
    middles = (table[1:] + table[:-1]) / 2
    near = np.concatenate([table, middles, np.nextafter(middles, 0), np.nextafter(middles, 1e9)])
    values = np.concatenate([near, -near, np.random.default_rng(0).uniform(-limit, limit, 1000)])
    # ml_dtypes rounds through float32 for narrow types, where a double beside a midpoint is the midpoint.
    values = values.astype(np.float32).astype(np.float64)
    expected = values.astype(np.float32).astype(dtype).view(np.uint8)
    np.testing.assert_array_equal(
        encode(values) & (0xFF if limit > 6 else 0xF), expected & (0xFF if limit > 6 else 0xF)
    )


def test_bf16_rounds_as_ml_dtypes_does() -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    bits[:6] = [0x00000000, 0x80000000, 0x7F800000, 0x7F7FFFFF, 0x3F808000, 0x3F818000]
    values = bits.view(np.float32)
    finite = ~np.isnan(values)
    expected = values[finite].astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(codes.encode_bf16(values[finite]), expected)
    assert np.isnan(codes.decode_bf16(codes.encode_bf16(np.array([np.nan, -np.nan])))).all()


def test_gpt_oss_blocks_layout() -> None:
    """`_blocks` [.., 16] bytes of 32 weights, lower nibble first; `_scales` biased by 127."""
    blocks = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] + [0] * 8
    values = one("mxfp4", blocks, [129], 32)
    np.testing.assert_array_equal(values[:16], np.array(OCP_E2M1) * 4)


def test_compressed_tensors_int4_layout() -> None:
    """pack-quantized: eight values + 8 to an int32, the first in the lowest bits."""
    values = [-8, -7, -1, 0, 1, 2, 6, 7]
    word = sum((v + 8) << (4 * i) for i, v in enumerate(values))
    raw = list(word.to_bytes(4, "little")) + [0x88] * 12
    got = one("int4", raw, list(np.array([0.5], ml_dtypes.bfloat16).view(np.uint8)), 32)
    np.testing.assert_array_equal(got, np.array(values + [0] * 24) * 0.5)


def test_nvfp4_multiplies_both_scales() -> None:
    got = one("nvfp4", [0x77] * 8, [0x38], 16, tensor=0.25)  # 6 * 1.0 * 0.25
    np.testing.assert_array_equal(got, np.full(16, 1.5))


def test_fp8_blocks_of_128_by_128() -> None:
    v = np.ones((129, 129))
    v[128, :] = 448 * 3
    v[:128, 128] = 448 * 2
    packed = packing.quantise(v, "fp8")
    np.testing.assert_allclose(packed.scales.view(np.float32), [[1 / 448, 2], [3, 3]], rtol=1e-6)
    np.testing.assert_allclose(packing.unpack(packed), v, rtol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 300),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_round_trip_is_within_half_a_step(name: str, rows: int, columns: int, seed: int, size: float) -> None:
    fmt = get_format(name)
    v = np.random.default_rng(seed).standard_normal((rows, columns)) * size
    packed = packing.quantise(v, name)
    assert packed.weights.nbytes == fmt.weight_bytes(rows, columns)
    assert packed.bytes == fmt.bytes(rows, columns)
    error = np.abs(packing.unpack(packed) - v)
    # Half a step of the coarsest code, relative to the largest weight sharing a scale; clamped ends cost a little more.
    share = {
        "f32": 2.0**-24, "bf16": 2.0**-8, "fp8": 2.0**-4, "int8": 0.5 / 127 + 2e-3,
        "int4": 0.5 / 7 + 0.03, "int4_g128": 0.5 / 7 + 0.03, "mxfp4": 1 / 3 + 1e-9, "nvfp4": 0.25,
        "mxfp8": 2.0**-3 + 1e-9,
    }[name]  # fmt: skip
    if name in ("mxfp4", "nvfp4") and size < 1e-20:  # scales at their smallest: e8m0 still reaches 2^-127
        share = 0.5
    assert error.max() <= share * np.abs(v).max() + 1e-44


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros(name: str) -> None:
    assert not packing.unpack(packing.quantise(np.zeros((3, 40)), name)).any()


@pytest.mark.parametrize("name", ["f32", "bf16", "fp8", "mxfp8"])
def test_nan_stays_where_it_is(name: str) -> None:
    v = np.ones((2, 40))
    v[1, 3] = np.nan
    np.testing.assert_array_equal(np.isnan(packing.unpack(packing.quantise(v, name))), np.isnan(v))


@pytest.mark.parametrize(("name", "group"), [("mxfp4", 32), ("nvfp4", 16)])
def test_nan_marks_its_group(name: str, group: int) -> None:
    v = np.ones((2, 64))
    v[1, group + 3] = np.nan
    expected = np.zeros((2, 64), bool)
    expected[1, group : 2 * group] = True
    np.testing.assert_array_equal(np.isnan(packing.unpack(packing.quantise(v, name))), expected)


@pytest.mark.parametrize("name", ["int8", "int4", "int4_g128"])
def test_integers_refuse_nan(name: str) -> None:
    with pytest.raises(NumericsError, match=f"{name} cannot hold NaN"):
        packing.quantise(np.array([[1.0, np.nan]]), name)


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("f32", "bf16")])
def test_infinity_is_refused(name: str) -> None:
    with pytest.raises(NumericsError, match="infinity"):
        packing.quantise(np.array([[1.0, np.inf]]), name)


@pytest.mark.parametrize("name", FORMATS)
def test_arena_content_is_valid_and_of_one_size(name: str) -> None:
    fmt, rows, columns = get_format(name), 128, 2048
    weights = content.block(f"{name}.weight", 7)[: fmt.weight_bytes(rows, columns)]
    tensor_bytes = fmt.tensor_scale_bits // 8
    scales = (
        content.block(f"{name}.scale", 7)[: fmt.scale_bytes(rows, columns) - tensor_bytes]
        if fmt.scale_bits
        else weights[:0]
    )
    tensor = float(content.block(f"{name}.tensor", 7)[:4].view(np.float32)[0]) if tensor_bytes else 1.0
    values = packing.unpack(packing.from_bytes(name, rows, columns, weights, scales, tensor))
    assert np.isfinite(values).all()
    assert 0.7 * content.WEIGHT_STD < values.std() < 1.3 * content.WEIGHT_STD
    assert (values == 0).mean() < 0.2  # e2m1 has two zeros among sixteen codes


def test_filling_is_seeded_and_never_repeats_in_place() -> None:
    a, b, c = (np.empty(3 * content.BLOCK_BYTES + 100, np.uint8) for _ in range(3))
    content.fill(a, "mxfp4.weight", 1)
    content.fill(b, "mxfp4.weight", 1)
    content.fill(c, "mxfp4.weight", 2)
    np.testing.assert_array_equal(a, b)
    assert (a != c).mean() > 0.9
    assert (a[: content.BLOCK_BYTES] != a[content.BLOCK_BYTES : 2 * content.BLOCK_BYTES]).mean() > 0.9


@pytest.mark.parametrize("exponent", range(-127, 125))
def test_mxfp4_scales_are_exact_at_every_power_of_two(exponent: int) -> None:
    """OCP MX 1.0 section 6.3: the scale is the largest power of two not above the largest number, over that of e2m1."""
    power = np.ldexp(1.0, exponent)
    for largest, wanted in ((power, exponent), (np.nextafter(power, 0), exponent - 1), (1.99 * power, exponent)):
        packed = packing.quantise(np.full((1, 32), largest), "mxfp4")
        assert packed.scales[0, 0] == min(254, max(0, wanted - 2 + 127))


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("f32", "bf16")])
def test_what_a_scale_cannot_reach_is_refused(name: str) -> None:
    largest = float(np.finfo(np.float32).max)
    assert np.isfinite(packing.unpack(packing.quantise(np.array([[largest, -largest]]), name))).all()
    with pytest.raises(NumericsError, match="no further than float32"):
        packing.quantise(np.array([[1e39, 1.0]]), name)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "bad", [np.ones(4), np.ones((0, 4)), np.ones((2, 0)), np.ones((2, 2), complex), np.array([["a"]]), [[1], [2, 3]]]
)
def test_what_is_no_matrix_is_one_line(name: str, bad: object) -> None:
    with pytest.raises(NumericsError, match=f"{name}: only a matrix of real numbers"):
        packing.quantise(bad, name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_of_another_type_or_number_are_refused(name: str) -> None:
    packed = packing.quantise(np.ones((3, 40)), name)
    weights, scales = packed.weights.reshape(-1), packed.scales.reshape(-1)
    again = packing.from_bytes(name, 3, 40, weights, scales, packed.tensor_scale)
    np.testing.assert_array_equal(packing.unpack(again), packing.unpack(packed))
    for wrong in (weights[:-1], weights.astype(np.int16)):
        with pytest.raises(NumericsError, match=rf"{name} \[3, 40\]: .* not {weights.size} and {scales.size} bytes"):
            packing.from_bytes(name, 3, 40, wrong, scales, 1.0)


def test_strided_and_transposed_matrices_are_packed_by_value() -> None:
    v = np.random.default_rng(0).standard_normal((64, 80))
    for name in FORMATS:
        for view in (v.T, v[::2, ::-1], np.asfortranarray(v)):
            one, other = packing.quantise(view, name), packing.quantise(view.copy("C"), name)
            np.testing.assert_array_equal(one.weights, other.weights)
            np.testing.assert_array_equal(one.scales, other.scales)


def test_every_int8_and_int4_code() -> None:
    one_ = np.array([1.0], np.float32).view(np.uint8)
    got = packing.unpack(packing.from_bytes("int8", 1, 256, np.arange(256, dtype=np.uint8), one_, 1.0))
    np.testing.assert_array_equal(got[0], np.arange(256, dtype=np.uint8).view(np.int8))
    for name, group in (("int4", 32), ("int4_g128", 128)):
        raw = (np.arange(group // 2, dtype=np.uint8) * 2 % 16) | (
            (np.arange(group // 2, dtype=np.uint8) * 2 + 1) % 16 << 4
        )
        scale = np.array([1.0], ml_dtypes.bfloat16).view(np.uint8)
        got = packing.unpack(packing.from_bytes(name, 1, group, raw, scale, 1.0))
        np.testing.assert_array_equal(got[0], np.arange(group) % 16 - 8)


def spread_of_sizes() -> np.ndarray:
    rng = np.random.default_rng(5)
    v = rng.standard_normal((48, 96)) * np.exp2(rng.integers(-20, 20, (48, 96)))
    v[3, :32] = 0
    return v.astype(np.float32).astype(np.float64)


def test_mxfp8_is_the_conversion_of_the_ocp_specification() -> None:
    """OCP MX 1.0 section 6.3 written out: X = 2^(floor(log2 largest) - 8); v / X clamped and rounded by ml_dtypes."""
    v = spread_of_sizes()
    packed = packing.quantise(v, "mxfp8")
    for row in range(len(v)):
        for g in range(3):
            block = v[row, 32 * g : 32 * g + 32]
            largest = float(np.abs(block).max())
            exponent = max(-127, math.floor(math.log2(largest)) - 8) if largest else -127
            scaled = np.clip(block / 2.0**exponent, -448, 448).astype(np.float32)
            assert packed.scales[row, g] == exponent + 127
            np.testing.assert_array_equal(
                packed.weights[row, 32 * g : 32 * g + 32], scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
            )


def test_mxfp8_is_torchaos() -> None:
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    torch = pytest.importorskip("torch")
    v = spread_of_sizes()
    packed = packing.quantise(v, "mxfp8")
    scales, elements = mx.to_mx(
        torch.tensor(v, dtype=torch.float32), torch.float8_e4m3fn, 32, mx.ScaleCalculationMode.FLOOR
    )
    np.testing.assert_array_equal(packed.scales, scales.view(torch.uint8).numpy())
    np.testing.assert_array_equal(packed.weights, elements.view(torch.uint8).numpy())


def test_mxfp8_multiplies_codes_by_powers_of_two() -> None:
    got = one("mxfp8", [0x7E, 0x01, 0xB8] + [0] * 29, [120], 32)  # 448, 2^-9 and -1, times 2^-7
    np.testing.assert_array_equal(got[:3], [3.5, 2.0**-16, -(2.0**-7)])
