"""Random packed weights that are valid in their format, straight from a seed: what an arena holds.

Never zeros, never NaN codes.

A pool is named `<format>.weight`, `<format>.scale`, `<format>.tensor`, `gain.<dtype>`, `bias.<dtype>`, `kv.<dtype>` or
`state.f32`. Scales are sized so that a weight's standard deviation is about WEIGHT_STD in every format: products of
1,500 to 18,000 columns with normalised inputs then stay between 0.8 and 2.7, whatever the depth.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from moegauge.formats import FORMATS, Format
from moegauge.kernels import codes

WEIGHT_STD = 0.02
# One random block, repeated with a shift: 8 MiB of fresh numbers take 0.1 s, a full pool would take minutes.
BLOCK_BYTES = 1 << 23

_Generator = np.random.Generator
_Bytes = NDArray[np.uint8]


def _normal(scale: float) -> Callable[[_Generator, int], NDArray[np.float32]]:
    return lambda rng, n: rng.standard_normal(n, dtype=np.float32) * np.float32(scale)


def _as_bf16(draw: Callable[[_Generator, int], NDArray[np.float32]]) -> Callable[[_Generator, int], _Bytes]:
    return lambda rng, n: codes.encode_bf16(draw(rng, n // 2)).view(np.uint8)


def _as_f32(draw: Callable[[_Generator, int], NDArray[np.float32]]) -> Callable[[_Generator, int], _Bytes]:
    return lambda rng, n: draw(rng, n // 4).view(np.uint8)


def _near(value: float, spread: float = 0.25) -> Callable[[_Generator, int], NDArray[np.float32]]:
    """Positive numbers within `spread` of `value`."""
    return lambda rng, n: (value * (1 + spread * (2 * rng.random(n, dtype=np.float32) - 1))).astype(np.float32)


def _any_byte(rng: _Generator, n: int) -> _Bytes:
    return np.frombuffer(rng.bytes(n), np.uint8).copy()


def _e4m3(rng: _Generator, n: int) -> _Bytes:
    raw = _any_byte(rng, n)
    raw[(raw & 0x7F) == codes.E4M3_NAN] ^= 1  # NaN to the largest number
    return raw


def _choice(low: int, high: int) -> Callable[[_Generator, int], _Bytes]:
    return lambda rng, n: rng.integers(low, high + 1, n, dtype=np.uint8)


def _small_e4m3(rng: _Generator, n: int) -> _Bytes:
    """e4m3 of size 2^-4 to 3.75, both signs: a cache without scales."""
    return _choice(3 << 3, (8 << 3) | 7)(rng, n) | (rng.integers(0, 2, n, dtype=np.uint8) * np.uint8(128))


def _std(element: str) -> float:
    """Deviation of a type's codes, all of them alike often."""
    return float(np.sqrt(np.nanmean(codes.VALUES[element] ** 2)))


_Fill = Callable[[_Generator, int], _Bytes]
# Weights by their type. Without a scale they are of the size wanted, else any code but NaN.
_ELEMENTS: dict[str, _Fill] = {
    "f32": _as_f32(_normal(WEIGHT_STD)),
    "bf16": _as_bf16(_normal(WEIGHT_STD)),
    "e4m3": _e4m3,
    "int8": _any_byte,
    "int4": _any_byte,
    "e2m1": _any_byte,
}


def _powers_of_two(size: float) -> _Fill:
    """e8m0 of the power of two below `size`, its half and its double."""
    code = 127 + math.floor(math.log2(size))
    return _choice(code - 1, code + 1)


# Scales by their type, for a deviation of `size`.
_SCALES: dict[str, Callable[[float], _Fill]] = {
    "f32": lambda size: _as_f32(_near(size)),
    "bf16": lambda size: _as_bf16(_near(size)),
    "e8m0": _powers_of_two,
    "e4m3": lambda _: _choice(0x30, 0x3F),  # 0.5 to 1.875, 1.1 in the mean; the matrix's own scale gives the size
}


def _of(fmt: Format) -> Iterator[tuple[str, _Fill]]:
    """Content of the pools of one weight format."""
    yield f"{fmt.name}.weight", _ELEMENTS[fmt.element]
    if fmt.scale:
        yield f"{fmt.name}.scale", _SCALES[fmt.scale](WEIGHT_STD / _std(fmt.element))
    if fmt.tensor_scale:
        yield f"{fmt.name}.tensor", _as_f32(_near(WEIGHT_STD / _std(fmt.element) / 1.1))


CONTENT: dict[str, _Fill] = {
    **{pool: fill for fmt in FORMATS.values() for pool, fill in _of(fmt)},
    "gain.bf16": _as_bf16(_near(1.0, 0.1)),
    "gain.f32": _as_f32(_near(1.0, 0.1)),
    "bias.bf16": _as_bf16(_normal(WEIGHT_STD)),
    "bias.f32": _as_f32(_normal(WEIGHT_STD)),
    "kv.bf16": _as_bf16(_normal(1.0)),
    "kv.fp8": _small_e4m3,
    "state.f32": _as_f32(_normal(1.0)),
}


def block(pool: str, seed: int, size: int = BLOCK_BYTES) -> _Bytes:
    """`size` bytes (a multiple of 64) of pool `pool`'s content, a function of the arguments alone."""
    rng = np.random.default_rng([seed, zlib.crc32(pool.encode())])
    return CONTENT[pool](rng, size)


def fill(out: _Bytes, pool: str, seed: int) -> None:
    """Fill `out` with pool content: the block again and again, each time turned by another multiple of 64 bytes."""
    size = min(BLOCK_BYTES, -(-out.size // 64) * 64)
    content = block(pool, seed, size)
    for i, start in enumerate(range(0, out.size, size)):
        turn = i * 7919 * 64 % size
        part = out[start : start + size]
        head = min(part.size, size - turn)
        part[:head] = content[turn : turn + head]
        part[head:] = content[: part.size - head]
