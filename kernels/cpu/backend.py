"""The CPU backend: step programs on the compiled core, an arena in huge pages, the read roof."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from moegauge.errors import DeviceError
from moegauge.formats import FORMATS, get_format
from moegauge.kernels import content
from moegauge.kernels.backend import Arena, Backend, Precision, Runnable, Segment, Stream
from moegauge.kernels.cpu.core import Core, cores, library
from moegauge.kernels.cpu.layout import read_interleaved
from moegauge.kernels.cpu.structs import KINDS, CCut, COperation, CRegion, Translator, region
from moegauge.kernels.host_memory import available_memory, last_level_cache, processor
from moegauge.kernels.program import Choice, Embed, Product, Program, Weight
from moegauge.units import human_bytes

HUGE_PAGE = 1 << 21
# (streams per thread, prefetch distance in bytes): read patterns any of which may be the fastest on a machine. The last
# is the products' own (core.h): no step may read in a way that the roof does not try.
PATTERNS = ((1, 0), (2, 0), (4, 0), (8, 0), (4, 512), (4, 4096), (8, 512), (1, 8192))

# Integer weights, and those a small table turns into integers, are multiplied with inputs of so many steps (decode.h,
# products_4bit.h), as element types.
INPUT_STEPS = {"int8": 32767, "int4": 8127, "e2m1": 8127}

EMPTY = {"operation": Embed, "product": Product}


def _huge(size: int) -> NDArray[np.uint8]:
    """Anonymous memory starting on a huge page, in huge pages where the system grants them."""
    area = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        area.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(area, np.uint8)
    start = -raw.ctypes.data % HUGE_PAGE
    return raw[start : start + size]


class CpuArena(Arena):
    """Pools in one run of huge pages.

    Args:
        pools: bytes of each.
        seed: of their content.
        lanes: 32-bit lanes of the core's vectors (see `moegauge.kernels.cpu.layout`).
        take: hands out memory of at least so many bytes.
        give: takes it back.
    """

    def __init__(
        self,
        pools: Mapping[str, int],
        seed: int,
        lanes: int,
        take: Callable[[int], NDArray[np.uint8]] = _huge,
        give: Callable[[NDArray[np.uint8]], None] = lambda _: None,
    ) -> None:
        self.pools = dict(pools)
        self._lanes, self._give = lanes, give
        self._start: dict[str, int] = {}
        total = 0
        for name, size in pools.items():
            self._start[name] = total
            total += -(-size // HUGE_PAGE) * HUGE_PAGE
        self._memory = take(max(total, 1))
        for name, size in pools.items():
            content.fill(self._memory[self._start[name] :][:size], name, seed)

    def regions(self) -> list[CRegion]:
        """The memory of every pool; only recurrent state is written to."""
        return [CRegion(self.address(p), size, p.startswith("state.")) for p, size in self.pools.items()]

    def address(self, pool: str) -> int:
        """Address of a pool's first byte."""
        return int(self._memory.ctypes.data) + self._start[pool]

    def read(self, pool: str, offset: int, size: int, within: Weight | None = None) -> NDArray[np.uint8]:
        """A copy of some bytes of a pool, in canonical order where they belong to a matrix."""
        if not 0 <= offset <= offset + size <= self.pools[pool]:
            raise IndexError(f"bytes {offset} to {offset + size} of pool {pool} of {self.pools[pool]}")
        if within is not None:
            raw = self._memory[self._start[pool] :][: self.pools[pool]]
            return read_interleaved(raw, pool, offset, size, within, self._lanes)
        return self._memory[self._start[pool] + offset :][:size].copy()

    def close(self) -> None:
        """Give the memory back."""
        memory, self._memory = self._memory, np.zeros(0, np.uint8)
        self._give(memory)


class CpuRunnable(Runnable):
    """A program as an array of C records."""

    def __init__(self, core: Core, program: Program, arena: CpuArena) -> None:
        self.program, self._core, self._arena = program, core, arena
        self._registers = {
            name: np.zeros((max(1, program.batch), width), np.float32) for name, width in program.registers.items()
        }
        self._code = Translator(program, arena.address, self._registers, core.lanes)
        regions = [*arena.regions(), *map(region, self._registers.values()), *self._code.regions()]
        self._loaded = core.load(self._code.operations, regions)

    def run_range(self, first: int, last: int) -> None:
        """Some operations."""
        self._core.run(self._loaded, first, last - first)

    def run_cut(self, size: int, stream: Stream | None) -> list[Segment]:
        """The whole step in segments, in one run of the pool: no thread is woken between."""
        cut = CCut(size)
        if stream is not None:
            assert isinstance(stream, CpuStream)
            cut = stream.cut(size)
        found = self._core.run_cut(self._loaded, cut)
        if stream is not None:
            stream.at = cut.at
        return [
            Segment(s.step / 1e9, s.roof / 1e9, s.step_bytes, s.roof_bytes, s.step_lost / 1e9, s.roof_lost / 1e9)
            for s in found
        ]

    def run_operation(self, index: int) -> None:
        """One operation."""
        self._core.run(self._loaded, index, 1)

    def read(self, register: str) -> NDArray[np.float32]:
        """A copy of a register."""
        return self._registers[register][: self.program.batch].copy()

    def write(self, register: str, values: NDArray[np.float32]) -> None:
        """Overwrite a register."""
        self._registers[register][: self.program.batch] = values

    def choice(self, route: str) -> Choice:
        """The last choice of a route."""
        state = self._code.routes[route]
        return Choice(state.ids.copy(), state.share.copy(), state.slot.copy(), int(state.distinct[0]))

    def forget(self) -> None:
        """Shares become NaN and ids -1; slots stay, for they are addresses."""
        for state in self._code.routes.values():
            state.share[:] = np.nan
            state.ids[:] = -1


class CpuStream(Stream):
    """A read of a buffer by all threads."""

    def __init__(self, core: Core, buffer: NDArray[np.uint8], streams: int, prefetch: int) -> None:
        self.bytes = buffer.size
        self.shape = {"streams": streams, "prefetch": prefetch}
        self.pattern = f"{streams} streams a thread" + (f", prefetch {prefetch} B" if prefetch else "")
        self._core, self._buffer, self._streams, self._prefetch = core, buffer, streams, prefetch
        self.at = 0

    def cut(self, size: int) -> CCut:
        """Where a step is cut to read slices of this buffer; `at` is where the next one begins."""
        return CCut(size, self._buffer.ctypes.data, self.bytes, self.at, self._streams, self._prefetch)

    def run(self) -> None:
        """One pass."""
        self._core.stream(self._buffer.ctypes.data, self.bytes, self._streams, self._prefetch)


class CpuBackend(Backend):
    """All cores this process may use, or `threads` of them."""

    name = "cpu"
    matrix_formats = frozenset(FORMATS)
    cuts = True

    def __init__(self, threads: int | None = None, isa: str = "") -> None:
        if library() is None:
            raise DeviceError("the compiled core is absent.", advice="Install with a C++ compiler at hand.")
        self._core = Core(threads, isa)
        self._spare: NDArray[np.uint8] | None = None
        self.threads, self.isa = self._core.threads, self._core.isa
        self.last_level_cache = last_level_cache()
        self.description = f"{processor()}, {self.isa}, {self.threads} of {len(cores())} cores"

    @property
    def memory(self) -> int:
        """Bytes an arena may take: nine tenths of what is available."""
        return available_memory() * 9 // 10

    def precision(self, format_name: str) -> Precision:
        """Integer products round inputs to half a step of 1/32767 (int8) or 1/8127 (4-bit) of the largest of their run
        (products_4bit.h, decode.h). Sums run in at least four float32 lanes."""
        steps = INPUT_STEPS.get(get_format(format_name).element)
        step = 0.5 / steps if steps else 0.0
        return Precision(of_largest=step, per_term=2.0**-24 / 4)

    def arena(self, pools: Mapping[str, int], seed: int = 0) -> CpuArena:
        """Allocate and fill pools.

        Raises:
            DeviceError: they do not fit.
        """
        spare = 0 if self._spare is None else self._spare.size
        _check_memory(sum(pools.values()), self.memory + spare)
        return CpuArena(pools, seed, self._core.lanes, self._take, self._keep)

    def _take(self, size: int) -> NDArray[np.uint8]:
        """The last arena's memory where it is large enough: fresh pages cost 1.3 s a GB on a virtual machine."""
        spare, self._spare = self._spare, None
        return spare if spare is not None and spare.size >= size else _huge(size)

    def _keep(self, memory: NDArray[np.uint8]) -> None:
        self._spare = memory

    def compile(self, program: Program, arena: Arena) -> Runnable:
        """Bind a program to an arena of this backend."""
        assert isinstance(arena, CpuArena)
        return CpuRunnable(self._core, program, arena)

    def streams(self, size: int) -> list[Stream]:
        """Every read pattern over one buffer."""
        _check_memory(size, self.memory)
        buffer = _huge(-(-size // HUGE_PAGE) * HUGE_PAGE)
        content.fill(buffer, "int8.weight", 0)
        return [CpuStream(self._core, buffer, s, p) for s, p in PATTERNS]

    @property
    def chains(self) -> tuple[str, ...]:
        """The boundaries `chain` can time."""
        return tuple(EMPTY)

    def chain(self, name: str, length: int) -> Callable[[], None]:
        """Runs `length` operations on nothing: `operation` costs one barrier of the pool, `product` those of a
        product, with its planning and its (empty) queue."""
        operations = (COperation * length)()
        for record in operations:
            record.kind = KINDS[EMPTY[name]]  # a batch of 0: no input, no output, no matrix
        loaded = self._core.load(operations, ())

        def run() -> None:
            self._core.run(loaded, 0, length)

        return run

    def synchronize(self) -> None:
        """Nothing is ever pending."""

    def time(self, function: Callable[[], None]) -> float:
        """Wall-clock seconds."""
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    def tune(self, prefetch: int, chunk: int) -> None:
        """Set the prefetch distance and the size of a unit of work, bytes."""
        self._core.tune(prefetch, chunk)


def _check_memory(wanted: int, free: int) -> None:
    if wanted > free:
        raise DeviceError(
            f"an arena of {human_bytes(wanted)} does not fit in the {human_bytes(free)} of memory free here.",
            advice="Lower it with --arena-bytes, or close other programs.",
        )
