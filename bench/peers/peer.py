"""What a peer is: another program that does the same work, from weights it packed itself."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from moegauge.bench.peers.work import Work
from moegauge.errors import DeviceError


class Prepared(Protocol):
    """A peer's work with its weights in place."""

    @property
    def bytes(self) -> int:
        """What one run reads, counted from the packed tensors it is given."""
        ...

    @property
    def parameters(self) -> int:
        """Weights one run multiplies by."""
        ...

    @property
    def launch_mode(self) -> str:
        """How runs are launched: `threads`, `eager` or `graph`."""
        ...

    @property
    def kernels(self) -> int:
        """Calls of the peer's library in one run; 1 where they cannot be seen."""
        ...

    def run(self) -> None:
        """Enqueue one run; it reads cold weights."""
        ...

    def check(self) -> float:
        """Compare an answer with float64 on the peer's own dequantised weights.

        Returns:
            the largest error of an output over the largest output.

        Raises:
            NumericsError: past the bound: the peer has no time.
        """
        ...

    def close(self) -> None:
        """Give memory and files back."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One program a user would pick instead, as data: what it serves, why it may be absent, how its work is made.

    Attributes:
        name: as a record's `backend` names it.
        device: `cpu` or `cuda`.
        kernels: which work it does: `product`, `experts`, `decode`.
        formats: a row of FORMATS -> what the peer stores such weights as, the nearest it has.
        distributions: the installed packages whose versions a record keeps.
        absent: why it cannot be timed here; None where it can.
        prepare: (work, CPU threads) -> the work with its weights packed. It is called for work that `kernels` and
            `formats` name, and raises DeviceError where there is no room or the peer does not take the shape.
    """

    name: str
    device: str = "cuda"
    kernels: frozenset[str]
    formats: Mapping[str, str]
    distributions: tuple[str, ...]
    absent: Callable[[], str | None]
    prepare: Callable[[Work, int], Prepared]

    @property
    def version(self) -> str:
        """`torch 2.13.0`."""
        return ", ".join(f"{name} {_version(name)}" for name in self.distributions)


def serves(peer: Peer, work: Work) -> bool:
    """Whether the peer has kernels for this work."""
    return (work.kernel or "decode") in peer.kernels and work.format in peer.formats


def needs(package: str, *modules: str) -> Callable[[], str | None]:
    """A peer's `absent`: the first reason why one of `modules` of `package` cannot be imported."""
    return lambda: next(filter(None, (not_installed(module, package) for module in modules)), None)


def not_installed(module: str, package: str) -> str | None:
    """The reason a package is absent, None where it can be imported.

    Any error counts, not ImportError alone: a CUDA library on a machine without a driver raises what it likes.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "") == module.partition(".")[0]:
            return f"{package} is not installed"
        return f"{package} does not import: {error}"
    except Exception as error:
        return f"{package} does not import: {_first_line(error)}"
    return None


def _version(package: str) -> str:
    """The installed version of a distribution, `unknown` where it does not tell."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def load(module: str) -> Any:
    """A peer's module. Peers are not typed, and none is a dependency."""
    return importlib.import_module(module)


def as_device_error(peer: str, error: BaseException) -> DeviceError:
    """Whatever a peer raised, as an error of the point."""
    return DeviceError(f"{peer}: {type(error).__name__}: {_first_line(error)}.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
