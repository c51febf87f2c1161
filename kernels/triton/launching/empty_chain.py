"""A chain of empty kernels, launched as a step's are: the time added per kernel is the floor."""

from __future__ import annotations

from typing import Any

from moegauge.kernels.triton.device.empty import node
from moegauge.kernels.triton.launching.launch import Launch

WARPS = 4
LAUNCH_MODES = ("eager", "graph", "pdl")  # the ways of launching a chain can be captured for


class Chain:
    """`length` nodes, one program per multiprocessor each, every node after the one before it.

    Args:
        length: nodes.
        mode: `eager`, `graph` or `pdl`.
        processors: multiprocessors of the device.
        device: `cuda`, or `cpu` for the interpreter (eager only).
    """

    def __init__(self, length: int, mode: str, processors: int, device: str) -> None:
        import torch

        self.length, self._mode = length, mode
        self.counts = torch.zeros(processors, dtype=torch.int32, device=device)
        self._launch = Launch(node, (processors,), {"out": self.counts}, warps=WARPS)
        self._launch.check(device)
        self._graph: Any = None

    def run(self) -> None:
        """Enqueue the chain."""
        if self._mode == "eager":
            self._enqueue()
            return
        if self._graph is None:
            from moegauge.kernels.triton.launching.capture import capture

            self._graph = capture(self._enqueue)
        self._graph.replay()

    def _enqueue(self) -> None:
        for _ in range(self.length):
            self._launch.run(dependent=self._mode == "pdl")
