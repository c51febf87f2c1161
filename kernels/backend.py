"""The Backend contract: what a new device must implement to run step programs and read memory.

A new device is a class derived from `Backend`, with an `Arena`, a `Runnable` and a `Stream` of its own, and a row in
`moegauge.kernels.devices`. What is abstract here it must write; what has a body here it has when it says nothing: one
launch mode, no empty operations, no further roof patterns, nothing to warm up, no compiler's report. There is nothing
else: nobody looks for a capability that is not named here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from moegauge.errors import UnknownNameError
from moegauge.kernels.program import Choice, Program, Weight

Range = tuple[int, int]  # operations [first, last) of a program


@dataclass(frozen=True, slots=True)
class Precision:
    """How exactly a backend multiplies by matrices of one format; the bounds of the numerical gate follow from it.

    The error of an output y = sum of w_j x_j is at most
        relative * sum |w_j x_j|  +  of_largest * max |x| * sum |w_j|  +  (columns * per_term + 2^-20) * sum |w_j x_j|.

    Attributes:
        relative: largest error of an input or weight as it is used, relative to itself (2^-9: rounded to bfloat16).
        of_largest: largest error of an input relative to the largest input of its row (integer inputs).
        per_term: rounding per term of the sum; 2^-24 / n where n partial sums run side by side in float32.
    """

    relative: float = 0.0
    of_largest: float = 0.0
    per_term: float = 2.0**-24


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchProfile:
    """One distinct launch of a step, as the compiler and the grid tell it.

    Attributes:
        kernel: the function's name.
        launches: times a step launches it alike.
        grid, warps: programs of a launch by dimension, warps per program.
        registers, shared: per thread; bytes per program.
        resident: programs that fit the device at once.
        processors: multiprocessors of the device.
        instructions_per_weight: of its weight loop, from the machine code; None without one.
        weights: weights one launch multiplies; 0 where it streams none.
        chunks: pieces of work its programs share out evenly, the fewest where that depends on the routing; 0 where a
            program has a piece of its own.
    """

    kernel: str
    launches: int
    grid: tuple[int, ...]
    warps: int
    registers: int
    shared: int
    resident: int
    processors: int
    instructions_per_weight: float | None
    weights: int
    chunks: int

    @property
    def programs(self) -> int:
        """Programs of one launch."""
        count = 1
        for size in self.grid:
            count *= size
        return count


class Arena(Protocol):
    """Pools of packed random bytes on the device, one per kind of content; see `moegauge.kernels.content.fill`.

    Attributes:
        pools: bytes of every pool.
    """

    pools: Mapping[str, int]

    @abstractmethod
    def read(self, pool: str, offset: int, size: int, within: Weight | None = None) -> NDArray[np.uint8]:
        """A copy of bytes [offset, offset + size) of one pool, in canonical packed order, on the host: for the
        numerical gate.

        `within` is the matrix whose weights (or scales) they are, needed wherever the pool holds packed matrices: a
        backend's packed order depends on rows and columns, and one region may serve matrices of several shapes.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the memory back: called by whoever built the step, once."""


class Segment(NamedTuple):
    """A part of a step, and the slice of the roof read behind it.

    Attributes:
        step_s, roof_s: seconds; `roof_s` is 0 where nothing was read.
        step_bytes: bytes of weights (scales left out) and caches of the part.
        roof_bytes: bytes of the slice.
        step_lost_s, roof_lost_s: seconds of them in which the thread that lost most had no core.
    """

    step_s: float
    roof_s: float
    step_bytes: int
    roof_bytes: int
    step_lost_s: float
    roof_lost_s: float


class WarmUp(Protocol):
    """What a backend does once per program."""

    def warm(self, ranges: Sequence[Range] = ()) -> None:
        """Do what the first run of the whole program, or of each of `ranges`, would spend the host's time on; called by
        the numerical gate, before anything is timed. Runs them; without effect where it was done before."""
        del ranges


class Segments(Protocol):
    """A step in parts, so that something else can run between them."""

    program: Program

    @abstractmethod
    def run_range(self, first: int, last: int) -> None:
        """Enqueue operations [first, last) as `run` does; called by timers that measure the roof between the parts of a
        step. Ranges that follow each other through the program give, bit for bit, what `run` gives."""

    def run_cut(self, size: int, stream: Stream | None) -> list[Segment]:
        """Run the whole step in segments that read about `size` bytes each, cut between and within operations,
        and behind each as many bytes of `stream` (None: nothing), which goes on where its last slice ended. Gives, bit
        for bit, what `run` gives. Not called where the backend does not cut: the step runs whole, nothing is told."""
        del size, stream
        self.run()
        return []

    def run(self) -> None:
        """Enqueue the whole step; `Backend.synchronize` waits for it. Called by every timer."""
        self.run_range(0, len(self.program.operations))


class ProfiledLaunches(Protocol):
    """What a compiler tells of a program."""

    def launches(self) -> list[LaunchProfile]:
        """Every distinct launch of one step, in order of first use, nothing where no compiler tells; called for kernels
        timed alone, when their times are in."""
        return []


class Runnable(Segments, WarmUp, ProfiledLaunches, Protocol):
    """A compiled program bound to an arena. Not thread-safe.

    Attributes:
        program: what it runs.
    """

    @abstractmethod
    def run_operation(self, index: int) -> None:
        """Run one operation alone, with the inputs it needs, and wait for it: for the numerical gate."""

    @abstractmethod
    def read(self, register: str) -> NDArray[np.float32]:
        """A copy of a register, [B, width]: for the numerical gate."""

    @abstractmethod
    def write(self, register: str, values: NDArray[np.float32]) -> None:
        """Overwrite a register, [B, width]; the numerical gate poisons outputs with NaN through it."""

    @abstractmethod
    def choice(self, route: str) -> Choice:
        """What the `Route` operation labelled `route` chose last: for the gate, and to count the bytes of a run."""

    @abstractmethod
    def forget(self) -> None:
        """Make every choice one that no run could have made, so that the gate sees a run which makes none."""


class Stream(Protocol):
    """One read-only pass over a buffer: a sample of the roof.

    Attributes:
        bytes: what one pass reads.
        pattern: how it reads, in words, for people.
        shape: the same in numbers, unlike for unlike patterns of a backend: a run that is taken up again finds the best
            pattern of its first part by it.
    """

    bytes: int
    pattern: str
    shape: Mapping[str, int]

    @abstractmethod
    def run(self) -> None:
        """Enqueue one pass: called by the roof meter."""


class LaunchModes(Protocol):
    """How a step is launched, and what other ways the device has.

    Attributes:
        launch_mode: how programs of `Backend.compile` are launched, as a record's case states it; "" where there is one
            way only.
    """

    launch_mode: str = ""

    @property
    def launch_modes(self) -> tuple[str, ...]:
        """Every way this device has, slowest first: what a suite's launch-mode comparison measures."""
        return (self.launch_mode,)

    def on(self, launch_mode: str) -> Backend:
        """The same device launching in another way: called by that comparison, and where a way has failed its gate.

        Raises:
            UnknownNameError: the device does not have it.
        """
        raise UnknownNameError("launch mode", launch_mode, self.launch_modes)


class EmptyChains(Protocol):
    """Empty operations one after the other: what a kernel boundary costs."""

    @property
    def chains(self) -> tuple[str, ...]:
        """The boundaries `chain` can time: a suite's stage of floors measures each."""
        return ()

    def chain(self, name: str, length: int) -> Callable[[], None]:
        """What enqueues `length` empty operations, each behind the one before it, over a boundary of `chains`; called
        by `moegauge.bench.clock.boundaries` for a short chain and a long one."""
        raise UnknownNameError("boundary", name, self.chains)


class RoofSweep(Protocol):
    """More access patterns of the roof than a usual run has time for."""

    def sweep(self, size: int) -> Sequence[Stream]:
        """Further patterns over one shared buffer of about `size` bytes: tried by a suite's stage `roof sweep`."""
        del size
        return ()


class Backend(LaunchModes, EmptyChains, RoofSweep, Protocol):
    """One device.

    Attributes:
        name: `cpu`, `triton` or `reference`, as in a record's `backend`.
        description: the device in words, e.g. `AMD EPYC, AVX2, 2 threads`.
        last_level_cache: bytes; nothing of the arena is read twice within five times this.
        threads: threads used; 0 where the notion does not apply.
        matrix_formats: formats its kernels decode.
        isa: instruction set of its products; "" where their arithmetic hides behind memory or there is no such name:
            what products cost in the caches is then not measured.
        cuts: whether its runnables run in segments (`Runnable.run_cut`); a GPU's whole step is short enough.
        usual_arena: bytes that a step's weights are spread over when nobody asks for another size; 0 is as few as keep
            them out of the caches.
    """

    name: str
    description: str
    last_level_cache: int
    threads: int
    matrix_formats: frozenset[str]
    isa: str = ""
    usual_arena: int = 0
    cuts: bool = False

    @property
    @abstractmethod
    def memory(self) -> int:
        """Bytes an arena may take now: asked before each step is laid out."""

    @abstractmethod
    def precision(self, format_name: str) -> Precision:
        """How exactly products with this format are computed: the gate's bounds follow from it."""

    @abstractmethod
    def arena(self, pools: Mapping[str, int], seed: int = 0) -> Arena:
        """Allocate and fill pools with random valid packed bytes: called once per step.

        Raises:
            DeviceError: they do not fit; the message gives both sizes and the option to lower.
        """

    @abstractmethod
    def compile(self, program: Program, arena: Arena) -> Runnable:
        """Bind `program` to `arena`: called for every program copy of a step.

        Raises:
            DeviceError: the device cannot run it.
        """

    @abstractmethod
    def streams(self, size: int) -> Sequence[Stream]:
        """The access patterns of the read roof over one shared buffer of about `size` bytes, any of which may be
        the fastest here: all are tried at the start of a run."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for everything enqueued: called before anything is read back, and to ask whether the device answers."""

    @abstractmethod
    def time(self, function: Callable[[], None]) -> float:
        """Seconds `function` takes on the device, with the device idle before and after: every timer's clock."""
