"""Quantise, pack and unpack a matrix in each weight format: one `Packer` per row of `FORMATS`, plain numpy.

Canonical packed order of a matrix [rows, columns], the same on disk-like bytes and in the arena:

* elements row-major, each row starting on a byte; 4-bit elements two to a byte, the lower nibble first (gpt-oss
  `_blocks`, compressed-tensors `weight_packed`);
* int4 is stored as value + 8 (compressed-tensors pack-quantized), e2m1 and e4m3 as their codes, int8 in two's
  complement;
* scales row-major over the blocks that share one, the last block of a row possibly short;
* nvfp4 has one more float32 for the whole matrix: weight = e2m1 * e4m3 scale * that.

NaN: f32, bf16 and fp8 keep it; mxfp4 and nvfp4 mark the whole group with a NaN scale (OCP MX 1.0 section 5.1); int8 and
int4 have no way to say it and refuse. Infinity is refused by every format but f32 and bf16. The compiled kernels read
the fp8 NaN codes as +-480 and an e8m0 NaN as infinity: `fill` makes none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moegauge.errors import NumericsError
from moegauge.formats import FORMATS, Format, get_format
from moegauge.kernels import codes
from moegauge.kernels.codes import Bytes, Floats


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed matrix.

    Attributes:
        format: its row of FORMATS.
        rows, columns: its logical shape.
        weights: uint8 [rows, bytes of a row].
        scales: uint8 [scale rows, bytes of a scale row]; [0, 0] when the format has none.
        tensor_scale: nvfp4's float32 for the matrix, else 1.
    """

    format: Format
    rows: int
    columns: int
    weights: Bytes
    scales: Bytes
    tensor_scale: float = 1.0

    @property
    def bytes(self) -> int:
        """Bytes of all its parts; equals `Format.bytes(rows, columns)`."""
        return self.weights.nbytes + self.scales.nbytes + self.format.tensor_scale_bits // 8

    def row(self, index: int) -> Packed:
        """One row with the scales it uses."""
        scales = self.scales[index // self.format.scale_rows :][:1] if self.scales.size else self.scales
        return Packed(self.format, 1, self.columns, self.weights[index : index + 1], scales, self.tensor_scale)


@dataclass(frozen=True, slots=True)
class _Packer:
    """How one format does it: element codes and scales of a float matrix, and back."""

    element_bits: int
    quantise: Callable[[Floats, Format], tuple[NDArray[np.uint8], NDArray[np.uint8], float]]
    decode_elements: Callable[[Bytes], Floats]
    decode_scales: Callable[[Bytes], Floats]


def quantise(values: ArrayLike, format_name: str) -> Packed:
    """Pack a float matrix [rows, columns].

    Raises:
        NumericsError: no matrix of real numbers, or a value the format cannot hold (infinity, or beyond float32; NaN in
            int8 and int4).
    """
    fmt = get_format(format_name)
    try:
        v = np.asarray(values)
        if v.dtype.kind not in "fiub" or v.ndim != 2 or not v.size:
            raise ValueError
        v = v.astype(np.float64)
    except (TypeError, ValueError):
        raise NumericsError(
            f"{fmt.name}: only a matrix of real numbers with a row and a column at least can be packed.",
            advice="Pass [rows, columns] of floats.",
        ) from None
    rows, columns = v.shape
    if fmt.name not in ("f32", "bf16") and not np.isinf(v).any() and np.nanmax(np.abs(v), initial=0.0) > FLOAT32_MAX:
        raise NumericsError(f"{fmt.name} scales reach no further than float32.", advice="Scale the matrix first.")
    if fmt.name not in ("f32", "bf16") and np.isinf(v).any():
        raise NumericsError(f"{fmt.name} cannot hold infinity.", advice="Clip the matrix first.")
    if fmt.name.startswith("int") and np.isnan(v).any():
        raise NumericsError(f"{fmt.name} cannot hold NaN.", advice="Replace NaN first, or use a floating-point format.")
    weights, scales, tensor_scale = _PACKERS[fmt.name].quantise(v, fmt)
    packed = Packed(fmt, rows, columns, weights, scales, tensor_scale)
    assert packed.bytes == fmt.bytes(rows, columns)
    return packed


def unpack(packed: Packed) -> Floats:
    """The float64 values [rows, columns] a packed matrix stands for."""
    packer, fmt = _PACKERS[packed.format.name], packed.format
    weights = packed.weights
    if packer.element_bits == 4:
        weights = np.stack([weights & 15, weights >> 4], axis=-1).reshape(packed.rows, -1)[:, : packed.columns]
    values = packer.decode_elements(np.ascontiguousarray(weights))
    if fmt.scale_bits:
        scales = packer.decode_scales(packed.scales)
        scales = np.repeat(scales, fmt.scale_rows, axis=0)[: packed.rows]
        scales = np.repeat(scales, fmt.scale_columns or packed.columns, axis=1)[:, : packed.columns]
        values = values * scales * packed.tensor_scale
    return values


def from_bytes(format_name: str, rows: int, columns: int, weights: Bytes, scales: Bytes, tensor_scale: float) -> Packed:
    """A packed matrix from its flat canonical bytes.

    Raises:
        NumericsError: not bytes, or not as many as the format wants.
    """
    fmt = get_format(format_name)
    wanted = fmt.weight_bytes(rows, columns), fmt.scale_bytes(rows, columns) - fmt.tensor_scale_bits // 8
    if weights.dtype != np.uint8 or scales.dtype != np.uint8 or (weights.size, scales.size) != wanted:
        raise NumericsError(
            f"{fmt.name} [{rows}, {columns}]: {weights.size} {weights.dtype} of weights and {scales.size} "
            f"{scales.dtype} of scales, not {wanted[0]} and {wanted[1]} bytes.",
            advice="Pass the flat canonical bytes as uint8.",
        )
    scale_rows = -(-rows // fmt.scale_rows) if fmt.scale_bits else 0
    shaped = scales.reshape(scale_rows, -1) if scale_rows else np.zeros((0, 0), np.uint8)
    return Packed(fmt, rows, columns, weights.reshape(rows, -1), shaped, tensor_scale)


def _blocks(v: Floats, fmt: Format) -> Floats:
    """Largest |v| of each block that shares a scale; NaN where the block holds one."""
    rows, columns = v.shape
    height, width = fmt.scale_rows, fmt.scale_columns or columns
    padded = np.zeros((-(-rows // height) * height, -(-columns // width) * width))
    padded[:rows, :columns] = np.abs(v)
    return np.asarray(padded.reshape(-1, height, padded.shape[1] // width, width).max(axis=(1, 3)))


def _spread(scales: Floats, v: Floats, fmt: Format) -> Floats:
    """`scales` per block as scales per element of v."""
    spread = np.repeat(np.repeat(scales, fmt.scale_rows, axis=0), fmt.scale_columns or v.shape[1], axis=1)
    return spread[: v.shape[0], : v.shape[1]]


def _divide(v: Floats, scale: Floats) -> Floats:
    """v / scale, 0 where the scale is 0 (its block is all zeros) and where v is NaN (its scale says so)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where((scale == 0) | ~np.isfinite(scale), 0.0, v / scale))


def _nibbles(elements: Bytes) -> Bytes:
    """Two 4-bit codes to a byte, lower first; an odd row ends with a zero nibble."""
    if elements.shape[1] % 2:
        elements = np.pad(elements, ((0, 0), (0, 1)))
    return np.asarray(elements[:, ::2] | (elements[:, 1::2] << 4))


def _bytes(values: NDArray[np.generic]) -> Bytes:
    return np.ascontiguousarray(values).view(np.uint8)


FLOAT32_MAX = float(np.finfo(np.float32).max)
_NO_SCALES = np.zeros((0, 0), np.uint8)


def _f32(v: Floats, _fmt: Format) -> tuple[Bytes, Bytes, float]:
    return _bytes(v.astype(np.float32)), _NO_SCALES, 1.0


def _bf16(v: Floats, _fmt: Format) -> tuple[Bytes, Bytes, float]:
    return _bytes(codes.encode_bf16(v)), _NO_SCALES, 1.0


def _fp8(v: Floats, fmt: Format) -> tuple[Bytes, Bytes, float]:
    largest = _blocks(np.nan_to_num(v, nan=0.0), fmt)
    scales = np.where(largest > 0, largest / codes.E4M3_MAX, 1.0).astype(np.float32)
    scales = np.maximum(scales, np.finfo(np.float32).tiny)
    return codes.encode_e4m3(v / _spread(scales.astype(np.float64), v, fmt)), _bytes(scales), 1.0


def _int8(v: Floats, fmt: Format) -> tuple[Bytes, Bytes, float]:
    scales = (_blocks(v, fmt) / 127.5).astype(np.float32)
    q = np.clip(np.rint(_divide(v, _spread(scales.astype(np.float64), v, fmt))), -128, 127)
    return _bytes(q.astype(np.int8)), _bytes(scales), 1.0


def _int4(v: Floats, fmt: Format) -> tuple[Bytes, Bytes, float]:
    patterns = codes.encode_bf16(_blocks(v, fmt) / 7.5)
    q = np.clip(np.rint(_divide(v, _spread(codes.decode_bf16(patterns), v, fmt))), -8, 7)
    return _nibbles((q + 8).astype(np.uint8)), _bytes(patterns), 1.0


def _mxfp4(v: Floats, fmt: Format) -> tuple[Bytes, Bytes, float]:
    largest = _blocks(v, fmt)
    # frexp, not log2, which rounds a number just below a power of two up to it. 3 = 1 (frexp's mantissa is below 1) and
    # the exponent of e2m1's largest binade.
    exponent = np.clip(np.where(largest == 0, -127, np.frexp(np.nan_to_num(largest))[1] - 3), -127, 127)
    scale_codes = np.where(np.isnan(largest), codes.E8M0_NAN, exponent + 127).astype(np.uint8)
    return _nibbles(codes.encode_e2m1(_divide(v, _spread(codes.E8M0[scale_codes], v, fmt)))), scale_codes, 1.0


def _nvfp4(v: Floats, fmt: Format) -> tuple[Bytes, Bytes, float]:
    largest = _blocks(v, fmt)
    most = float(np.nanmax(largest, initial=0.0))
    tensor_scale = float(np.float32(most / (codes.E2M1_MAX * codes.E4M3_MAX))) or 1.0
    scale_codes = codes.encode_e4m3(largest / codes.E2M1_MAX / tensor_scale)
    spread = _spread(codes.E4M3[scale_codes] * tensor_scale, v, fmt)
    return _nibbles(codes.encode_e2m1(_divide(v, spread))), scale_codes, tensor_scale


def _as_f32(raw: Bytes) -> Floats:
    return np.ascontiguousarray(raw).view(np.float32).astype(np.float64)


def _as_bf16(raw: Bytes) -> Floats:
    return codes.decode_bf16(np.ascontiguousarray(raw).view(np.uint16))


def _none(raw: Bytes) -> Floats:
    return np.ones(raw.shape)


_PACKERS: dict[str, _Packer] = {
    "f32": _Packer(32, _f32, _as_f32, _none),
    "bf16": _Packer(16, _bf16, _as_bf16, _none),
    "fp8": _Packer(8, _fp8, lambda b: codes.E4M3[b], _as_f32),
    "int8": _Packer(8, _int8, lambda b: b.view(np.int8).astype(np.float64), _as_f32),
    "int4": _Packer(4, _int4, lambda b: b.astype(np.float64) - 8, _as_bf16),
    "int4_g128": _Packer(4, _int4, lambda b: b.astype(np.float64) - 8, _as_bf16),
    "mxfp4": _Packer(4, _mxfp4, lambda b: codes.E2M1[b], lambda b: codes.E8M0[b]),
    "nvfp4": _Packer(4, _nvfp4, lambda b: codes.E2M1[b], lambda b: codes.E4M3[b]),
}
assert list(_PACKERS) == list(FORMATS)
