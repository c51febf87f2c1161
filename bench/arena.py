"""Where every weight of a step lies: rings of packed bytes, one per kind of content, walked in step order.

A place in a ring is read again only when the ring has come round, so the bytes read between two readings of one place
are about the size of the arena, whatever the size of the model. Rings are sized in proportion to what one round of
steps reads of each, so they come round together.
"""

from __future__ import annotations

from collections.abc import Iterable

from moegauge.errors import DeviceError
from moegauge.formats import get_format
from moegauge.kernels.program import ALIGNMENT, Place, Vector, Weight
from moegauge.shape import Matrix
from moegauge.units import human_bytes


def align(size: int) -> int:
    """`size` rounded up to the arena's alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Layout:
    """Hands out places in step order.

    Args:
        capacity: bytes of every pool; None measures demand instead, with rings that never come round.
    """

    def __init__(self, capacity: dict[str, int] | None = None) -> None:
        self.capacity = capacity
        self.demand: dict[str, int] = {}
        self.largest: dict[str, int] = {}
        self._cursor: dict[str, int] = {}

    def place(self, pool: str, size: int, slots: int = 1) -> Place:
        """`slots` runs of `size` bytes side by side."""
        stride = align(size)
        total = stride * slots
        start = self._cursor.get(pool, 0)
        if self.capacity is not None and start + total > self.capacity[pool]:
            start = 0
        self._cursor[pool] = start + total
        self.demand[pool] = self.demand.get(pool, 0) + total
        self.largest[pool] = max(self.largest.get(pool, 0), stride)
        return Place(pool, start, size, stride if slots > 1 else 0)

    def slots(self, matrices: Iterable[Matrix], wanted: int) -> int:
        """How many experts of these matrices fit side by side, at most `wanted`."""
        if self.capacity is None:
            return wanted
        for matrix in matrices:
            for pool, size in _parts(matrix.format, matrix.rows, matrix.columns):
                wanted = min(wanted, self.capacity[pool] // align(size))
        return max(1, wanted)

    def weight(self, matrix: Matrix, *, slots: int = 1, rows: int = 0, columns: int = 0, name: str = "") -> Weight:
        """A place for a matrix; `rows` and `columns` override its own where it is split."""
        rows, columns = rows or matrix.rows, columns or matrix.columns
        parts = {pool: self.place(pool, size, slots) for pool, size in _parts(matrix.format, rows, columns)}
        weights, scales, tensor = (parts.get(f"{matrix.format}.{part}") for part in ("weight", "scale", "tensor"))
        assert weights is not None
        return Weight(name or matrix.name, matrix.role, rows, columns, matrix.format, weights, scales, tensor, slots)

    def vector(self, name: str, length: int, dtype: str, kind: str, slots: int = 1) -> Vector:
        """A place for a norm's gain (`kind` gain) or a bias."""
        size = length * (4 if dtype == "f32" else 2)
        return Vector(name, length, dtype, self.place(f"{kind}.{dtype}", size, slots), slots)


def _parts(format_name: str, rows: int, columns: int) -> list[tuple[str, int]]:
    """(pool, bytes) of every part of a packed matrix."""
    fmt = get_format(format_name)
    tensor = fmt.tensor_scale_bits // 8
    parts = [(f"{fmt.name}.weight", fmt.weight_bytes(rows, columns))]
    if fmt.scale_bits:
        parts.append((f"{fmt.name}.scale", fmt.scale_bytes(rows, columns) - tensor))
    if tensor:
        parts.append((f"{fmt.name}.tensor", tensor))
    return parts


def capacities(measured: Layout, arena_bytes: int) -> dict[str, int]:
    """Bytes of every pool: its whole demand where the arena holds that, else a share in proportion, never less than the
    largest single piece.

    Raises:
        DeviceError: the largest pieces alone exceed `arena_bytes`.
    """
    total = sum(measured.demand.values())
    if total <= arena_bytes:
        return dict(measured.demand)
    share = arena_bytes / total
    sizes = {
        pool: max(align(int(size * share)) - ALIGNMENT, measured.largest[pool], ALIGNMENT)
        for pool, size in measured.demand.items()
    }
    if sum(sizes.values()) > 2 * arena_bytes:
        raise DeviceError(
            f"an arena of {human_bytes(arena_bytes)} is smaller than the largest matrices of one step "
            f"({human_bytes(sum(measured.largest.values()))}).",
            advice="Give more with --arena-bytes.",
        )
    return sizes
