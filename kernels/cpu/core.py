"""Find, load and check the compiled CPU core."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterable, Iterator
from ctypes import POINTER, c_char_p, c_int, c_int64, c_uint64, c_void_p

from moegauge.disturbance import usable_cores
from moegauge.errors import DeviceError, ProgramError
from moegauge.formats import FORMATS
from moegauge.kernels.cpu.structs import STRUCTURES, CCut, COperation, CRegion, CSegment, format_traits, sizes

MODULE = "moegauge.kernels._cpu"
MOST_SEGMENTS = 4096  # of a cut run: 41 s in parts of 10 ms


@functools.cache
def library() -> ctypes.PyDLL | None:
    """The core's shared library, or None where the package was installed without a compiler."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or not spec.origin:
        return None
    lib = ctypes.PyDLL(spec.origin)  # it raises, and lets the interpreter's lock go by itself
    try:
        same = _declare(lib)
    except AttributeError:  # a function that an older core has not
        same = False
    if not same:
        raise DeviceError(
            f"{spec.origin} was built from other sources than this package.", advice="Reinstall: pip install -e ."
        )
    return lib


def _declare(lib: ctypes.PyDLL) -> bool:
    """Give every function its types; whether structures and formats are those of this package."""
    lib.moegauge_open.restype = c_void_p
    lib.moegauge_open.argtypes = [c_char_p, POINTER(c_int), c_int]
    lib.moegauge_close.argtypes = [c_void_p]
    lib.moegauge_isa.restype = c_char_p
    lib.moegauge_isa.argtypes = [c_void_p]
    lib.moegauge_width.argtypes = [c_void_p]
    lib.moegauge_tune.argtypes = [c_void_p, c_int64, c_int64]
    lib.moegauge_sizes.argtypes = [POINTER(c_int64)]
    lib.moegauge_traits.restype = c_int64
    lib.moegauge_traits.argtypes = [POINTER(c_int64), c_int64]
    lib.moegauge_load.restype = c_void_p
    lib.moegauge_load.argtypes = [POINTER(COperation), c_int64, POINTER(CRegion), c_int64]
    lib.moegauge_unload.argtypes = [c_void_p]
    lib.moegauge_run.argtypes = [c_void_p, c_void_p, c_int64, c_int64]
    lib.moegauge_run_cut.restype = c_int64
    lib.moegauge_run_cut.argtypes = [c_void_p, c_void_p, POINTER(CCut), POINTER(CSegment), c_int64]
    lib.moegauge_stream.restype = c_uint64
    lib.moegauge_stream.argtypes = [c_void_p, c_void_p, c_int64, c_int64, c_int64]
    theirs, traits = (c_int64 * len(STRUCTURES))(), (c_int64 * (5 * len(FORMATS)))()
    lib.moegauge_sizes(theirs)
    same = lib.moegauge_traits(traits, len(FORMATS)) == len(FORMATS) and list(traits) == format_traits()
    return same and list(theirs) == sizes()


def cores() -> list[int]:
    """The cores this process may run on; [-1] per core where the system does not say which."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:
        return [-1] * (os.cpu_count() or 1)


class Core:
    """An executor of the compiled core: a thread pool and an instruction set.

    Args:
        threads: how many; None is one per core this process may run on, no more than a cgroup's quota grants.
        isa: an instruction set by name, for tests; "" takes the best one here.

    Raises:
        DeviceError: the core was not built, `isa` is not to be had here, `threads` is not 1 to the number of cores, or
            the system has not so many threads to give.
    """

    def __init__(self, threads: int | None = None, isa: str = "") -> None:
        self._handle = None  # before anything is raised: `__del__` reads it
        lib = library()
        if lib is None:
            raise DeviceError("the compiled core is absent.", advice="Install with a C++ compiler at hand.")
        here = cores()
        self.threads = min(len(here), usable_cores()) if threads is None else threads
        if not 1 <= self.threads <= len(here):
            raise DeviceError(
                f"{threads} threads asked for; this process may use {len(here)} cores.",
                advice=f"Give --threads 1 to {len(here)}.",
            )
        self._lib = lib
        try:
            self._handle = lib.moegauge_open(isa.encode(), (c_int * self.threads)(*here[: self.threads]), self.threads)
        except LookupError:
            raise DeviceError(
                f"instruction set '{isa}' is not available here.", advice="Leave the choice to the core."
            ) from None
        except OSError as error:
            raise _no_threads(self.threads, error) from None
        self.isa: str = lib.moegauge_isa(self._handle).decode()
        self.lanes: int = lib.moegauge_width(self._handle) // 4

    def __del__(self) -> None:
        if self._handle:
            self._lib.moegauge_close(self._handle)

    def load(self, operations: ctypes.Array[COperation], regions: Iterable[CRegion]) -> LoadedProgram:
        """Copy a program into the core.

        Args:
            operations: its records, with everything they point to.
            regions: all memory it may read and write; whoever runs it keeps that alive.

        Raises:
            ProgramError: an operation would reach outside the regions, or its widths do not fit each other.
        """
        return LoadedProgram(self._lib, operations, regions)

    def run(self, program: LoadedProgram, first: int, count: int) -> None:
        """Run operations [first, first + count) of a program. Ctrl-C ends it between two chunks of work; in a forked
        child the threads are started anew.

        Raises:
            DeviceError: no memory for its sums, or (after a fork) no threads.
            ProgramError: there are no such operations, or a route's choice was overwritten by what is none.
        """
        with _told(self.threads):
            self._lib.moegauge_run(self._handle, program.handle, first, count)

    def run_cut(self, program: LoadedProgram, cut: CCut) -> list[CSegment]:
        """Run a whole program in parts; see `Cut` in core.h. `cut.at` moves on. Errors as `run`."""
        found = (CSegment * MOST_SEGMENTS)()
        with _told(self.threads):
            n = self._lib.moegauge_run_cut(self._handle, program.handle, cut, found, MOST_SEGMENTS)
        return found[:n]

    def stream(self, address: int, size: int, streams: int, prefetch: int) -> int:
        """Read `size` bytes, a multiple of 512, once with all threads."""
        return int(self._lib.moegauge_stream(self._handle, address, size, streams, prefetch))

    def tune(self, prefetch: int, chunk: int) -> None:
        """Set the prefetch distance and the size of a unit of work, bytes."""
        self._lib.moegauge_tune(self._handle, prefetch, chunk)


class LoadedProgram:
    """A program as the core keeps it: a copy of its records. Made by `Core.load`."""

    def __init__(self, lib: ctypes.PyDLL, operations: ctypes.Array[COperation], regions: Iterable[CRegion]) -> None:
        self.handle = None
        self._lib = lib
        known = list(regions)
        try:
            self.handle = lib.moegauge_load(operations, len(operations), (CRegion * len(known))(*known), len(known))
        except ValueError as error:
            raise _refused(error) from None

    def __del__(self) -> None:
        if self.handle:
            self._lib.moegauge_unload(self.handle)


@contextlib.contextmanager
def _told(threads: int) -> Iterator[None]:
    """What the core raises while a program runs, in our errors."""
    try:
        yield
    except OSError as error:
        raise _no_threads(threads, error) from None
    except ValueError as error:
        raise _refused(error) from None
    except MemoryError:
        raise DeviceError(
            "no memory for the sums of an operation.", advice="Lower --batch or --context, or close other programs."
        ) from None


def _refused(error: ValueError) -> ProgramError:
    return ProgramError(f"the core refuses a program: {error}.", advice="Please report it.")


def _no_threads(wanted: int, error: OSError) -> DeviceError:
    return DeviceError(
        f"the system refuses {wanted} threads ({error}).",
        advice="Give fewer with --threads, or raise the limit (`ulimit -u`, the container's pids.max, memory).",
    )
