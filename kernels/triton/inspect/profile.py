"""Grid, registers and instruction counts of the kernels a step launches, without a profiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from moegauge.kernels import program as ir
from moegauge.kernels.backend import LaunchProfile
from moegauge.kernels.triton.inspect import compile_report
from moegauge.kernels.triton.launching.launch import Launch
from moegauge.kernels.triton.launching.residency import resident

LOOPS = ("product", "experts_up", "experts_down")  # kernels that stream tiles of weights

_known: dict[str, compile_report.Report] = {}


def profile(
    program: ir.Program,
    launches: Sequence[Sequence[Launch]],
    distinct: Callable[[str], int],
    *,
    dependent: bool,
    capability: tuple[int, int],
    processors: int,
    shared_per_processor: int,
) -> list[LaunchProfile]:
    """Every distinct launch of a program, in order of first use.

    Args:
        program: what runs.
        launches: of each of its operations.
        distinct: route label -> distinct experts of the last run.
        dependent: as programmatic dependent launches.
        capability, processors, shared_per_processor: of the device, the last in bytes.
    """
    found: dict[tuple[Any, ...], LaunchProfile] = {}
    for op, several in zip(program.operations, launches, strict=True):
        for launch in several:
            if not launch.enqueued:
                continue
            name = str(getattr(launch.kernel, "__name__", "kernel"))
            weights = _weights(op, distinct) if name in LOOPS else 0
            key = name, launch.grid, tuple(launch.constants.items()), launch.warps, weights
            if key in found:
                found[key] = replace(found[key], launches=found[key].launches + 1)
                continue
            compiled = launch.compile(dependent)
            report = _inspect(compiled, name, launch)
            shared = int(compiled.metadata.shared)
            fit = resident(report.registers, shared, launch.warps, shared_per_processor, capability)
            found[key] = LaunchProfile(
                kernel=name,
                launches=1,
                grid=launch.grid,
                warps=launch.warps,
                registers=report.registers,
                shared=shared,
                resident=processors * fit,
                processors=processors,
                instructions_per_weight=report.per_weight or None,
                weights=weights,
                chunks=launch.chunks,
            )
    return list(found.values())


def _weights(op: ir.Operation, distinct: Callable[[str], int]) -> int:
    """Weights an operation multiplies once, whatever the batch."""
    times = distinct(op.route) if isinstance(op, ir.ExpertsUp | ir.ExpertsDown) else 1
    return sum(w.rows * w.columns * (times if routed else 1) for w, routed in op.weights() if isinstance(w, ir.Weight))


def _inspect(compiled: Any, name: str, launch: Launch) -> compile_report.Report:
    """What the machine code of a launch shows; kept by its hash."""
    key = str(compiled.hash)
    if key not in _known:
        constants = launch.constants
        loops: tuple[str, ...] = ()
        if name in LOOPS:
            loops = tuple(f for f in (constants["FORMAT"], constants.get("SHARED", "")) if f)
        case = compile_report.KernelCase(name, "", dict(constants), loops=loops, chunk=int(constants.get("TILES", 4)))
        _known[key] = compile_report.inspect(bytes(compiled.asm["cubin"]), case, 0)
    return _known[key]
