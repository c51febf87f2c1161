"""What the lowerings share: addresses of inputs, outputs and matrices, and how a product is split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moegauge.kernels import program as ir
from moegauge.kernels.triton.device import prepare
from moegauge.kernels.triton.launching.launch import Launch
from moegauge.kernels.triton.lowering import layout
from moegauge.kernels.triton.lowering.arena import TritonArena, typed
from moegauge.kernels.triton.lowering.configuration import Configuration, Shares, share
from moegauge.kernels.triton.lowering.registers import Registers, RouteTables

UNIT = ir.ALIGNMENT


def power(n: int, least: int = 1) -> int:
    """The next power of two."""
    return max(least, 1 << (n - 1).bit_length())


def at(place: ir.Place | None, slot: int = 0) -> int:
    """Offset in units of ALIGNMENT."""
    return place.at(slot) // UNIT if place else 0


def pitch(place: ir.Place | None) -> int:
    return place.stride // UNIT if place else 0


@dataclass(frozen=True, slots=True)
class Input:
    """A bfloat16 input of a product.

    Attributes:
        first: its first element, on the device.
        stride8: elements from one token to the next / 8.
        launches: what makes it.
        squares: where it is still to be divided by its root, the sums of squares that give it; else None.
        width: its columns.
    """

    first: Any
    stride8: int
    launches: list[Launch]
    squares: Any
    width: int


class LoweringBase:
    """A program, its arena and its registers.

    Args:
        program: the step.
        arena: where its weights are.
        registers: the activations and scratch on the device.
        configuration: how products are cut.
        processors: multiprocessors of the device.
        compiled: false under the interpreter, which cannot run inline assembly.
        quad: the column order in which the compiler gives a lane its own columns (see `tiles.dot16`).
    """

    def __init__(
        self,
        program: ir.Program,
        arena: TritonArena,
        registers: Registers,
        configuration: Configuration,
        processors: int,
        *,
        compiled: bool,
        quad: bool,
    ) -> None:
        self._program, self._arena, self._registers = program, arena, registers
        self._configuration, self._processors = configuration, processors
        self._common = {"QUAD": quad, "ASM": compiled}
        self._compiled = compiled
        self._fresh: set[tuple[ir.View, ir.Vector | None]] = set()
        self.written = {view.register for op in program.operations for view in op.outputs()}
        # Normalised copies (`moegauge.kernels.triton.device.normalised`) that earlier operations wrote, and this one's.
        self._normalised: set[tuple[ir.View, ir.Vector | None]] = set()
        self._promised: list[tuple[ir.View, ir.Vector | None]] = []
        self._index = 0
        self._latest: set[str] = set()  # registers that the operation of the launch before this one writes
        self._writers: dict[ir.View, Launch] = {}  # the launch that writes all of a view, of a product just before
        self._batch = program.batch
        self.routes: dict[str, RouteTables] = {}

    def _pool(self, name: str | None, kind: str) -> Any:
        return typed(self._arena.memory(name), kind) if name else self._registers.nothing(kind)

    def _matrix_pools(self, weight: ir.Weight, prefix: str = "", words: str = "u32") -> dict[str, Any]:
        return {
            prefix + "w_pool": self._pool(weight.weights.pool, words),
            prefix + "s_pool": self._pool(weight.scales.pool if weight.scales else None, words),
            prefix + "t_pool": self._pool(weight.tensor_scale.pool if weight.tensor_scale else None, "f32"),
        }

    def _tiled(self, *weights: ir.Weight | None, blocks: int = 1) -> bool:
        """Whether the tiled kernels serve all of `weights`; if so they are noted as packed that way."""
        present = [w for w in weights if w]
        if not all(layout.is_tiled(w.format, w.rows // blocks, w.columns) for w in present):
            return False
        self._arena.tiled.update(present)
        return True

    def _input(self, view: ir.View, gain: ir.Vector | None, scaled: bool = False) -> Input:
        """A bfloat16 input; `scaled`: it may be one that the product's sums are to be divided for."""
        shadow = self._registers.shadow(view.register) if gain is None else None
        if shadow is not None and view.offset % 8 == 0 and shadow.shape[1] % 8 == 0:
            return Input(shadow[:, view.offset :], shadow.shape[1] // 8, [], None, view.width)
        if scaled and gain is not None and (view, gain) in self._normalised:
            out, squares = self._registers.normalised(view.register, gain, self._vector(gain))
            return Input(out, out.shape[1] // 8, [], squares, view.width)
        out = self._registers.prepared(view, gain)
        block = min(2048, power(view.width, 128))
        launch = Launch(
            prepare.prepare,
            (self._batch,),
            {
                "x": self._registers.view(view),
                "gain": self._vector(gain),
                "out": out,
                "width": view.width,
                "x_stride": self._registers.stride(view),
                "out_stride": out.shape[1],
            },
            {"NORM": gain is not None, "BLOCK": block},
            warps=8 if view.width > 1024 else 4,
            reuses=(view, gain) in self._fresh,
            once=view.register not in self.written,
        )
        self._fresh.add((view, gain))
        return Input(out, out.shape[1] // 8, [launch], None, view.width)

    def _squares(self, given: Input) -> tuple[dict[str, Any], dict[str, Any]]:
        """(arguments, constants) by which a kernel divides its sums by the root of its input."""
        if given.squares is None:
            return {"squares": self._registers.nothing("f32"), "x_width": given.width}, {"TILES2": 0}
        return {"squares": given.squares, "x_width": given.width}, {"TILES2": power(given.width // 16)}

    def _next_gain(self, view: ir.View) -> ir.Vector | None:
        """The gain that normalises a single token's register before it is written again, if it is whole tiles."""
        whole = view.offset == 0 and view.width == self._registers.stride(view) and view.width % 16 == 0
        if self._batch != 1 or not whole:
            return None
        for op in self._program.operations[self._index + 1 :]:
            if isinstance(op, ir.Product | ir.GatedProduct | ir.ExpertsUp) and op.gain is not None and op.x == view:
                return op.gain
            if any(written.register == view.register for written in op.outputs()):
                break
        return None

    def _promise(self, view: ir.View, launches: list[Launch]) -> None:
        """Have the last of `launches`, which writes all of `view`, also write its next normalised copy."""
        gain = self._next_gain(view)
        if gain is None:
            return
        vector = self._vector(gain)
        normalised, squares = self._registers.normalised(view.register, gain, vector)
        launches[-1].arguments |= {"next_gain": vector, "normalised": normalised, "next_squares": squares}
        launches[-1].constants["NORMALISED"] = True
        self._promised.append((view, gain))

    def _no_promise(self) -> dict[str, Any]:
        """The arguments of `_promise` where none is made."""
        return {
            "next_gain": self._registers.nothing("bf16"),
            "normalised": self._registers.nothing("bf16"),
            "next_squares": self._registers.nothing("f32"),
        }

    def _vector(self, vector: ir.Vector | None) -> Any:
        if vector is None:
            return self._registers.nothing("bf16")
        size = 4 if vector.dtype == "f32" else 2
        return self._pool(vector.place.pool, vector.dtype)[vector.place.offset // size :]

    def _output(self, view: ir.View) -> dict[str, Any]:
        shadow = self._registers.shadow(view.register)
        return {
            "out": self._registers.view(view),
            "shadow": self._registers.nothing("bf16") if shadow is None else shadow[:, view.offset :],
            "out_stride": self._registers.stride(view),
        }

    def _shadowed(self, view: ir.View) -> bool:
        return self._registers.shadow(view.register) is not None

    def _unroll(self, depth: int, few: int) -> dict[str, int]:
        """How many parts of `few` tokens are added up at a time, 32 numbers of a row where there are many parts."""
        return {"FEW": few, "UNROLL": max(1, (32 if depth > 8 else 8) // few)}

    def _share(self, total: int, most: int) -> Shares:
        """Shares of `total` turns, for a kernel of which a multiprocessor holds `most` programs."""
        return share(total, self._configuration, self._processors, most)
