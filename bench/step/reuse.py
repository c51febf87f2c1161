"""Reuse distance: bytes read before a step reads the same address again, so that caches stay cold.

The schedule is played on paper: nothing is allocated or run. Bytes are counted as few as can be (a layer whose tokens
all choose the same experts) and places as many as can be (every slot a router may point to), so the answer is a lower
bound whatever the routers say.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from moegauge.kernels.program import Attend, Operation, Place, Program, Route, State, Vector, route_of


class _Run(NamedTuple):
    """Bytes [start, end) of a pool as they were read last.

    Attributes:
        whole: the place they are part of; None where they are slots of which a router reads some.
        first: bytes read before that place was.
        done: bytes read when the operation that read it was over.
    """

    start: int
    end: int
    whole: Place | None
    first: int
    done: int


class _Pool:
    """What was read of one pool last: runs that do not overlap, sorted by their start."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._runs: list[_Run] = []

    def read(self, new: _Run, begin: int) -> float:
        """Enter a reading by an operation before which `begin` bytes were read; the fewest bytes since any of it was
        read before."""
        at = max(0, bisect.bisect_right(self._starts, new.start) - 1)
        stop, nearest, kept = at, math.inf, [new]
        while stop < len(self._runs) and self._runs[stop].start < new.end:
            old = self._runs[stop]
            if old.end > new.start:
                # One matrix read again is read in the same order. Of two, or of slots, any byte may come first or last:
                # threads and multiprocessors divide an operation's rows among them.
                same = new.whole is not None and old.whole == new.whole
                nearest = min(nearest, new.first - old.first if same else begin - old.done)
            kept += [old._replace(end=min(new.start, old.end)), old._replace(start=max(new.end, old.start))]
            stop += 1
        runs = sorted((r for r in kept if r.start < r.end), key=lambda r: r.start)
        self._runs[at:stop] = runs
        self._starts[at:stop] = [r.start for r in runs]
        return nearest


def reuse_distances(programs: Sequence[Program]) -> dict[str, float]:
    """Per pool the fewest bytes read, of all pools together, between two readings of one of its places when `programs`
    run in turn, for ever; infinite where no place is read twice, 0 where one operation may read a place twice.

    A vector that operations of one layer share (a norm's gain) counts as read once, as it does in the traffic.
    """
    pools: dict[str, _Pool] = {}
    nearest: dict[str, float] = {}
    now = 0
    for program in [*programs, *programs]:
        routes = {op.label: op for op in program.operations if isinstance(op, Route)}
        shared: set[int] = set()
        for op in program.operations:
            route = routes.get(route_of(op))
            least = route.top_k if route and program.batch else 0
            found = list(readings(op, shared))
            sizes = [place.bytes * (least if slots else 1) for place, slots in found]
            begin, done = now, now + sum(sizes)
            within = math.inf
            if route:
                most = min(route.experts, program.batch * route.top_k)
                within = _within(route, most, sum(p.bytes for p, slots in found if slots))
            for (place, slots), size in zip(found, sizes, strict=True):
                end = place.at(max(slots, 1) - 1) + place.bytes
                run = _Run(place.offset, end, None if slots else place, now, done)
                apart = pools.setdefault(place.pool, _Pool()).read(run, begin)
                apart = min(apart, within if slots else math.inf)
                nearest[place.pool] = max(0, min(apart, nearest.get(place.pool, math.inf)))
                now += size
    return nearest


def reuse_distance(programs: Sequence[Program]) -> float:
    """The least of `reuse_distances`."""
    return min(reuse_distances(programs).values(), default=math.inf)


def _within(route: Route, most: int, expert_bytes: int) -> float:
    """Fewest bytes between two of `most` experts of one operation that lie in the same slot; infinite where none do."""
    last: dict[int, int] = {}
    nearest = math.inf
    for j in range(most):
        slots = {route.slot_of(j, e) for e in range(route.stride)}
        nearest = min([nearest, *((j - last[slot]) * expert_bytes for slot in slots & last.keys())])
        last.update(dict.fromkeys(slots, j))
    return nearest


def readings(op: Operation, shared: set[int] | None = None) -> Iterator[tuple[Place, int]]:
    """(place, slots) of everything an operation reads of the arena; 0 slots where it is no choice of a router's.
    Vectors whose id is in `shared` are left out, the others' are put there."""
    shared = set() if shared is None else shared
    for item, routed in op.weights():
        slots = item.slots if routed else 0
        if isinstance(item, Vector):
            if id(item) not in shared:
                yield item.place, slots
            shared.add(id(item))
        else:
            yield from ((p, slots) for p in (item.weights, item.scales, item.tensor_scale) if p)
    places = (op.keys, op.values) if isinstance(op, Attend) else (op.place,) if isinstance(op, State) else ()
    yield from ((p, 0) for p in places if p)
