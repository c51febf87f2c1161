"""Collects operations and registers of a decode step while it is composed."""

from __future__ import annotations

from moegauge.bench.step.rings import Layout
from moegauge.errors import ShapeError
from moegauge.kernels.program import Operation, Vector, View
from moegauge.shape import ModelShape


class Emitter:
    """A program in the making.

    Args:
        shape: the model.
        layout: where places come from.
        batch, context: B and T.
        kv_format: `bf16` or `fp8`.

    Attributes:
        operations, registers: so far.
        where, layer_index: the layer that is being written, by name and number.
        residual: the residual stream.
    """

    def __init__(
        self,
        shape: ModelShape,
        layout: Layout,
        *,
        batch: int,
        context: int,
        kv_format: str,
    ) -> None:
        self.shape, self.layout, self.batch, self.context, self.kv_format = shape, layout, batch, context, kv_format
        self.operations: list[Operation] = []
        self.registers: dict[str, int] = {}
        self.where = ""
        self.layer_index = 0
        self.residual = self.register("residual", shape.hidden)

    def register(self, name: str, width: int) -> View:
        """The first `width` columns of a register, made at least that wide."""
        self.registers[name] = max(self.registers.get(name, 0), width)
        return View(name, 0, width)

    def emit(self, operation: Operation) -> None:
        """Append an operation.

        Raises:
            ShapeError: it would reach outside a register.
        """
        for view in operation.views():
            if view.offset + view.width > self.registers[view.register]:
                raise ShapeError(
                    f"{self.shape.name}, {operation.label}: columns {view.offset} to {view.offset + view.width} of "
                    f"'{view.register}', which has {self.registers[view.register]}.",
                    advice="Check the widths of its matrices.",
                )
        self.operations.append(operation)

    def label(self, what: str) -> str:
        """An operation's label in the current layer."""
        return f"{self.where}: {what}"

    def source(self, columns: int, gain: Vector) -> tuple[View, Vector | None]:
        """What a matrix of so many columns reads: the normed residual, or (latent projections) the scratch register."""
        if columns == self.shape.hidden:
            return self.residual, gain
        return self.register("scratch", columns), None
