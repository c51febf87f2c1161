"""Triton launches of a shipped model's decode step, made without a GPU and without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moegauge import models
from moegauge.bench.step.compose import Composer
from moegauge.bench.step.rings import Layout, plan
from moegauge.bench.step.routing import Routing
from moegauge.kernels.program import Program, Weight
from moegauge.shape import ModelShape

if TYPE_CHECKING:
    import torch

    from moegauge.kernels.triton.launching.launch import Launch

ARENA = 1 << 32  # bytes asked of the system and never touched


class _Untouched:
    """An arena whose memory is never read or written, so it takes none."""

    def __init__(self, pools: dict[str, int]) -> None:
        self.pools = pools
        self.tiled: set[Weight] = set()
        self._memory: dict[str, torch.Tensor] = {}

    def memory(self, pool: str) -> torch.Tensor:
        """A pool's bytes."""
        import torch

        if pool not in self._memory:
            self._memory[pool] = torch.empty(-(-self.pools[pool] // 256) * 256 + 2048, dtype=torch.uint8)
        return self._memory[pool]


def step_program(shape: ModelShape, batch: int, context: int) -> Program:
    """A model's decode step, on an arena of ARENA bytes."""

    def compose(layout: Layout, laps: int) -> list[Program]:
        rng, routing = np.random.default_rng(0), Routing("uniform")
        composer = Composer(shape, layout, batch=batch, context=context, kv_format="bf16", routing=routing, rng=rng)
        return [composer.build() for _ in range(laps)]

    programs, _ = plan(compose, distance=0, wanted=ARENA, room=1 << 40, fixed=False)
    return programs[0]


def on_paper(
    shape: ModelShape, *, batch: int, context: int, processors: int, capability: tuple[int, int]
) -> tuple[Program, list[list[Launch]]]:
    """A step's program and the launches of each of its operations, as a device of `processors` multiprocessors that has
    measured nothing yet has them."""
    from moegauge.kernels.triton.backend import column_order
    from moegauge.kernels.triton.lowering.configuration import default_for
    from moegauge.kernels.triton.lowering.program import Lowering
    from moegauge.kernels.triton.lowering.registers import Registers

    program = step_program(shape, batch, context)
    arena: Any = _Untouched(program.pools)
    chosen = default_for(capability)
    registers = Registers(program, "cpu")
    low = Lowering(program, arena, registers, chosen, processors, compiled=True, quad=column_order())
    return program, low.lower()


def lowered(
    model: str, quad: bool, batch: int = 1, context: int = 4096, processors: int = 132, name: str = "wide"
) -> list[Launch]:
    """The launches of a model's step on a device of `processors` multiprocessors, under the configuration `name`.

    `quad` as in `moegauge.kernels.triton.device.tiles.dot16`.
    """
    from moegauge.kernels.triton.lowering.configuration import CONFIGURATIONS
    from moegauge.kernels.triton.lowering.program import Lowering
    from moegauge.kernels.triton.lowering.registers import Registers

    program = step_program(models.load(model), batch, context)
    arena: Any = _Untouched(program.pools)
    registers = Registers(program, "cpu")
    low = Lowering(program, arena, registers, CONFIGURATIONS[name], processors, compiled=True, quad=quad)
    return [launch for launches in low.lower() for launch in launches]
