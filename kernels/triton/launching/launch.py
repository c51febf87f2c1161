"""A kernel launch as data (kernel, grid, arguments), run in a list; register budgets of the kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from moegauge.kernels.triton.launching.signature import check

# Registers per thread of the kernels that stream weights, and the programs of WARPS warps a multiprocessor then holds:
# as many as are resident share the work out, so that number must be known before they are compiled. Left alone the
# assembler takes 64 to 140. Sums of 64 tokens are 32 registers more, twice.
WARPS = 4
REGISTERS, PROGRAMS = 128, 4
BATCH_REGISTERS, BATCH_PROGRAMS = 168, 3
ROUTER_EXPERTS = 256  # most, in powers of two, among which a product of REGISTERS chooses without a spill
# What every kernel is compiled with. Products and sums may be fused, as up to Triton 3.9 by default: asked for, since
# 3.9 warns that its successor will not.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


@dataclass(slots=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: a `triton.jit` function.
        grid: up to three sizes.
        arguments: values of its parameters by name, constants apart.
        constants: its `tl.constexpr` parameters but PDL.
        warps, stages: `num_warps` and `num_stages`.
        maxnreg: most registers per thread; 0 leaves it to the assembler.
        chunks: turns of work its programs share out (the fewest, where that depends on the routing); 0 where a program
            has a piece of its own.
        reuses: it only repeats work an earlier launch of the same step did; needed when its operation runs alone.
        once: it depends on nothing the step writes; run once after registers were written from outside.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any] = field(default_factory=dict)
    warps: int = 1
    stages: int = 1
    maxnreg: int = 0
    chunks: int = 0
    reuses: bool = False
    once: bool = False

    @property
    def enqueued(self) -> bool:
        """Whether every step launches it."""
        return not self.reuses and not self.once

    def check(self, device: str) -> None:
        """Refuse wrong types, devices and strides before anything is launched; see `signature.check`."""
        check(getattr(self.kernel, "__name__", "kernel"), self.arguments, device)

    def run(self, dependent: bool = False) -> Any:
        """Enqueue it; `dependent`: as a programmatic dependent launch. Returns what Triton compiled."""
        return self.kernel[self.grid](**self._given(dependent))

    def compile(self, dependent: bool = False) -> Any:
        """Compile it without launching; as for `run`."""
        return self.kernel.warmup(grid=self.grid, **self._given(dependent))

    def _given(self, dependent: bool) -> dict[str, Any]:
        options: dict[str, Any] = {**OPTIONS, "num_warps": self.warps, "num_stages": self.stages}
        if self.maxnreg:
            options["maxnreg"] = self.maxnreg
        if dependent:
            options["launch_pdl"] = True
        return {**self.arguments, **self.constants, "PDL": dependent, **options}


def run_all(launches: Iterable[Launch], dependent: bool = False) -> None:
    """Enqueue a step: every launch but those that only repeat, or were run before it."""
    for launch in launches:
        if launch.enqueued:
            launch.run(dependent)
