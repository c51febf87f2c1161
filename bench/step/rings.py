"""Where a step's weights lie: rings of packed random bytes, one per kind of content, walked in step order.

A place in a ring is read again only when the ring has come round, so the bytes read between two readings of one place
are about the size of the arena, whatever the size of the model. Rings are sized in proportion to what one round of
steps reads of each, so they come round together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, cast

from moegauge.bench.step.reuse import reuse_distances
from moegauge.errors import ColdError, DeviceError
from moegauge.formats import get_format
from moegauge.kernels.program import ALIGNMENT, Operation, Place, Program, Vector, Weight
from moegauge.shape import Matrix
from moegauge.units import human_bytes

FEWEST_SLOTS = 8
MOST_LAPS = 512  # programs a step may take turns with; each is compiled, on a GPU captured


def align(size: int) -> int:
    """`size` rounded up to the arena's alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Layout:
    """Hands out places in step order.

    Args:
        capacity: bytes of every pool; None measures demand instead, with rings that never come round.
        distance: bytes that are to lie between two readings of one place.
        spread: after every place so many times its size is left out, less one: few bytes on many pages.
    """

    def __init__(self, capacity: dict[str, int] | None = None, distance: int = 0, spread: int = 1) -> None:
        self.capacity = capacity
        self.distance = distance
        self.spread = spread
        self.demand: dict[str, int] = {}
        self.largest: dict[str, int] = {}
        self._cursor: dict[str, int] = {}

    def place(self, pool: str, size: int, slots: int = 1) -> Place:
        """`slots` runs of `size` bytes side by side.

        Raises:
            DeviceError: the pool is smaller than that.
        """
        stride = align(size)
        total = stride * slots
        start = self._cursor.get(pool, 0)
        if self.capacity is not None:
            if total > self.capacity[pool]:
                raise _too_small(self.capacity[pool], total)
            if start + total > self.capacity[pool]:
                start = 0
        self._cursor[pool] = start + total * self.spread
        self.demand[pool] = self.demand.get(pool, 0) + total
        self.largest[pool] = max(self.largest.get(pool, 0), total)
        return Place(pool, start, size, stride if slots > 1 else 0)

    def slots(self, matrices: Sequence[Matrix], wanted: int) -> int:
        """How many experts of these matrices lie side by side: at most `wanted`, and no more than keep two experts of
        one operation that share a slot `distance` apart."""
        sizes = [_parts(m.format, m.rows, m.columns) for m in matrices]
        each = [sum(size for _, size in parts) for parts in sizes]
        least = max(1, min(each[-1], sum(each[:-1])))  # the last is the down projection, an operation of its own
        slots = max(1, min(wanted, max(FEWEST_SLOTS, 2 * -(-self.distance // least) + 2)))
        together: dict[str, int] = {}
        for pool, size in (part for parts in sizes for part in parts):
            together[pool] = together.get(pool, 0) + align(size) * slots
        for pool, size in together.items():
            self.largest[pool] = max(self.largest.get(pool, 0), size)
        return slots

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


def plan(
    compose: Callable[[Layout, int], list[Program]],
    *,
    distance: int,
    wanted: int,
    room: int,
    fixed: bool,
    roomy: int = 0,
) -> tuple[list[Program], dict[str, int]]:
    """Programs whose successive runs keep `distance` bytes between two readings of one place, and their pools.

    A pool begins with its largest single piece and a share of what is left of `wanted`, in proportion to its demand, so
    that rings come round together; one whose places still return too soon grows until they do not.

    Args:
        compose: lays out so many laps of the step, each the same operations on the next places of the rings.
        distance: bytes.
        wanted: bytes of an arena to begin with.
        room: bytes it may have at most.
        fixed: whether `wanted` was asked for, and is not to be exceeded.
        roomy: bytes the places of one lap are spread over, where they are fewer.

    Raises:
        DeviceError: that needs more than `room` (or `wanted`, where that is fixed).
        ColdError: that needs too many laps.
    """
    measured = Layout(None, distance)
    compose(measured, 1)
    largest, one_lap = measured.largest, sum(measured.demand.values())
    limit = wanted if fixed else room
    if sum(largest.values()) > limit:
        raise _too_small(limit, sum(largest.values()))
    wanted = max(wanted, min(roomy, room))
    share = max(0, wanted - sum(largest.values())) / max(1, one_lap)
    # A lap's demand counts SLOT_STRIDE slots for each expert read, so half of it is surely read where tokens are few.
    laps = max(1, -(-2 * distance // max(1, one_lap)))
    sizes = {pool: largest[pool] + _floor(size * share) for pool, size in measured.demand.items()}
    while laps <= MOST_LAPS:
        spread = max(1, min(roomy, room) // max(1, one_lap * laps))
        demand = {pool: max(size * laps * spread, largest[pool]) for pool, size in measured.demand.items()}
        sizes = {pool: min(size, demand[pool]) for pool, size in sizes.items()}
        programs = compose(Layout(sizes, distance, spread), laps)
        near = [pool for pool, apart in reuse_distances(programs).items() if apart < distance]
        if not near and sum(sizes.values()) <= limit:
            return programs, sizes
        if sum(sizes.values()) > limit and (fixed or not near):
            break
        if all(sizes[pool] == demand[pool] for pool in near):
            laps *= 2
        for pool in near:
            sizes[pool] += max(_floor(sizes[pool] / 8), ALIGNMENT)
    if laps > MOST_LAPS:
        raise ColdError(
            f"one step reads {human_bytes(one_lap)}, too little to be timed from memory and not from the cache.",
            advice="Take a larger model.",
        )
    raise DeviceError(
        f"an arena of {human_bytes(limit)} would be read again before {human_bytes(distance)}, five last-level caches, "
        f"have been read; it needs {human_bytes(sum(sizes.values()))} or more.",
        advice="Raise --arena-bytes, or lower --batch or --context.",
    )


def _floor(size: float) -> int:
    """`size` rounded down to the arena's alignment."""
    return int(size) // ALIGNMENT * ALIGNMENT


def _too_small(given: int, needed: int) -> DeviceError:
    return DeviceError(
        f"an arena of {human_bytes(given)} is smaller than the largest matrices of one step ({human_bytes(needed)}).",
        advice="Give more with --arena-bytes.",
    )


def relaid(operation: Operation, layout: Layout, memo: dict[int, Any]) -> Operation:
    """The same operation on the next places of `layout`; `memo` keeps what operations share shared."""
    return cast("Operation", _relaid(operation, layout, memo))


def _relaid(value: Any, layout: Layout, memo: dict[int, Any], slots: int = 1) -> Any:
    if isinstance(value, Place):
        return layout.place(value.pool, value.bytes, slots)
    if isinstance(value, tuple):
        return tuple(_relaid(v, layout, memo) for v in value)
    if not isinstance(value, Weight | Vector | Operation):
        return value
    if id(value) not in memo:
        slots = value.slots if isinstance(value, Weight | Vector) else 1
        changes = {f.name: _relaid(getattr(value, f.name), layout, memo, slots) for f in fields(value)}
        memo[id(value)] = replace(value, **changes)
    return memo[id(value)]
