"""The Backend protocol: what a new device must implement to run step programs and read memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moegauge.errors import DeviceError, UnknownNameError
from moegauge.kernels.program import Choice, Program, Weight


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


class Arena(Protocol):
    """Pools of packed random bytes on the device, one per kind of content; see `moegauge.kernels.packing.fill`."""

    @property
    def pools(self) -> Mapping[str, int]:
        """Bytes of every pool."""
        ...

    def read(self, pool: str, offset: int, size: int, within: Weight | None = None) -> NDArray[np.uint8]:
        """A copy of bytes [offset, offset + size) of one pool, in canonical packed order, on the host.

        `within` is the matrix whose weights (or scales) they are, needed wherever the pool holds packed matrices: a
        backend's packed order depends on rows and columns, and one region may serve matrices of several shapes.
        """
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Runnable(Protocol):
    """A compiled program bound to an arena. Not thread-safe."""

    program: Program

    def run(self) -> None:
        """Enqueue the whole step; `Backend.synchronize` waits for it."""
        ...

    def run_operation(self, index: int) -> None:
        """Run one operation alone and wait for it; used by the numerical gate."""
        ...

    def read(self, register: str) -> NDArray[np.float32]:
        """A copy of a register, [B, width]."""
        ...

    def write(self, register: str, values: NDArray[np.float32]) -> None:
        """Overwrite a register; the numerical gate poisons outputs with NaN through it."""
        ...

    def choice(self, route: str) -> Choice:
        """What the `Route` operation labelled `route` chose last."""
        ...

    def forget(self) -> None:
        """Make every choice one that no run could have made, so that a run which makes none is seen."""
        ...


class Stream(Protocol):
    """One read-only pass over a buffer: a sample of the roof."""

    bytes: int
    pattern: str

    def run(self) -> None:
        """Enqueue one pass."""
        ...


class Backend(Protocol):
    """One device.

    Attributes:
        name: `cpu`, `triton` or `reference`, as in a record's `backend`.
        description: the device in words, e.g. `AMD EPYC, AVX2, 2 threads`.
        last_level_cache: bytes; nothing of the arena is read twice within five times this.
        threads: threads used; 0 where the notion does not apply.
        matrix_formats: formats its kernels decode.
    """

    name: str
    description: str
    last_level_cache: int
    threads: int
    matrix_formats: frozenset[str]

    @property
    def memory(self) -> int:
        """Bytes an arena may take now."""
        ...

    def precision(self, format_name: str) -> Precision:
        """How exactly products with this format are computed."""
        ...

    def arena(self, pools: Mapping[str, int], seed: int = 0) -> Arena:
        """Allocate and fill pools with random valid packed bytes.

        Raises:
            DeviceError: they do not fit; the message gives both sizes and the option to lower.
        """
        ...

    def compile(self, program: Program, arena: Arena) -> Runnable:
        """Bind `program` to `arena`.

        Raises:
            DeviceError: the device cannot run it.
        """
        ...

    def streams(self, size: int) -> list[Stream]:
        """The access patterns of the read roof over one shared buffer of about `size` bytes, any of which may be
        the fastest here."""
        ...

    def synchronize(self) -> None:
        """Wait for everything enqueued."""
        ...

    def time(self, function: Callable[[], None]) -> float:
        """Seconds `function` takes on the device, with the device idle before and after."""
        ...


NAMES = ("cpu", "cuda", "reference")


def get_backend(name: str, *, threads: int | None = None, rung: str = "") -> Backend:
    """The backend for a device name.

    Args:
        name: `cpu`, `cuda` or `reference`.
        threads: CPU threads; None uses every core this process may run on.
        rung: how a GPU's steps are launched (`eager`, `graph`, `pdl`, `persistent`); "" is the best the device has.

    Raises:
        UnknownNameError: no such device name.
        DeviceError: the device is not there, or `threads` is out of range.
    """
    if name == "cpu":
        from moegauge.kernels.cpu.core import library

        if library() is None:  # installed without a compiler
            from moegauge.kernels.numpy_backend import NumpyBackend

            return NumpyBackend("cpu")
        from moegauge.kernels.cpu.backend import CpuBackend

        return CpuBackend(threads)
    if name == "cuda":
        try:
            import torch  # noqa: F401 - seconds to import
        except ImportError:
            raise DeviceError(
                "device 'cuda' needs PyTorch.", advice="Run: pip install 'moegauge[bench]', or use --device cpu."
            ) from None
        from moegauge.kernels.triton.backend import TritonBackend

        return TritonBackend(rung=rung)
    if name == "reference":
        from moegauge.kernels.numpy_backend import NumpyBackend

        return NumpyBackend("reference")
    raise UnknownNameError("device", name, NAMES)
