"""Order of weights and scales in the CPU core: a permutation of the canonical packed bytes.

Rows are interleaved in groups, so that a group is one sequential stream: 64 bytes of each of four rows in turn; or, of
the 4-bit formats, four bytes (eight columns) of each of `lanes` rows in turn, and their scales one of each in turn.
Rows that fill no group, and matrices whose rows are no multiple of the piece, stay canonical.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moegauge.formats import get_format
from moegauge.kernels.packing import Packed
from moegauge.kernels.program import Weight

Bytes = NDArray[np.uint8]

GROUP = 4  # rows of a group of 8-bit and wider formats
PIECE = 64  # bytes of each in turn: a cache line
STRIP_PIECE = 4  # bytes of each row of a strip of a 4-bit format in turn: a 32-bit lane


@dataclass(frozen=True, slots=True)
class Interleaving:
    """How rows of one matrix lie.

    Attributes:
        rows: rows of a group.
        piece: bytes of weights of each row in turn.
        scale_piece: bytes of scales of each row in turn; 0 where scales stay canonical.
    """

    rows: int
    piece: int
    scale_piece: int


def interleaving(format_name: str, columns: int, lanes: int) -> Interleaving | None:
    """The interleaving of a matrix of so many columns; None where its rows lie one after another.

    Args:
        format_name: a row of `moegauge.formats.FORMATS`.
        columns: of the matrix.
        lanes: 32-bit lanes of the core's vectors.
    """
    row = get_format(format_name)
    found = (
        Interleaving(lanes, STRIP_PIECE, row.scale_bits // 8)
        if row.element_bits == 4
        else Interleaving(GROUP, PIECE, 0)
    )
    return None if row.element_bits * columns % (8 * found.piece) else found


def _interleave(raw: Bytes, rows: int, piece: int) -> Bytes:
    """Rows [R, bytes] -> the same bytes with the pieces of each `rows` rows in turn; the last R mod rows rows stay."""
    whole = raw.shape[0] // rows * rows
    groups = raw[:whole].reshape(-1, rows, raw.shape[1] // piece, piece).transpose(0, 2, 1, 3)
    return np.concatenate([groups.reshape(-1), raw[whole:].reshape(-1)])


def pack(packed: Packed, lanes: int) -> tuple[Bytes, Bytes]:
    """(weights, scales) of a packed matrix as flat bytes in the core's order."""
    how = interleaving(packed.format.name, packed.columns, lanes)
    if how is None:
        return packed.weights.reshape(-1).copy(), packed.scales.reshape(-1).copy()
    weights = _interleave(packed.weights, how.rows, how.piece)
    if not how.scale_piece:
        return weights, packed.scales.reshape(-1).copy()
    return weights, _interleave(packed.scales, how.rows, how.scale_piece)


def read_interleaved(pool: Bytes, name: str, offset: int, size: int, within: Weight, lanes: int) -> Bytes:
    """Bytes [offset, offset + size) of the canonical order of the matrix they belong to; within one row of it.

    `name` is the pool's name: `.weight`, `.scale` or `.tensor`.
    """
    how = interleaving(within.format, within.columns, lanes)
    part = {"weight": within.weights, "scale": within.scales}.get(name.rpartition(".")[2])
    piece = 0 if how is None else how.piece if part is within.weights else how.scale_piece
    if how is None or part is None or not piece:
        return pool[offset : offset + size].copy()
    slot = (offset - part.offset) // part.stride if part.stride else 0
    start = part.at(slot)
    wide = part.bytes // within.rows
    row, at = divmod(offset - start, wide)
    if row >= within.rows // how.rows * how.rows:
        return pool[offset : offset + size].copy()
    assert at + size <= wide
    first = row // how.rows * how.rows
    group = pool[start + first * wide :][: how.rows * wide].reshape(wide // piece, how.rows, piece)
    return np.ascontiguousarray(group[:, row - first]).reshape(-1)[at : at + size]
