"""Queueing model of one GPU multiprocessor: warps queue for its schedulers and its share of memory bandwidth.

One multiprocessor stands for all. Memory is a server that takes bytes in order at this multiprocessor's share of the
read roof, and answers a latency later. Each of four schedulers is a server that a piece of work occupies as long as its
busiest pipe needs, and that gives the warp back when its dependent instructions, one after another, are through.
Launches follow one another as programmatic dependent launches (a program starts where the one before leaves room, asks
for its first weights, and waits for the end of the launch before) or as nodes of a CUDA graph (after the end).

Left out: caches of instructions but at a launch's start, banks, power, clocks that move, the other multiprocessors'
luck with atomics, TLB misses beyond what the memory latency holds.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from heapq import heappop, heappush

from moegauge.bench.queueing.latencies import Latencies

SCHEDULERS = 4
PORT = 64.0  # bytes per clock between the L2 cache and a multiprocessor (NVIDIA A100 whitepaper: 5120 a clock for 80)
MODES = ("pdl", "graph")

Time = float  # ns
Warp = Generator[Time | None, Time, None]  # yields when it goes on, or None until it is woken


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceCost:
    """What a warp issues for one piece of work.

    Attributes:
        alone: cycles of a warp by itself, by the stall counts.
        pipes: instructions by pipe, as `moegauge.kernels.triton.inspect.machine_code.pipes` counts them.
    """

    alone: float
    pipes: tuple[tuple[str, float], ...] = ()

    def busy(self, at: Latencies) -> float:
        """Cycles its scheduler is taken: of its busiest pipe, or of issuing."""
        lanes = {"alu": at.alu_lanes, "fma": at.fma_lanes, "half": at.half_lanes, "imad": at.imad_lanes,
                 "special": at.special_lanes, "shuffle": at.shuffle_lanes, "memory": at.memory_lanes}  # fmt: skip
        worst = 0.0
        for pipe, count in self.pipes:
            each = at.tensor if pipe == "tensor" else 128.0 / lanes[pipe] if pipe in lanes else 1.0 / at.issue_share
            worst = max(worst, count * each)
        return worst


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One launch as the model sees it.

    Attributes:
        kernel: its function's name.
        programs, warps: of the launch; of a program.
        resident: programs that a multiprocessor holds at once.
        chunks: pieces of weights that its programs share out in line; or, where it streams no weights, 0.
        run: neighbouring pieces that make one row tile.
        step: pieces that are shared out together, one for each warp of a program.
        stream: neighbouring pieces of a row tile that one turn of its loop goes through (those of one expert).
        whole: a program that holds a whole row tile counts nobody in.
        chunk_bytes: bytes of one piece; of a launch without pieces all bytes it reads.
        chunk: what a warp issues for one piece.
        alone, alone_loads: of who holds a whole row tile, from the end of its loop to its last store.
        head, wait, tail, finish, again, onward: cycles of a warp alone, as in
            `moegauge.kernels.triton.inspect.machine_code.Way`.
        head_loads, finish_loads, again_loads: loads in turn there, from the L2 cache.
        cold_loads: loads in turn beside them, from memory.
        waits_first: it waits before it asks for weights.
        arrives: atomic additions behind one another before the launch's last output is there.
        prefetched: pieces a warp has brought to the L2 cache before it waits, besides the first.
        turns: times a program without pieces goes through a loop of two loads from memory in turn (attention).
    """

    kernel: str
    programs: int
    warps: int
    resident: int
    chunks: int = 0
    run: int = 1
    step: int = 1
    stream: int = 1 << 30
    whole: bool = True
    chunk_bytes: float = 0.0
    chunk: PieceCost = PieceCost(alone=0.0)
    head: float = 0.0
    wait: float = 0.0
    tail: float = 0.0
    finish: float = 0.0
    alone: float = 0.0
    alone_loads: int = 0
    again: float = 0.0
    onward: float = 0.0
    head_loads: int = 0
    again_loads: int = 0
    finish_loads: int = 0
    cold_loads: int = 0
    waits_first: bool = False
    arrives: int = 0
    prefetched: int = 0
    turns: int = 0

    @property
    def bytes(self) -> float:
        """All it reads from memory."""
        return self.chunk_bytes * (self.chunks or 1)


@dataclass(frozen=True, slots=True)
class Room:
    """What a launch leaves to the next, in ns before (negative) or after its end.

    Attributes:
        freed: when a share of the multiprocessor became free: (time, share).
        triggered: when every program had let the next launch start.
    """

    freed: tuple[tuple[Time, float], ...] = ((0.0, 1.0),)
    triggered: Time = 0.0


class Queue:
    """Serves in order: `take` returns when a piece of work that begins no earlier than `now` is through."""

    __slots__ = ("free",)

    def __init__(self, free: Time) -> None:
        self.free = free

    def take(self, now: Time, length: float) -> Time:
        self.free = max(self.free, now) + length
        return self.free


class _Program:
    """Where the warps of one program meet."""

    __slots__ = ("parked",)

    def __init__(self) -> None:
        self.parked: list[tuple[int, Warp]] = []


class Multiprocessor:
    """One launch on one multiprocessor, after another that ended at time 0.

    Args:
        work: the launch.
        at: the device.
        mode: `pdl` or `graph`.
        room: what the launch before left.
    """

    def __init__(self, work: Workload, at: Latencies, mode: str, room: Room) -> None:
        self.work, self.at = work, at
        self.dependent = mode == "pdl"
        self.mine = max(1, math.ceil(work.programs / at.multiprocessors))
        # What the other multiprocessors do not ask for is there for this one, which has the most programs.
        self.bandwidth = min(at.roof * self.mine / max(1, work.programs), PORT * at.clock)
        self.memory = Queue(-math.inf)
        self.schedulers = [Queue(-math.inf) for _ in range(SCHEDULERS)]
        start = room.triggered if self.dependent else at.edge
        self.released = at.release if self.dependent else start
        self.starts = self._starts(room, start)
        self.ended = self.counted = -math.inf
        self.freed: list[tuple[Time, float]] = []
        self._queue: list[tuple[Time, int, Warp]] = []
        self._waiting: list[int] = []  # programs that found no room at the start
        self._programs: dict[int, _Program] = {}  # by warp

    def _starts(self, room: Room, start: Time) -> list[Time]:
        """When this multiprocessor's first programs start, as room for each becomes free."""
        share, got = 1.0 / self.work.resident, 0.0
        times: list[Time] = []
        last = -math.inf
        every = sorted(room.freed) if self.dependent else [(start, 1.0)]
        pace = self.at.multiprocessors / self.at.programs_rate
        for time, part in every:
            got += part
            while got >= share * (1 - 1e-9) and len(times) < min(self.mine, self.work.resident):
                got -= share
                last = max(time, start, last + pace)
                times.append(last)
        return times

    def _compute(self, warp: int, now: Time, piece: PieceCost) -> Time:
        """When a warp is through with a piece of work."""
        clock = self.at.clock
        scheduler = self.schedulers[warp % SCHEDULERS]
        begun = max(scheduler.free, now)
        scheduler.take(now, piece.busy(self.at) / clock)
        return max(scheduler.free, begun + piece.alone * self.at.stall_factor / clock)

    def _cycles(self, cycles: float) -> Time:
        """Ns of a warp that waits for nobody."""
        return cycles * self.at.stall_factor / self.at.clock

    def _ask(self, now: Time, size: float) -> Time:
        """When bytes from memory are there."""
        return self.memory.take(now, size / self.bandwidth) + self.at.dram

    def _share(self, program: int) -> list[tuple[int, int, bool]]:
        """(first piece in its row tile, pieces, whether they are all of it) of each row tile a program works on."""
        work = self.work
        number = program * int(self.at.multiprocessors) % work.programs
        each, more = divmod(work.chunks // work.step, work.programs)
        begin = (number * each + min(number, more)) * work.step
        end = begin + (each + (number < more)) * work.step
        found = []
        while begin < end:
            stop = min(end, (begin // work.run + 1) * work.run)
            found.append((begin % work.run, stop - begin, work.whole and stop - begin == work.run))
            begin = stop
        return found

    def _warp(self, number: int, program: int, me: _Program, start: Time) -> Warp:
        """A warp's life; what it yields is when it goes on, None until the others of its program come."""
        work, at = self.work, self.at
        now = yield start + at.fetch
        if work.waits_first and self.dependent:
            now = yield now + self._cycles(max(0.0, work.head - work.wait))
            now = yield max(now, self.released) + self._cycles(work.wait) + work.head_loads * at.l2
        else:
            now = yield now + self._cycles(work.head) + work.head_loads * at.l2
        if not work.chunks:
            now = yield from self._without_pieces(now)
        else:
            waited = work.waits_first or not self.dependent
            lane, whole = number % work.warps, False
            for first, pieces, whole in self._share(program):
                mine = [first + i for i in range(lane, pieces, work.warps)]
                now = yield from self._stream(number, mine, now, waited)
                waited = True
                now = yield from self._meet(number, me, now)
                if whole:
                    now = yield now + self._cycles(work.alone) + work.alone_loads * at.l2
                    continue
                now = yield now + self._cycles(work.tail)
                if work.arrives:
                    now = yield now + at.fence + at.atomic
                    self.counted = max(self.counted, now)
                now = yield now + self._cycles(work.onward)
        self.ended = max(self.ended, now)
        self.freed.append((now, 1.0 / work.resident / work.warps))
        if self._waiting and number % work.warps == 0:
            self._enter(self._waiting.pop(0), now)

    @property
    def _loads(self) -> Time:
        """Ns of the loads in turn that whoever adds up a row tile makes."""
        work, at = self.work, self.at
        return work.finish_loads * at.l2 + work.cold_loads * at.dram

    def _stream(self, number: int, mine: list[int], now: Time, waited: bool) -> Generator[Time | None, Time, Time]:
        """Load and multiply a warp's pieces of one row tile, two on their way at a time."""
        work, at = self.work, self.at
        asked = [self._ask(now, work.chunk_bytes)] if mine else []
        ahead: list[Time] = []
        if not waited:
            ahead = [self._ask(now, work.chunk_bytes) for _ in mine[1 : work.prefetched + 1]]
            now = yield max(now, self.released) + at.l2  # the input, as the launch before left it in the L2
        for i, piece in enumerate(mine):
            follows = i + 1 < len(mine) and mine[i + 1] // work.stream == piece // work.stream
            if follows:
                asked.append(max(now + at.l2, ahead[i]) if i < len(ahead) else self._ask(now, work.chunk_bytes))
            now = yield max(now, asked[i])
            now = yield self._compute(number, now, work.chunk)
            if i + 1 < len(mine) and not follows:  # another expert's matrix: the loop starts again
                now = yield now + self._cycles(work.again) + work.again_loads * at.l2
                asked.append(self._ask(now, work.chunk_bytes))
        return now

    def _meet(self, number: int, me: _Program, now: Time) -> Generator[Time | None, Time, Time]:
        """The warps of a program add up what they have, on chip, and go on together."""
        if self.work.warps == 1:
            return now
        now = yield now + self.at.barrier + self.at.shared
        if len(me.parked) + 1 < self.work.warps:
            now = yield None
        else:
            for other, warp in me.parked:
                heappush(self._queue, (now, other, warp))
            me.parked.clear()
        return now

    def _without_pieces(self, now: Time) -> Generator[Time | None, Time, Time]:
        work, at = self.work, self.at
        now = yield max(now, self.released)
        size = work.bytes / work.programs / work.warps
        for _ in range(work.turns):
            for _ in range(2):
                now = yield self._ask(now, size / 2 / work.turns)
            now = yield now + self._cycles(work.chunk.alone)
        if not work.turns and size:
            now = yield self._ask(now, size)
        if work.arrives:
            now = yield now + at.fence + at.atomic
            self.counted = max(self.counted, now)
        return now

    def _enter(self, program: int, start: Time) -> None:
        me = _Program()
        for lane in range(self.work.warps):
            number = program * self.work.warps + lane
            warp = self._warp(number, program, me, start)
            self._programs[number] = me
            heappush(self._queue, (next(warp) or 0.0, number, warp))

    def run(self) -> tuple[Time, Room]:
        """(when the launch ends, what it leaves to the next, in times before its end)."""
        self._waiting = list(range(len(self.starts), self.mine))
        for program, start in enumerate(self.starts):
            self._enter(program, start)
        while self._queue:
            now, number, warp = heappop(self._queue)
            try:
                after = warp.send(now)
            except StopIteration:
                continue
            if after is None:
                self._programs[number].parked.append((number, warp))
            else:
                heappush(self._queue, (after, number, warp))
        work, at = self.work, self.at
        # Whoever counted in last adds up; a router then counts in once more.
        last = self.counted + self._cycles(work.finish) + self._loads
        end = max(self.ended, last + max(0, work.arrives - 1) * (at.fence + at.atomic))
        triggered = max([self.released, *self.starts]) if self.dependent else end
        left = 1.0 - len(self.starts) / work.resident  # never taken
        freed = [(-1e6, left)] if left > 1e-9 else []
        freed += [(time - end, share) for time, share in sorted(self.freed)]
        return end, Room(tuple(freed), min(triggered, end) - end)


def chain(works: list[Workload], at: Latencies, mode: str = "pdl", room: Room | None = None) -> tuple[list[Time], Room]:
    """Ns that each of several launches adds, one after another, and what the last leaves.

    Alike launches after alike ones are worked out once.
    """
    known: dict[tuple[Workload, Room], tuple[Time, Room]] = {}
    room, added = room or Room(), []
    for work in works:
        if (work, room) not in known:
            end, left = Multiprocessor(work, at, mode, room).run()
            rounded = Room(tuple((round(t, 1), s) for t, s in left.freed), round(left.triggered, 1))
            known[work, room] = end, rounded
        end, room = known[work, room]
        added.append(end)
    return added, room
