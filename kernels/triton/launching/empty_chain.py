"""A chain of empty kernels, launched as a step's are: the time added per kernel is the floor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moegauge.kernels.triton.device.empty import counted_node, node
from moegauge.kernels.triton.launching.launch import REGISTERS, Launch


@dataclass(frozen=True, slots=True)
class Boundary:
    """What a chain's kernels look like.

    Attributes:
        mode: `eager`, `graph` or `pdl`.
        programs: per multiprocessor.
        warps: per program.
        counts: whether its programs count in, as the parts of a row tile do.
    """

    mode: str
    programs: int = 1
    warps: int = 4
    counts: bool = False


# Few programs, and as many of one warp as the kernels that stream weights have: more of them take longer to start
# (gpu-benches, h200_graph.txt: 1.43 us per node of 131 programs, 2.54 us of 2,095 of one warp).
BOUNDARIES = {
    **{mode: Boundary(mode) for mode in ("eager", "graph", "pdl")},
    **{f"{mode}, 16 x 1 warp": Boundary(mode, 16, 1) for mode in ("graph", "pdl")},
    **{f"{mode}, 16 x 1 warp, count-in": Boundary(mode, 16, 1, counts=True) for mode in ("graph", "pdl")},
}


class Chain:
    """`length` nodes, every node after the one before it.

    Args:
        length: nodes.
        boundary: what they look like.
        processors: multiprocessors of the device.
        device: `cuda`, or `cpu` for the interpreter (eager only).
    """

    def __init__(self, length: int, boundary: Boundary, processors: int, device: str) -> None:
        import torch

        self.length, self._mode = length, boundary.mode
        programs = boundary.programs * processors
        self.counts = torch.zeros(programs + boundary.counts, dtype=torch.int32, device=device)
        arguments: dict[str, Any] = {"out": self.counts}
        if boundary.counts:
            arguments |= {"counters": torch.zeros(1, dtype=torch.int32, device=device), "total": programs}
        kernel = counted_node if boundary.counts else node
        self._launch = Launch(kernel, (programs,), arguments, warps=boundary.warps, maxnreg=REGISTERS)
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
