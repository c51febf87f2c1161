"""Persistent launch mode: one launch plays a whole step, with a grid barrier after each operation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from moegauge.errors import DeviceError
from moegauge.kernels.triton.device import barrier
from moegauge.kernels.triton.launching.assembly import assemble
from moegauge.kernels.triton.launching.launch import OPTIONS, PERSISTENT_REGISTERS, Launch
from moegauge.kernels.triton.launching.residency import resident


class Persistent:
    """A step's launches as one.

    Args:
        operations: the launches of every operation, lowered `narrow` (one warp per program).
        device: `cuda`, or `cpu` under the interpreter, where the grid is one program.
        capability, processors: of the device.
        grid: programs; None takes as many as are resident at once.

    Attributes:
        grid: programs of a launch; 0 before the first.
    """

    def __init__(
        self,
        operations: Sequence[Sequence[Launch]],
        device: str,
        capability: tuple[int, int],
        processors: int,
        grid: int | None = None,
    ) -> None:
        import torch

        step = [launch for launches in operations for launch in launches if launch.enqueued]
        # Behind the step, every operation with all it needs when it runs alone.
        alone = [launch for launches in operations for launch in launches]
        # Rows of the table behind which the step's operations end.
        self._ends = [0, *itertools.accumulate(sum(one.enqueued for one in launches) for launches in operations)]
        ends = [len(step)]
        for launches in operations:
            ends.append(ends[-1] + len(launches))
        self._operations = list(itertools.pairwise(ends))
        made = assemble([*step, *alone])
        self._kept = [launch.arguments for launch in alone]  # the table holds addresses only
        self._kernel, self._parameters = made.kernel(), made.parameters
        self._table = torch.tensor(made.records, dtype=torch.int64, device=device).reshape(-1)
        self._barrier = torch.zeros(barrier.WORDS, dtype=torch.int32, device=device)
        self._compiled, self._capability, self._processors = device != "cpu", capability, processors
        self._constants: dict[str, Any] = {"SHARDS": barrier.SHARDS, "LINE": barrier.LINE, "ASM": self._compiled}
        if self._compiled:
            self._constants |= {
                **OPTIONS,
                "num_warps": 1,
                "num_stages": 1,
                "maxnreg": PERSISTENT_REGISTERS,
                "launch_cooperative_grid": True,
            }
        self.grid = 1 if not self._compiled else grid or 0

    def step(self, first: int, last: int) -> None:
        """Enqueue operations [first, last) of the step."""
        self._run(self._ends[first], self._ends[last])

    def operation(self, index: int) -> None:
        """Enqueue one operation, by the same kernel."""
        self._run(*self._operations[index])

    def _run(self, first: int, last: int) -> None:
        if first == last:
            return
        self.grid = self.grid or self._resident()
        arguments = (self._table, self._barrier, *self._parameters, first, last)
        try:
            self._kernel[(self.grid,)](*arguments, **self._constants)
        except RuntimeError as error:
            if "cooperative" not in str(error).lower():
                raise
            raise DeviceError(
                f"{self.grid} programs of the persistent kernel are not resident at once: {error}.",
                advice="Use --launch graph.",
            ) from None

    def _resident(self) -> int:
        import torch

        arguments = (self._table, self._barrier, *self._parameters, 0, 0)
        made = self._kernel.warmup(*arguments, grid=(1,), **self._constants)
        made._init_handles()
        memory = torch.cuda.get_device_properties(0).shared_memory_per_multiprocessor
        return self._processors * resident(made.n_regs, made.metadata.shared, 1, memory, self._capability)
