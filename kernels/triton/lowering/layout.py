"""Order of weights and scales in the Triton kernels: a permutation of the canonical bytes, no padding.

A matrix is cut in tiles of 16 rows x 64, 32 or 16 columns (4, 8, 16 bits): 512 bytes, laid out one after another along
a row of tiles. In a tile, lane (r, c) of 8 x 4 owns 16 contiguous bytes: four words, (h, v), of rows r + 8 h. Columns
of a tile split as (step, c, q, p): 16 per step, lane c has 4 c .. 4 c + 3, q the pair and p its half.

    bf16      word v        = the pair q = v
    fp8, int8 word v        = step v; a half p holds the codes q = 0, 1
    4 bits    word v        = steps 2 v, 2 v + 1; a half p holds four codes i = 2 (step mod 2) + q

Where a code's bits go inside a half is chosen so that few integer operations bring them into place for a bfloat16
(`kernels.triton.device.decode`). Scales follow the tiles: one word per row pair (r, r + 8) holds what both need.
A matrix whose rows or columns do not fill tiles stays canonical and goes through `kernels.triton.device.plain`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moegauge.formats import FORMATS, get_format

Bytes = NDArray[np.uint8]

TILE_ROWS = 16
TILE_BYTES = 512

# Source bit of a code -> destination bit of its half, per code of a half; a destination of 16 or more lies in the
# other half of the word (the rotation by 10 in `pairs_fp4` carries it across).
_FP4 = (
    ((3, 15), (2, 8), (1, 7), (0, 6)),
    ((3, 11), (2, 4), (1, 3), (0, 2)),
    ((3, 5), (2, 30), (1, 29), (0, 28)),
    ((3, 9), (2, 10), (1, 1), (0, 0)),
)
_FP8 = (
    ((7, 15), (6, 10), (5, 9), (4, 8), (3, 7), (2, 6), (1, 5), (0, 4)),
    ((7, 11), (6, 14), (5, 13), (4, 12), (3, 3), (2, 2), (1, 1), (0, 0)),
)
_INT4 = tuple(tuple((b, 4 * i + b) for b in range(4)) for i in range(4))
_INT8 = tuple(tuple((b, 8 * i + b) for b in range(8)) for i in range(2))
_BF16 = (tuple((b, b) for b in range(16)),)
_BITS = {"bf16": _BF16, "e4m3": _FP8, "int8": _INT8, "int4": _INT4, "e2m1": _FP4}  # by type of element
TILED_FORMATS = frozenset(name for name, row in FORMATS.items() if row.element in _BITS)


def tile_columns(format: str) -> int:
    """Columns of a tile: 16 rows of them take 512 bytes."""
    return TILE_BYTES * 8 // (TILE_ROWS * get_format(format).element_bits)


def scale_columns(format: str) -> int:
    """Columns whose scales are loaded at once, whole tiles; 0 where no scale is a group of columns' own.

    A word holds what a row pair (r, r + 8) needs: two groups of 1-byte scales, one group of bfloat16.
    """
    row = get_format(format)
    if not row.scale_columns:
        return 0
    groups = 1 if row.scale_rows > 1 or row.scale_bits == 16 else 2
    return max(tile_columns(format), groups * row.scale_columns)


def permutes_scales(format: str) -> bool:
    """Whether scales follow the tiles; those of blocks of rows, and of whole rows, keep the canonical order."""
    return bool(get_format(format).scale_columns) and get_format(format).scale_rows == 1


def is_tiled(format: str, rows: int, columns: int) -> bool:
    """Whether [rows, columns] fills whole tiles and whole words of scales, so that the tiled kernels serve it."""
    if format not in TILED_FORMATS or rows % TILE_ROWS or columns % tile_columns(format):
        return False
    if not permutes_scales(format):
        return True
    group = get_format(format).scale_columns
    return -(-columns // group) % (scale_columns(format) // group) == 0


def _split(codes: NDArray[np.uint16], format: str) -> NDArray[np.uint16]:
    """[rows, columns] -> [row tile, tile, r, c, h, v, i, p]."""
    rows, columns = codes.shape
    across = tile_columns(format)
    fields = codes.reshape(rows // 16, 2, 8, columns // across, across // 16, 4, 2, 2)  # T h r t s c q p
    fields = fields.transpose(0, 3, 2, 5, 1, 4, 6, 7)  # T t r c h s q p
    head = fields.shape[:5]
    # (s, q) -> (v, i): word v holds 2 (4 bits), 1 (8 bits) or half (16 bits) of a step's pairs.
    return fields.reshape(*head, 2, -1, 2)


def _join(fields: NDArray[np.uint16], format: str, rows: int, columns: int) -> NDArray[np.uint16]:
    """Inverse of `_split`."""
    across = tile_columns(format)
    fields = fields.reshape(rows // 16, columns // across, 8, 4, 2, across // 16, 2, 2)
    return fields.transpose(0, 4, 2, 1, 5, 3, 6, 7).reshape(rows, columns)


def encode(codes: NDArray[np.uint16], format: str) -> Bytes:
    """Codes [rows, columns] (as `decode` gives them) -> packed bytes in the order of the kernels."""
    fields = _split(codes, format).astype(np.uint32)
    words = np.zeros(fields.shape[:-2], np.uint32)
    for i, bits in enumerate(_BITS[get_format(format).element]):
        for p in range(2):
            for source, target in bits:
                words |= ((fields[..., i, p] >> np.uint32(source)) & np.uint32(1)) << np.uint32((target + 16 * p) % 32)
    return words.reshape(-1).view(np.uint8)


def decode(packed: Bytes, format: str, rows: int, columns: int) -> NDArray[np.uint16]:
    """Inverse of `encode`."""
    across = tile_columns(format)
    head = (rows // 16, columns // across, 8, 4, 2, 2)
    words = packed.view(np.uint32).reshape(head)
    fields = np.zeros((*head, len(_BITS[get_format(format).element]), 2), np.uint16)
    for i, bits in enumerate(_BITS[get_format(format).element]):
        for p in range(2):
            for source, target in bits:
                bit = (words >> np.uint32((target + 16 * p) % 32)) & np.uint32(1)
                fields[..., i, p] |= (bit << np.uint32(source)).astype(np.uint16)
    return _join(fields, format, rows, columns)


def _scale_axes(format: str) -> tuple[int, int]:
    """(groups of a row whose scales are loaded at once, bytes of a scale); (0, 0) where the canonical order is kept."""
    if not permutes_scales(format):
        return 0, 0
    return scale_columns(format) // get_format(format).scale_columns, get_format(format).scale_bits // 8


def pack_scales(scales: Bytes, format: str, rows: int, columns: int) -> Bytes:
    """Canonical scale bytes of a tiled matrix -> the order of the kernels."""
    groups, size = _scale_axes(format)
    if not groups:
        return scales
    if size == 1:  # words of bytes (h, group mod 2)
        fields = scales.reshape(rows // 16, 2, 8, -1, groups // 2, 2)  # T h r t j g
        return np.ascontiguousarray(fields.transpose(0, 3, 2, 4, 1, 5)).reshape(-1)
    fields = scales.reshape(rows // 16, 2, 8, -1, groups, 2)  # T h r t g byte
    return np.ascontiguousarray(fields.transpose(0, 3, 2, 4, 1, 5)).reshape(-1)


def unpack_scales(packed: Bytes, format: str, rows: int, columns: int) -> Bytes:
    """Inverse of `pack_scales`."""
    groups, size = _scale_axes(format)
    if not groups:
        return packed
    inner = groups // 2 if size == 1 else groups
    fields = packed.reshape(rows // 16, -1, 8, inner, 2, 2)  # T t r j h g
    return np.ascontiguousarray(fields.transpose(0, 4, 2, 1, 3, 5)).reshape(-1)
