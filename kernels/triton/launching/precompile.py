"""Compile a program's kernels in parallel, before the first of them is launched.

A step of a large model launches eight to eleven distinct kernels, each a third of a second or more of compiling; Triton
compiles at the first launch, one after another. Its passes and its assembler work outside Python, so that threads share
the cores. Triton without its asynchronous mode (before 3.5) compiles at the first launch as ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from moegauge.kernels.triton.launching.launch import Launch

MAX_WORKERS = 16


def _traits(value: Any) -> Any:
    """What of an argument a compiled kernel depends on: type and alignment of a tensor, type of a number."""
    if hasattr(value, "data_ptr"):
        return str(value.dtype), value.data_ptr() % 16 == 0
    return type(value).__name__


def distinct(launches: Iterable[Launch]) -> list[Launch]:
    """One launch of every kernel that is compiled on its own: alike ones differ in addresses and sizes only."""
    found: dict[Any, Launch] = {}
    for launch in launches:
        arguments = tuple((name, _traits(value)) for name, value in launch.arguments.items())
        options = launch.warps, launch.stages, launch.maxnreg
        found.setdefault((id(launch.kernel), arguments, tuple(launch.constants.items()), options), launch)
    return list(found.values())


def precompile(launches: Iterable[Launch], dependent: bool, workers: int = 0) -> int:
    """Compile every distinct kernel of `launches`; those in Triton's caches cost nothing.

    Args:
        launches: of a program.
        dependent: as programmatic dependent launches.
        workers: threads; 0 takes a thread per core, 16 at most.

    Returns:
        how many distinct kernels there are.
    """
    jobs = distinct(launches)
    side_by_side([partial(job.compile, dependent) for job in jobs], workers)
    build_launchers([job.compile(dependent) for job in jobs], workers)
    return len(jobs)


def build_launchers(kernels: Sequence[Any], workers: int = 0) -> None:
    """Make what launches each compiled kernel, and load it.

    Triton up to 3.6 compiles a C module per signature, by a C compiler, at a kernel's first launch, one after another:
    half a second each. Made side by side they are in its cache by then; later releases make none.
    """
    from triton.runtime import driver

    def launcher(kernel: Any) -> None:
        driver.active.launcher_cls(kernel.src, kernel.metadata)

    with ThreadPoolExecutor(workers or min(MAX_WORKERS, os.cpu_count() or 1)) as pool:
        list(pool.map(launcher, kernels))
    for kernel in kernels:  # in this thread, whose CUDA context it is
        kernel._init_handles()


def side_by_side(jobs: Sequence[Callable[[], object]], workers: int = 0, *, lenient: bool = False) -> None:
    """Run functions that each make Triton compile something; returns when all of it is compiled.

    Args:
        jobs: the functions.
        workers: threads; 0 takes a thread per core, 16 at most.
        lenient: leave out what does not compile; whoever launches it is told then.
    """
    try:
        from triton.runtime._async_compile import AsyncCompileMode, active_mode
    except ImportError:
        return
    with ThreadPoolExecutor(workers or min(MAX_WORKERS, os.cpu_count() or 1)) as pool:
        try:
            with AsyncCompileMode(pool, ignore_errors=lenient):
                for job in jobs:
                    job()
        finally:
            # Triton (3.6) leaves its mode on where one kernel does not compile; every later compilation would then go
            # to this pool, which is closed.
            active_mode.set(None)
