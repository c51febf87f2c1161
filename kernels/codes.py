"""Number types of a byte or less, and bfloat16 (e4m3fn, e2m1, e8m0), as tables and bit patterns in numpy.

Definitions: OCP 8-bit Floating Point Specification 1.0 (e4m3), OCP Microscaling Formats Specification 1.0 (e2m1, e8m0).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

E4M3_NAN = 0x7F
E8M0_NAN = 0xFF


def _minifloat(bits: int, exponent_bits: int, mantissa_bits: int, bias: int) -> Floats:
    """Values of every code of a sign-exponent-mantissa type, codes without special meaning."""
    code = np.arange(1 << bits)
    mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    size = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    return np.where(code >> (bits - 1), -size, size)


E2M1 = _minifloat(4, 2, 1, 1)
E4M3 = _minifloat(8, 4, 3, 7)
E4M3[[0x7F, 0xFF]] = np.nan
E8M0 = np.append(2.0 ** np.arange(-127.0, 128.0), np.nan)
# What each code of a small type stands for: int8 in two's complement, int4 as value + 8 (compressed-tensors).
VALUES: dict[str, Floats] = {
    "e4m3": E4M3,
    "e2m1": E2M1,
    "e8m0": E8M0,
    "int8": np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float64),
    "int4": np.arange(-8.0, 8.0),
}
# What the largest weight of a block is scaled to; an integer's half a step beyond its last code, which rounds to it.
LARGEST = {"e4m3": 448.0, "e2m1": 6.0, "int8": 127.5, "int4": 7.5}


def _nearest(table: Floats, values: Floats) -> Bytes:
    """Codes of the non-negative, rising `table` nearest to |values|, ties to the even code; saturates."""
    size = np.minimum(np.abs(values), table[-1])
    above = np.clip(np.searchsorted(table, size), 1, len(table) - 1)
    below = above - 1
    to_above, to_below = table[above] - size, size - table[below]
    take_above = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    return np.asarray(np.where(take_above, above, below).astype(np.uint8))


def encode_e2m1(values: ArrayLike) -> Bytes:
    """Nearest e2m1 codes (0..15), ties to even, saturating at +-6. NaN has no code; the scale must say it."""
    v = np.asarray(values, np.float64)
    return np.asarray(_nearest(E2M1[:8], np.nan_to_num(v, nan=0.0)) | (np.signbit(v).astype(np.uint8) << np.uint8(3)))


def encode_e4m3(values: ArrayLike) -> Bytes:
    """Nearest e4m3fn codes, ties to even, saturating at +-448; NaN becomes 0x7F."""
    v = np.asarray(values, np.float64)
    codes = _nearest(E4M3[:127], np.nan_to_num(v, nan=0.0)) | (np.signbit(v).astype(np.uint8) << np.uint8(7))
    return np.asarray(np.where(np.isnan(v), np.uint8(E4M3_NAN), codes), np.uint8)


def encode_bf16(values: ArrayLike) -> NDArray[np.uint16]:
    """float32 rounded to bfloat16 bit patterns, ties to even; NaN stays a quiet NaN, overflow becomes infinity."""
    bits = np.ascontiguousarray(np.asarray(values, np.float32)).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded).astype(np.uint16)


def decode_bf16(patterns: NDArray[np.uint16]) -> Floats:
    """Values of bfloat16 bit patterns."""
    return (patterns.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _encode_int(values: ArrayLike, bits: int) -> Bytes:
    """Nearest integers of `bits` bits, ties to even, saturating; no NaN among them."""
    half = 1 << (bits - 1)
    return np.asarray(np.clip(np.rint(values), -half, half - 1).astype(np.int8))


_ENCODE: dict[str, Callable[[Floats], NDArray[np.generic]]] = {
    "f32": lambda v: v.astype(np.float32),
    "bf16": encode_bf16,
    "e4m3": encode_e4m3,
    "e2m1": encode_e2m1,
    "int8": lambda v: _encode_int(v, 8),
    "int4": lambda v: (_encode_int(v, 4) + 8).astype(np.uint8),
}


def encode(kind: str, values: Floats) -> Bytes:
    """Values [rows, columns] as bytes of type `kind`, [rows, bytes]; a 4-bit code takes a whole byte here."""
    return np.ascontiguousarray(_ENCODE[kind](values)).view(np.uint8)


def decode(kind: str, raw: Bytes) -> Floats:
    """Inverse of `encode`, for any type of `moegauge.formats.BITS`."""
    raw = np.ascontiguousarray(raw)
    if kind == "f32":
        return raw.view(np.float32).astype(np.float64)
    return decode_bf16(raw.view(np.uint16)) if kind == "bf16" else VALUES[kind][raw]
