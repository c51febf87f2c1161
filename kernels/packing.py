"""Quantise, pack and unpack a matrix in each weight format, by the format's traits; plain numpy.

Canonical packed order of a matrix [rows, columns], the same on disk-like bytes and in the arena:

* elements row-major, each row starting on a byte; 4-bit elements two to a byte, the lower nibble first (gpt-oss
  `_blocks`, compressed-tensors `weight_packed`);
* int4 is stored as value + 8 (compressed-tensors pack-quantized), e2m1 and e4m3 as their codes, int8 in two's
  complement;
* scales row-major over the blocks that share one, the last block of a row possibly short;
* nvfp4 has one more float32 for the whole matrix: weight = e2m1 * e4m3 scale * that.

NaN: elements of floating-point types with a NaN code keep it; e2m1 has none, so its scale marks the whole group (OCP MX
1.0 section 5.1); integers have no way to say it and refuse. Infinity is refused by every format with a scale. The
compiled kernels read the e4m3 NaN codes as +-480 and an e8m0 NaN as infinity: `moegauge.kernels.content` makes none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moegauge.errors import NumericsError
from moegauge.formats import Format, get_format
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
    if fmt.scale and np.isinf(v).any():
        raise NumericsError(f"{fmt.name} cannot hold infinity.", advice="Clip the matrix first.")
    if fmt.scale and np.nanmax(np.abs(v), initial=0.0) > FLOAT32_MAX:
        raise NumericsError(f"{fmt.name} scales reach no further than float32.", advice="Scale the matrix first.")
    if fmt.element in INTEGERS and np.isnan(v).any():
        raise NumericsError(f"{fmt.name} cannot hold NaN.", advice="Replace NaN first, or use a floating-point format.")
    scales, tensor_scale = _NO_SCALES, 1.0
    if fmt.scale:
        largest = _blocks(v if _marks_groups(fmt) else np.nan_to_num(v, nan=0.0), fmt)
        scales, values, tensor_scale = _SCALE[fmt.scale](largest, fmt)
        v = _divide(v, _spread(values * tensor_scale, v, fmt))
    codes_ = codes.encode(fmt.element, v)
    weights = _nibbles(codes_) if fmt.element_bits == 4 else codes_
    packed = Packed(fmt, rows, columns, weights, scales, tensor_scale)
    assert packed.bytes == fmt.bytes(rows, columns)
    return packed


def unpack(packed: Packed) -> Floats:
    """The float64 values [rows, columns] a packed matrix stands for."""
    fmt, weights = packed.format, packed.weights
    if fmt.element_bits == 4:
        weights = np.stack([weights & 15, weights >> 4], axis=-1).reshape(packed.rows, -1)[:, : packed.columns]
    values = codes.decode(fmt.element, weights)
    if fmt.scale:
        scales = codes.decode(fmt.scale, packed.scales)
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
    """v / scale, 0 where the scale is 0 (its block is all zeros) or no number (it marks its block)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where((scale == 0) | ~np.isfinite(scale), 0.0, v / scale))


def _nibbles(elements: Bytes) -> Bytes:
    """Two 4-bit codes to a byte, lower first; an odd row ends with a zero nibble."""
    if elements.shape[1] % 2:
        elements = np.pad(elements, ((0, 0), (0, 1)))
    return np.asarray(elements[:, ::2] | (elements[:, 1::2] << 4))


def _marks_groups(fmt: Format) -> bool:
    """Whether a NaN weight has no code of its own, so that the scale of its block says it."""
    return not np.isnan(codes.VALUES[fmt.element]).any()


FLOAT32_MAX = float(np.finfo(np.float32).max)
INTEGERS = frozenset({"int8", "int4"})
_NO_SCALES = np.zeros((0, 0), np.uint8)

# Bytes of the scales, their values, and the matrix's own scale.
_Scales = tuple[Bytes, Floats, float]


def _f32(largest: Floats, fmt: Format) -> _Scales:
    """The largest weight becomes the largest code; a block of zeros has scale 1."""
    wanted = np.where(largest > 0, largest / codes.LARGEST[fmt.element], 1.0).astype(np.float32)
    scales = np.maximum(wanted, np.finfo(np.float32).tiny)
    return scales.view(np.uint8), scales.astype(np.float64), 1.0


def _bf16(largest: Floats, fmt: Format) -> _Scales:
    """As `_f32`, rounded; a block of zeros has scale 0."""
    scales = codes.encode("bf16", largest / codes.LARGEST[fmt.element])
    return scales, codes.decode("bf16", scales), 1.0


def _e8m0(largest: Floats, fmt: Format) -> _Scales:
    """OCP MX 1.0 section 6.3: the largest power of two not above the largest weight, over that of the element type."""
    # frexp, not log2, which rounds a number just below a power of two up to it.
    top = int(np.frexp(codes.LARGEST[fmt.element])[1])
    exponent = np.clip(np.where(largest == 0, -127, np.frexp(np.nan_to_num(largest))[1] - top), -127, 127)
    scales = np.where(np.isnan(largest), codes.E8M0_NAN, exponent + 127).astype(np.uint8)
    return scales, codes.E8M0[scales], 1.0


def _e4m3(largest: Floats, fmt: Format) -> _Scales:
    """NVIDIA's two levels: the matrix's own scale takes the largest block's scale to the largest e4m3."""
    top = codes.LARGEST[fmt.element]
    tensor_scale = float(np.float32(float(np.nanmax(largest, initial=0.0)) / (top * codes.LARGEST["e4m3"]))) or 1.0
    scales = codes.encode_e4m3(largest / top / tensor_scale)
    return scales, codes.E4M3[scales], tensor_scale


_SCALE: dict[str, Callable[[Floats, Format], _Scales]] = {"f32": _f32, "bf16": _bf16, "e8m0": _e8m0, "e4m3": _e4m3}
