"""Named kernel configurations (programs per multiprocessor), and which one a device gets.

A configuration says only how many programs (of one warp) a launch has: so many per multiprocessor, and fewer where each
would have next to nothing to do. Everything else follows from the format and the shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from moegauge.kernels.triton.lowering import layout


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to share products out.

    Attributes:
        name: as recorded.
        programs: warps on each multiprocessor.
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
        Configuration("deep", 8, 8, "16 to 32 KB in flight per multiprocessor, longest streams; GDDR devices"),
        Configuration("even", 12, 4, "24 to 48 KB in flight; leaves room for programs of the next kernel"),
        Configuration("wide", 16, 2, "32 to 64 KB in flight, every place taken; HBM devices, small matrices"),
    )
}

# Device classes by compute capability; GDDR parts have fewer bytes on the way per multiprocessor.
DEFAULTS = {(8, 0): "wide", (8, 6): "deep", (8, 9): "deep", (9, 0): "wide", (10, 0): "wide", (12, 0): "deep"}


def default_for(capability: tuple[int, int]) -> Configuration:
    """The configuration a device class starts from."""
    known = [c for c in DEFAULTS if c <= capability]
    return CONFIGURATIONS[DEFAULTS[max(known)] if known else "even"]


@dataclass(frozen=True, slots=True)
class Cut:
    """How the columns of a product are walked: `chunk` tiles at a time.

    Attributes:
        tiles: column tiles of the matrix.
        chunk: tiles multiplied at a time, 4 or 3.
    """

    tiles: int
    chunk: int

    @property
    def even(self) -> bool:
        """Whether no chunk is ragged."""
        return self.tiles % self.chunk == 0

    @property
    def length(self) -> int:
        """Chunks of a row tile."""
        return -(-self.tiles // self.chunk)


def cut(format: str, columns: int) -> Cut:
    """Cut [.., columns] into chunks."""
    tiles = columns // layout.tile_columns(format)
    spans = layout.scale_columns(format) > layout.tile_columns(format)  # scales of several tiles: chunks of 4 only
    return Cut(tiles, 3 if tiles % 4 and tiles % 3 == 0 and not spans else 4)


@dataclass(frozen=True, slots=True)
class Shares:
    """How the chunks of a launch are shared out (`moegauge.kernels.triton.device.work_split`).

    Attributes:
        total: chunks of the launch; where it depends on the routing, the fewest.
        programs: programs of the launch.
    """

    total: int
    programs: int

    def depth(self, length: int) -> int:
        """Most programs that `length` neighbouring chunks are shared between; of a larger total, no more."""
        return min(self.programs, -(-(length - 1) // max(1, self.total // self.programs)) + 1)


def share(total: int, configuration: Configuration, processors: int, most: int) -> Shares:
    """Share `total` chunks between the programs of a configuration, `most` per multiprocessor at most: a program that
    is not resident from the start would do its share after all others."""
    programs = processors * min(configuration.programs, most)
    return Shares(total, max(1, min(programs, total // configuration.chunks)))
