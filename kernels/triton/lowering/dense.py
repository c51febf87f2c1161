"""Lower dense and gated products to launches."""

from __future__ import annotations

from typing import Any

from moegauge.errors import DeviceError
from moegauge.kernels import program as ir
from moegauge.kernels.triton.device import plain, product
from moegauge.kernels.triton.launching.launch import BATCH_PROGRAMS, BATCH_REGISTERS, PROGRAMS, REGISTERS, WARPS, Launch
from moegauge.kernels.triton.lowering.base import Input, LoweringBase, at, pitch, power
from moegauge.kernels.triton.lowering.configuration import Cut, cut


class DenseLowering(LoweringBase):
    """`Product` and `GatedProduct`."""

    def _biases(self, biases: tuple[ir.Vector, ...], width: int) -> dict[str, Any]:
        narrow = [v for v in biases if v.dtype == "bf16"]
        wide = [v for v in biases if v.dtype == "f32"]
        if len(narrow) > 2 or len(wide) > 1:
            raise DeviceError(
                f"{self._program.name}: a product with {len(narrow)} bf16 and {len(wide)} f32 biases.",
                advice="The Triton backend adds two and one; use --device cpu.",
            )
        arguments: dict[str, Any] = {
            "bias": self._pool(narrow[0].place.pool if narrow else None, "bf16"),
            "bias_f32": self._pool(wide[0].place.pool if wide else None, "f32"),
            "width": width,
        }
        for i, vector in enumerate([*(narrow + [None, None])[:2], *(wide + [None])[:1]]):
            arguments[f"bias{i}"] = vector.place.offset // (2 if i < 2 else 4) if vector else 0
            arguments[f"length{i}"] = vector.length if vector else 0
        return arguments

    def _product(self, op: ir.Product) -> list[Launch]:
        tiled = all(self._tiled(w, blocks=op.blocks) for w in op.matrices)
        x = self._input(op.x, op.gain, scaled=tiled)
        launches = list(x.launches)
        column, run = 0, list(op.matrices)
        while run:
            first = run[0]
            same = [w for w in run[:4] if (w.format, w.columns) == (first.format, first.columns)]
            same = same[: next((i for i, w in enumerate(run[:4]) if w not in same), len(same))]
            if self._tiled(first, blocks=op.blocks):
                alike = [w for w in same if self._tiled(w, blocks=op.blocks)]
                if op.blocks > 1 or len(alike) < len(same):
                    alike = same[:1]
                launches.append(self._dense(op, alike, x, column))
                used = alike
            else:
                launches += self._dense_plain(op, first, x.first, x.stride8 * 8, column)
                used = [first]
            column += sum(w.rows for w in used)
            run = run[len(used) :]
        if tiled and len(used) == len(op.matrices) and column == op.out.width:
            self._promise(op.out, launches)
            self._writers = {op.out: launches[-1]}
        return launches

    def _dense(self, op: ir.Product, matrices: list[ir.Weight], x: Input, column: int) -> Launch:
        rows = sum(w.rows for w in matrices)
        return self._tiled_product(matrices, rows, x, op.out, column, op.biases, op.blocks, op.accumulate)

    def _tiled_product(
        self,
        matrices: list[ir.Weight],
        rows: int,
        x: Input,
        out: ir.View,
        column: int,
        biases: tuple[ir.Vector, ...] = (),
        blocks: int = 1,
        accumulate: bool = False,
        gated: bool = False,
        silu: bool = False,
    ) -> Launch:
        padded = matrices + [matrices[-1]] * (4 - len(matrices))
        ends = [sum(w.rows for w in matrices[: i + 1]) // 16 for i in range(len(matrices))]
        ends += [ends[-1]] * (3 - len(ends))
        plan, tokens, sides = _cut(matrices, blocks, gated), power(self._batch, 8), 2 if gated else 1
        registers, most = (REGISTERS, PROGRAMS) if tokens < 64 else (BATCH_REGISTERS, BATCH_PROGRAMS)
        units = rows // 16 * sides * plan.across // WARPS
        shares = self._share(units * plan.length, most)
        depth = shares.depth(plan.length)
        squares, tiles2 = self._squares(x)
        arguments = {
            **self._matrix_pools(matrices[0]),
            **self._output(out),
            **self._biases(biases, out.width),
            **squares,
            **self._no_promise(),
            **self._no_choice(),
            "x": x.first,
            "part": self._registers.part(sides * depth * self._batch * rows),
            "counters": self._registers.counters(units + 1),
            **{f"w{i}": at(w.weights) for i, w in enumerate(padded)},
            **{f"s{i}": at(w.scales) for i, w in enumerate(padded)},
            **{f"t{i}": at(w.tensor_scale) for i, w in enumerate(padded)},
            **{f"end{i}": ends[i] for i in range(3)},
            "rows": rows,
            "column": column,
            "tiles": plan.tiles,
            "batch": self._batch,
            "x_stride8": x.stride8,
            "row_tiles_per_block": rows // 16 // blocks,
        }
        constants = {
            "FORMAT": matrices[0].format,
            "NT": tokens,
            **self._unroll(depth, power(self._batch)),
            **plan.constants,
            "GATED": gated,
            "SILU": silu,
            "ACCUMULATE": accumulate,
            "SHADOW": self._shadowed(out),
            **tiles2,
            "NORMALISED": False,
            "TOPK": 0,
            "E2": 1,
            **self._common,
        }
        return Launch(
            product.product, (shares.programs,), arguments, constants, WARPS, maxnreg=registers, chunks=shares.total
        )

    def _no_choice(self) -> dict[str, Any]:
        """The arguments by which a router's product chooses experts, where it does not."""
        numbers = ("ids", "slot_of", "slots", "counts", "members", "distinct")
        return {
            **{name: self._registers.nothing("i32") for name in numbers},
            **{name: self._registers.nothing("f32") for name in ("prior", "share")},
            "slope": 0.0,
            "experts": 0,
            "slot_stride": 0,
            "slot_count": 0,
        }

    def _plain_rows(
        self,
        weight: ir.Weight,
        x: Any,
        stride: int,
        pairs: int,
        height: int,
        *,
        row_offset: int = 0,
        part: Any = None,
        part_first: int = 0,
        choices: int = 1,
        inner: int = 0,
        slot_of: Any = None,
        blocks: int = 1,
    ) -> Launch:
        """Launch of the obvious product of one matrix with `pairs` inputs."""
        arguments = {
            **self._matrix_pools(weight, words="u8"),
            "x": x,
            "part": part,
            "slot_of": self._registers.nothing("i32") if slot_of is None else slot_of,
            "w": at(weight.weights),
            "s": at(weight.scales),
            "t": at(weight.tensor_scale),
            "w_stride": pitch(weight.weights),
            "s_stride": pitch(weight.scales),
            "t_stride": pitch(weight.tensor_scale),
            "columns": weight.columns,
            "rows_per_block": weight.rows // blocks,
            "height": height,
            "row_offset": row_offset,
            "part_first": part_first,
            "x_stride": stride,
            "x_inner": inner,
        }
        constants = {
            "FORMAT": weight.format,
            "CHOICES": choices,
            "ROUTED": slot_of is not None,
            "BLOCK": min(1024, power(weight.columns, 128)),
        }
        return Launch(plain.plain, (weight.rows, pairs), arguments, constants, warps=4)

    def _finish(
        self,
        rows: int,
        part: Any,
        out: ir.View,
        column: int,
        biases: tuple[ir.Vector, ...] = (),
        accumulate: bool = False,
        gated: bool = False,
        silu: bool = False,
    ) -> Launch:
        arguments = {
            **self._output(out),
            **self._biases(biases, out.width),
            "part": part,
            "rows": rows,
            "column": column,
            "batch": self._batch,
        }
        constants = {
            "NT": power(self._batch, 8),
            "GATED": gated,
            "SILU": silu,
            "ACCUMULATE": accumulate,
            "SHADOW": self._shadowed(out),
        }
        return Launch(product.product_finish, (-(-rows // 16),), arguments, constants)

    def _dense_plain(self, op: ir.Product, weight: ir.Weight, x: Any, stride: int, column: int) -> list[Launch]:
        part = self._registers.part(self._batch * weight.rows)
        rows = self._plain_rows(weight, x, stride, self._batch, weight.rows, part=part, blocks=op.blocks)
        return [rows, self._finish(weight.rows, part, op.out, column, op.biases, op.accumulate)]

    def _gatedproduct(self, op: ir.GatedProduct) -> list[Launch]:
        x = self._input(op.x, op.gain, scaled=self._gate_tiled(op.gate, op.up))
        return [*x.launches, *self._gated(op.gate, op.up, x, op.out)]

    def _gate_tiled(self, gate: ir.Weight | None, up: ir.Weight) -> bool:
        """Whether one tiled kernel serves both."""
        return (gate is None or gate.format == up.format) and self._tiled(gate, up)

    def _gated(self, gate: ir.Weight | None, up: ir.Weight, x: Input, out: ir.View) -> list[Launch]:
        matrices = [w for w in (gate, up) if w]
        gated, rows = gate is not None, up.rows
        if self._gate_tiled(gate, up):
            return [self._tiled_product(matrices, rows, x, out, 0, gated=gated, silu=not gated)]
        part = self._registers.part(2 * self._batch * rows)
        return [
            *(
                self._plain_rows(w, x.first, x.stride8 * 8, self._batch, rows, part=part, part_first=i * self._batch)
                for i, w in enumerate(matrices)
            ),
            self._finish(rows, part, out, 0, gated=gated, silu=not gated),
        ]


def _cut(matrices: list[ir.Weight], blocks: int, gated: bool) -> Cut:
    """How the columns of a product are walked: whole row tiles side by side only where no matrix or block ends inside.
    The two sides of a gate are."""
    name, columns = matrices[0].format, matrices[0].columns
    plan = cut(name, columns, WARPS // 2 if gated else 0)
    beside = WARPS // plan.across
    return plan if gated or all(w.rows // blocks % (16 * beside) == 0 for w in matrices) else cut(name, columns, WARPS)
