"""The few named configurations of the tiled kernels, and which one a device gets.

A configuration says only how finely a product is cut: how many programs (of one warp) are wanted per multiprocessor
before the columns of a matrix stop being split. Everything else follows from the format and the shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from moegauge.kernels.triton import layout


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to cut products.

    Attributes:
        name: as recorded.
        programs: warps wanted on each multiprocessor; columns are split until a product has as many.
        chunks: fewest chunks (of 2 KB of weights) a program streams, so that its start is not most of its life.
        why: one line for the documentation.
    """

    name: str
    programs: int
    chunks: int
    why: str


CONFIGURATIONS = {
    c.name: c
    for c in (
        Configuration("deep", 12, 6, "24 KB in flight per multiprocessor, longest streams; big matrices"),
        Configuration("even", 16, 4, "32 KB in flight per multiprocessor; the default on HBM devices"),
        Configuration("wide", 24, 2, "48 KB in flight; small matrices, where start and tail are most of the time"),
    )
}

# Device classes by compute capability; GDDR parts have fewer bytes on the way per multiprocessor.
DEFAULTS = {(8, 0): "even", (8, 6): "deep", (8, 9): "deep", (9, 0): "even", (10, 0): "wide", (12, 0): "deep"}


def default_for(capability: tuple[int, int]) -> Configuration:
    """The configuration a device class starts from."""
    known = [c for c in DEFAULTS if c <= capability]
    return CONFIGURATIONS[DEFAULTS[max(known)] if known else "even"]


@dataclass(frozen=True, slots=True)
class Cut:
    """How the columns of a product are walked: TILES tiles at a time, `per_split` tiles per program.

    Attributes:
        tiles: column tiles of the matrix.
        chunk: tiles multiplied at a time, 4 or 3.
        even: every range is a multiple of `chunk`.
        splits, per_split: ranges and the tiles of one.
    """

    tiles: int
    chunk: int
    even: bool
    splits: int
    per_split: int


def cut(format: str, columns: int, programs: int, wanted: int, chunks: int, splits: int = 0) -> Cut:
    """Cut [.., columns] for a launch that has `programs` row tiles and wants `wanted` programs.

    splits: use this many (a launch of two formats splits both alike); 0 chooses.
    """
    tiles = columns // layout.tile_columns(format)
    spans = format in ("fp8", "int4_g128")  # their scale groups span tiles: chunks of 4 only
    chunk = 3 if tiles % 4 and tiles % 3 == 0 and not spans else 4
    whole = -(-tiles // chunk)
    if not splits:
        splits = max(1, min(-(-wanted // max(1, programs)), whole // max(1, chunks)))
        per = -(-whole // splits)
        splits = -(-whole // per)
    per = -(-whole // splits)
    return Cut(tiles, chunk, tiles % chunk == 0, splits, per * chunk)
