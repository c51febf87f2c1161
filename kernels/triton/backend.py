"""The Triton backend: NVIDIA GPUs of compute capability 8.0 and later, or Triton's interpreter on the CPU.

Nothing touches a GPU before `TritonBackend()` is called. `DeviceError` says in one line what is missing.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moegauge.errors import DeviceError, UnknownNameError
from moegauge.kernels.backend import Backend, LaunchProfile, Precision, Range, Runnable, Stream
from moegauge.kernels.program import Choice, Program
from moegauge.kernels.triton.lowering import layout
from moegauge.kernels.triton.lowering.configuration import CONFIGURATIONS, Configuration, default_for

if TYPE_CHECKING:
    from moegauge.kernels.triton.lowering.arena import TritonArena

LAUNCH_MODES = ("eager", "graph", "pdl")
INTERPRETED = "interpreter"

# (programs per multiprocessor, warps per program, loads of 16 bytes in flight per thread)
STREAM_PATTERNS = ((1, 32, 4), (2, 16, 4), (2, 16, 8), (4, 8, 4), (4, 8, 8), (8, 4, 8), (16, 4, 4))

# What a sweep of the roof tries: bytes of a load, loads in flight, warps per program, programs per multiprocessor.
SWEEP_WIDTHS, SWEEP_UNROLLS = (4, 8, 16), (1, 2, 4, 8, 16)
SWEEP_WARPS, SWEEP_PROGRAMS = (4, 8, 16), (1, 2, 4, 8, 16)
# A step of a few GB that is spread over so much meets as many pages as the model would: its translations are not all
# cached either. Where the device has less, an arena is as small as the caches allow.
ARENA = 64 * 10**9

SWEEP_MOST_WARPS = 64  # of one multiprocessor, compute capability 8.0 and 9.0


def column_order() -> bool:
    """True where a dot operand gives a lane four neighbouring columns (Triton up to 3.7); see `tiles.dot16`."""
    import triton

    major, minor = (int(part) for part in triton.__version__.split(".")[:2])
    return (major, minor) < (3, 8)


class TritonRunnable(Runnable):
    """A program as launches on a device.

    Args:
        mode: `eager`, `graph` or `pdl`.
    """

    def __init__(
        self, program: Program, arena: TritonArena, backend: TritonBackend, configuration: Configuration, mode: str
    ) -> None:
        from moegauge.kernels.triton.lowering.program import MAX_BATCH, Lowering
        from moegauge.kernels.triton.lowering.registers import Registers

        if program.batch > MAX_BATCH:
            raise DeviceError(f"{program.name}: batch {program.batch}.", advice=f"Triton decodes at most {MAX_BATCH}.")
        self.program = program
        self._backend, self._mode = backend, mode
        self._graphs: dict[Range, Any] = {}
        self._registers = Registers(program, backend.device)
        lowered = Lowering(
            program,
            arena,
            self._registers,
            configuration,
            backend.processors,
            compiled=backend.device != "cpu",
            quad=column_order(),
        )
        self._launches = lowered.lower() if program.batch else [[] for _ in program.operations]
        for launches in self._launches:
            for launch in launches:
                launch.check(backend.device)
        if backend.device != "cpu":
            from moegauge.kernels.triton.launching.precompile import precompile

            precompile((launch for launches in self._launches for launch in launches), mode == "pdl")
        self._routes = lowered.routes
        every = [launch for launches in self._launches for launch in launches]
        self._before = [launch for launch in every if launch.once and not launch.reuses]
        self._written = lowered.written
        self._stale = True  # what these read was written since they ran
        self.kernels_per_step = sum(launch.enqueued for launch in every)

    def run_range(self, first: int, last: int) -> None:
        """Enqueue operations: a graph replay, or launch by launch where launches are eager and under the interpreter,
        which has no graphs. A range's first run captures its graph, and has run it by then: a step that adds to its
        registers would add twice, were it replayed as well."""
        self._refresh()
        if self._mode == "eager" or self._backend.device == "cpu":
            self._enqueue(first, last)
        elif (first, last) in self._graphs:
            self._graphs[first, last].replay()
        elif any(launch.enqueued for launches in self._launches[first:last] for launch in launches):
            from moegauge.kernels.triton.launching.capture import capture

            self._graphs[first, last] = capture(lambda: self._enqueue(first, last))

    def _refresh(self) -> None:
        """Run what depends on nothing the step writes: the inputs and choices of a kernel that is timed alone."""
        if self._stale:
            for launch in self._before:
                launch.run(dependent=self._mode == "pdl")
            self._stale = False

    def warm(self, ranges: Sequence[Range] = ()) -> None:
        """Capture the graphs and replay each once: a first run takes the host tens of milliseconds, and a step of many
        programs would spend them inside its samples."""
        wanted = ranges or [(0, len(self.program.operations))]
        if not all(one in self._graphs for one in wanted):
            for _ in range(2):
                for first, last in wanted:
                    self.run_range(first, last)

    def _enqueue(self, first: int, last: int) -> None:
        from moegauge.kernels.triton.launching.launch import run_all

        for launches in self._launches[first:last]:
            run_all(launches, dependent=self._mode == "pdl")

    def run_operation(self, index: int) -> None:
        """One operation with the inputs it needs, by the very kernels the step is timed with, and wait."""
        for launch in self._launches[index]:
            launch.run(dependent=self._mode == "pdl")
        self._backend.synchronize()

    def read(self, register: str) -> NDArray[np.float32]:
        """A copy of a register."""
        return np.asarray(self._registers[register][: self.program.batch].cpu().numpy()).copy()

    def write(self, register: str, values: NDArray[np.float32]) -> None:
        """Overwrite a register."""
        import torch

        held = self._registers[register]
        given = np.ascontiguousarray(values, np.float32)
        if given.shape != (self.program.batch, held.shape[1]):
            raise DeviceError(
                f"register {register}: got {given.shape}, not {(self.program.batch, held.shape[1])}.",
                advice="Pass one float32 row per token.",
            )
        if self.program.batch:
            self._registers.write(register, torch.from_numpy(given))
            self._stale |= register not in self._written

    def choice(self, route: str) -> Choice:
        """The last choice of a route."""
        tables = self._routes[route]
        shape = (self.program.batch, tables.top_k)
        ids, share, slots = (t.cpu().numpy().reshape(shape).copy() for t in (tables.ids, tables.share, tables.slot_of))
        return Choice(ids, share, slots, int(tables.distinct.item()))

    def forget(self) -> None:
        """Shares become NaN and ids -1; slots and counts stay, for they are addresses and lengths."""
        for tables in self._routes.values():
            tables.share.fill_(float("nan"))
            tables.ids.fill_(-1)
        self._stale = True

    def launches(self) -> list[LaunchProfile]:
        """What one step launches; empty under the interpreter, which compiles nothing."""
        if self._backend.device == "cpu":
            return []
        from moegauge.kernels.triton.inspect.profile import profile

        return profile(
            self.program,
            self._launches,
            lambda route: int(self._routes[route].distinct.item()),
            dependent=self._mode == "pdl",
            capability=self._backend.capability,
            processors=self._backend.processors,
            shared_per_processor=self._backend.shared_per_processor,
        )


class TritonStream(Stream):
    """A read of a buffer by a persistent grid.

    Args:
        buffer: int32 words.
        processors: multiprocessors.
        pattern: (programs per multiprocessor, warps per program, loads in flight per thread).
        width: bytes of one thread's load: 4, 8 or 16.
    """

    def __init__(self, buffer: Any, processors: int, pattern: tuple[int, int, int], width: int = 16) -> None:
        import torch

        programs, self._warps, self._unroll = pattern
        self.shape = {"width": width, "unroll": self._unroll, "programs": programs, "warps": self._warps}
        self.pattern = (
            f"{programs} x {self._warps} warps per multiprocessor, {self._unroll} loads of {width} B in flight"
        )
        self._block = 8 * width * self._warps  # words one turn of a program's lanes brings
        step = self._block * self._unroll
        self._words = buffer.numel() // step * step
        self.bytes = self._words * 4
        self._buffer, self._grid = buffer, (programs * processors,)
        self._out = torch.zeros(self._grid, dtype=torch.int32, device=buffer.device)

    def run(self) -> None:
        """Enqueue one pass."""
        from moegauge.kernels.triton.device.stream import stream

        stream[self._grid](self._buffer, self._out, self._words, **self._constants())

    def compile(self) -> None:
        """Compile its kernel without launching it."""
        from moegauge.kernels.triton.device.stream import stream

        stream.warmup(self._buffer, self._out, self._words, grid=self._grid, **self._constants())

    def _constants(self) -> dict[str, Any]:
        from moegauge.kernels.triton.launching.launch import OPTIONS

        return {**OPTIONS, "BLOCK": self._block, "UNROLL": self._unroll, "num_warps": self._warps}


class TritonBackend(Backend):
    """One NVIDIA GPU; or, under TRITON_INTERPRET=1 and device `cpu`, the interpreter (for tests, thousands of times
    slower).

    Args:
        device: `cuda` or `cpu`.
        launch_mode: how steps are launched: `eager`, `graph` (a CUDA graph, the default) or `pdl` (a graph of
            programmatic dependent launches, compute capability 9.0 and later).
        configuration: a name of `CONFIGURATIONS`; None measures which is fastest, see `triton.tuning`.

    Raises:
        UnknownNameError: no such launch mode or configuration.
        DeviceError: no GPU, one too old, or no Triton.
    """

    name = "triton"
    threads = 0
    memory = 0
    matrix_formats = layout.TILED_FORMATS | {"f32"}

    def __init__(self, device: str = "cuda", launch_mode: str = "", configuration: str | None = None) -> None:
        if launch_mode and launch_mode not in LAUNCH_MODES:
            raise UnknownNameError("launch mode", launch_mode, LAUNCH_MODES)
        if configuration is not None and configuration not in CONFIGURATIONS:
            raise UnknownNameError("configuration", configuration, CONFIGURATIONS)
        self.device = device
        self._buffer: Any = None
        if device == "cpu":
            self._interpreter()
        else:
            self._gpu()
        capability = self.capability
        if device == "cpu":
            launch_mode = "eager"  # the interpreter has neither graphs nor dependence
        self.launch_mode = launch_mode or "graph"
        if self.launch_mode == "pdl" and capability < (9, 0):
            raise DeviceError(f"{self.description} has no programmatic dependent launch.", advice="Use --launch graph.")
        self.configuration = CONFIGURATIONS[configuration] if configuration else default_for(capability)
        self._fixed = configuration is not None

    def _interpreter(self) -> None:
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise DeviceError("the Triton interpreter is off.", advice="Set TRITON_INTERPRET=1 before starting Python.")
        self.description, self.capability, self.processors = "Triton interpreter", (9, 0), 1
        self.last_level_cache, self.memory, self.shared_per_processor = 1 << 20, 1 << 30, 1 << 17

    def _gpu(self) -> None:
        try:
            import torch
            import triton
        except ImportError as error:
            raise DeviceError(
                f"device 'cuda' needs {error.name}.",
                advice="Run: pip install 'moegauge[bench]' with a CUDA build of PyTorch.",
            ) from None
        if not torch.cuda.is_available():
            raise DeviceError("no CUDA device is visible to PyTorch.", advice="Check nvidia-smi, or use --device cpu.")
        properties = torch.cuda.get_device_properties(0)
        self.capability = (properties.major, properties.minor)
        if self.capability < (8, 0):
            raise DeviceError(
                f"{properties.name} has compute capability {properties.major}.{properties.minor}.",
                advice="The Triton kernels need 8.0; use --device cpu.",
            )
        self.processors = properties.multi_processor_count
        self.last_level_cache = properties.L2_cache_size
        self.shared_per_processor = int(getattr(properties, "shared_memory_per_multiprocessor", 100 << 10))
        self.memory = int(torch.cuda.mem_get_info()[0] * 0.92)
        self.usual_arena = ARENA if self.memory > ARENA * 5 // 4 else 0
        self.description = f"{properties.name}, {self.processors} multiprocessors, Triton {triton.__version__}"

    def precision(self, format_name: str) -> Precision:
        """Inputs are rounded to bfloat16 (2^-8 of each), weights are exact, products exact. The tensor core may cut
        the low bits of a float32 sum where rounding would keep half of them: one unit, 2^-23, per term."""
        del format_name
        return Precision(relative=2.0**-8, per_term=2.0**-23)

    def arena(self, pools: Mapping[str, int], seed: int = 0) -> TritonArena:
        """Allocate and fill pools."""
        from moegauge.kernels.triton.lowering.arena import TritonArena
        from moegauge.units import human_bytes

        total = sum(pools.values())
        if total > self.memory:
            raise DeviceError(
                f"the arena needs {human_bytes(total)}, {self.description} has {human_bytes(self.memory)} free.",
                advice="Lower --arena-bytes, --batch or --context.",
            )
        return TritonArena(pools, seed, self.device)

    def compile(self, program: Program, arena: Any) -> Runnable:
        """Bind `program` to `arena`, with the configuration measured fastest for it on this device.

        Raises:
            DeviceError: a batch above 64, an arena of another backend or device, a pool it lacks.
        """
        from moegauge.kernels.triton.lowering.arena import TritonArena

        if not isinstance(arena, TritonArena) or arena.device != self.device:
            raise DeviceError(
                f"{program.name}: the arena is not on {self.device}.", advice="Make it with this backend."
            )
        if lacking := sorted(set(program.pools) - set(arena.pools)):
            raise DeviceError(
                f"{program.name}: the arena has no pool {', '.join(lacking)}.", advice="Allocate it first."
            )
        return TritonRunnable(program, arena, self, self._configuration_for(program, arena), self.launch_mode)

    def _configuration_for(self, program: Program, arena: TritonArena) -> Configuration:
        from moegauge.kernels.triton.launching import tuning

        if self._fixed or self.device == "cpu" or not program.batch or not tuning.enabled():
            return self.configuration

        def seconds(name: str) -> float:
            runnable = TritonRunnable(program, arena, self, CONFIGURATIONS[name], self.launch_mode)
            runnable.warm()
            return sorted(self.time(runnable.run) for _ in range(5))[2]

        formats = " ".join(sorted(name for name in program.pools if name.endswith(".weight")))
        key = f"{self.description}; {self.launch_mode}; {program.name}; {formats}"
        return CONFIGURATIONS[tuning.choose(key, CONFIGURATIONS, seconds, tuning.cache_file())]

    def _stream_buffer(self, size: int) -> Any:
        """Random words; kept, so that a sweep and the roof after it read the same memory."""
        import torch

        words = max(size // 4, 1 << 16)
        if self._buffer is None or self._buffer.numel() != words:
            self._buffer = None
            self._buffer = torch.randint(-(2**31), 2**31 - 1, (words,), dtype=torch.int32, device=self.device)
        return self._buffer

    def streams(self, size: int) -> list[Stream]:
        """The access patterns of the read roof."""
        buffer = self._stream_buffer(size)
        return [TritonStream(buffer, self.processors, pattern) for pattern in STREAM_PATTERNS]

    def sweep(self, size: int) -> list[TritonStream]:
        """The read roof's patterns by width, loads in flight, programs and warps, kernels compiled; one buffer."""
        from moegauge.kernels.triton.launching.precompile import side_by_side

        buffer = self._stream_buffer(size)
        found = [
            TritonStream(buffer, self.processors, (programs, warps, unroll), width)
            for width in SWEEP_WIDTHS
            for unroll in SWEEP_UNROLLS
            for warps in SWEEP_WARPS
            for programs in SWEEP_PROGRAMS
            if programs * warps <= SWEEP_MOST_WARPS
        ]
        if self.device != "cpu":  # programs change the grid alone, so the first of them compiles for all
            jobs = [stream.compile for stream in found if stream.shape["programs"] == SWEEP_PROGRAMS[0]]
            side_by_side(jobs, lenient=True)
        return found

    @property
    def launch_modes(self) -> tuple[str, ...]:
        """The ways of launching this device has, slowest first."""
        if self.device == "cpu":
            return ("eager",)
        return tuple(mode for mode in LAUNCH_MODES if mode != "pdl" or self.capability >= (9, 0))

    def on(self, launch_mode: str) -> TritonBackend:
        """This device with another way of launching.

        Raises:
            UnknownNameError: the device does not have it.
        """
        if launch_mode not in self.launch_modes:
            raise UnknownNameError("launch mode", launch_mode, self.launch_modes)
        other = copy.copy(self)  # not made anew: memory PyTorch keeps for reuse would not count as free
        other.launch_mode = launch_mode
        return other

    @property
    def chains(self) -> tuple[str, ...]:
        """The boundaries `chain` can time: a launch mode, or one and what its kernels look like."""
        from moegauge.kernels.triton.launching.empty_chain import BOUNDARIES

        return tuple(name for name, one in BOUNDARIES.items() if one.mode in self.launch_modes)

    def chain(self, name: str, length: int) -> Callable[[], None]:
        """Enqueues `length` empty kernels, launched as `name` says."""
        from moegauge.kernels.triton.launching.empty_chain import BOUNDARIES, Chain

        return Chain(length, BOUNDARIES[name], self.processors, self.device).run

    def synchronize(self) -> None:
        """Wait for everything enqueued."""
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()

    def time(self, function: Callable[[], None]) -> float:
        """Seconds by CUDA events around `function`, the device idle before and after."""
        self.synchronize()
        if self.device == "cpu":
            start = time.perf_counter()
            function()
            return time.perf_counter() - start
        import torch

        cuda: Any = torch.cuda  # its classes are not typed
        begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
