"""Named kernel configurations (programs per multiprocessor), and which one a device gets.

A configuration says only how many programs (of four warps) a launch has: so many per multiprocessor, and fewer where
each would have next to nothing to do. Everything else follows from the format and the shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from moegauge.kernels.triton.lowering import layout


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to share products out.

    Attributes:
        name: as recorded.
        programs: on each multiprocessor, of four warps each.
        turns: fewest turns (of 8 KB of weights) of a program, so that its start is not most of its life.
        why: one line for the documentation.
    """

    name: str
    programs: int
    turns: int
    why: str


CONFIGURATIONS = {
    c.name: c
    for c in (
        Configuration("deep", 2, 8, "16 to 32 KB in flight per multiprocessor, longest streams; GDDR devices"),
        Configuration("even", 3, 4, "24 to 48 KB in flight; leaves room for programs of the next kernel"),
        Configuration("wide", 4, 2, "32 to 64 KB in flight, every place taken; HBM devices, small matrices"),
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
    """How the columns of a product are walked (`moegauge.kernels.triton.device.row_tile`).

    Attributes:
        tiles: column tiles of the matrix.
        chunk: tiles a warp multiplies in a turn, 4 or 3.
        across: warps of a program that stand side by side along the columns; its others have other row tiles.
    """

    tiles: int
    chunk: int
    across: int

    @property
    def ragged(self) -> int:
        """0 where every warp has a whole chunk in every turn, 1 where some have none in the last, 2 where the last
        chunk is not whole."""
        if self.tiles % self.chunk:
            return 2
        return int(self.tiles % (self.chunk * self.across) > 0)

    @property
    def length(self) -> int:
        """Turns of a row tile."""
        return -(-self.tiles // (self.chunk * self.across))

    @property
    def constants(self) -> dict[str, int]:
        """What the kernels are told of it."""
        return {"TILES": self.chunk, "ACROSS": self.across, "RAGGED": self.ragged}


def cut(format: str, columns: int, across: int = 0) -> Cut:
    """Cut [.., columns] into turns; `across` 0 takes the most warps side by side of which an eighth idles at most."""
    tiles = columns // layout.tile_columns(format)
    spans = layout.scale_columns(format) > layout.tile_columns(format)  # scales of several tiles: chunks of 4 only
    chunk = 3 if tiles % 4 and tiles % 3 == 0 and not spans else 4
    chunks = -(-tiles // chunk)
    fitting = (n for n in (4, 2, 1) if 8 * -(-chunks // n) * n <= 9 * chunks)
    return Cut(tiles, chunk, across or next(fitting))


@dataclass(frozen=True, slots=True)
class Shares:
    """How the turns of a launch are shared out (`moegauge.kernels.triton.device.work_split`).

    Attributes:
        total: turns of the launch; where it depends on the routing, the fewest.
        programs: programs of the launch.
    """

    total: int
    programs: int

    def depth(self, length: int) -> int:
        """Most programs that `length` neighbouring turns are shared between; of a larger total, no more."""
        return min(self.programs, -(-(length - 1) // max(1, self.total // self.programs)) + 1)


def share(total: int, configuration: Configuration, processors: int, most: int) -> Shares:
    """Share `total` turns between the programs of a configuration, `most` per multiprocessor at most: a program that
    is not resident from the start would do its share after all others."""
    programs = processors * min(configuration.programs, most)
    return Shares(total, max(1, min(programs, total // configuration.turns)))
