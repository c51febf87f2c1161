"""The compiled core's order of 4-bit matrices (kernels/cpu/strips.h): a permutation of the canonical bytes.

Rows lie in strips of `lanes` rows: four bytes (eight columns) of each row of the strip in turn, and one scale of each
in turn. Rows that fill no strip, matrices whose columns are no multiple of eight, and all other formats stay canonical.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moegauge.formats import get_format
from moegauge.kernels.packing import Packed
from moegauge.kernels.program import Weight

Bytes = NDArray[np.uint8]


def is_striped(format_name: str, columns: int) -> bool:
    """Whether a matrix of so many columns lies in strips."""
    return get_format(format_name).element_bits == 4 and columns % 8 == 0


def _weave(raw: Bytes, lanes: int, item: int) -> Bytes:
    """Rows [R, bytes] -> the same bytes with the items of each `lanes` rows in turn; the last R mod lanes rows stay."""
    whole = raw.shape[0] // lanes * lanes
    strips = raw[:whole].reshape(-1, lanes, raw.shape[1] // item, item).transpose(0, 2, 1, 3)
    return np.concatenate([strips.reshape(-1), raw[whole:].reshape(-1)])


def pack(packed: Packed, lanes: int) -> tuple[Bytes, Bytes]:
    """(weights, scales) of a packed matrix as flat bytes in the core's order."""
    if not is_striped(packed.format.name, packed.columns):
        return packed.weights.reshape(-1).copy(), packed.scales.reshape(-1).copy()
    scale = packed.format.scale_bits // 8
    return _weave(packed.weights, lanes, 4), _weave(packed.scales, lanes, scale)


def read_striped(pool: Bytes, name: str, offset: int, size: int, within: Weight, lanes: int) -> Bytes:
    """Bytes [offset, offset + size) of the canonical order of the striped matrix they belong to; within one row of it.

    `name` is the pool's name: `.weight`, `.scale` or `.tensor`.
    """
    part = {"weight": within.weights, "scale": within.scales}.get(name.rpartition(".")[2])
    if part is None:
        return pool[offset : offset + size].copy()
    item = 4 if part is within.weights else get_format(within.format).scale_bits // 8
    slot = (offset - part.offset) // part.stride if part.stride else 0
    start = part.at(slot)
    wide = part.bytes // within.rows
    row, at = divmod(offset - start, wide)
    if row >= within.rows // lanes * lanes:
        return pool[offset : offset + size].copy()
    assert at + size <= wide
    first = row // lanes * lanes
    strip = pool[start + first * wide :][: lanes * wide].reshape(wide // item, lanes, item)
    return np.ascontiguousarray(strip[:, row - first]).reshape(-1)[at : at + size]
