"""Number types of a byte or less, and bfloat16 (e4m3fn, e2m1, e8m0), as tables and bit patterns in numpy.

Definitions: OCP 8-bit Floating Point Specification 1.0 (e4m3), OCP Microscaling Formats Specification 1.0 (e2m1, e8m0).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

E4M3_MAX = 448.0
E4M3_NAN = 0x7F
E2M1_MAX = 6.0
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
