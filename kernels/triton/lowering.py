"""A step program as a list of launches: every operation becomes one kernel, besides a bfloat16 input made beforehand
where one is needed and not at hand.
"""

from __future__ import annotations

import math
from typing import Any

from moegauge.errors import DeviceError
from moegauge.kernels import program as ir
from moegauge.kernels.triton import attention, experts_down, experts_up, layout, plain, prepare, product, route
from moegauge.kernels.triton.arena import TritonArena, typed
from moegauge.kernels.triton.configuration import Configuration, Cut, cut
from moegauge.kernels.triton.launch import REGISTERS, Launch
from moegauge.kernels.triton.registers import Registers, RouteTables

MAX_BATCH = 64
UNIT = ir.ALIGNMENT


def power(n: int, least: int = 1) -> int:
    """The next power of two."""
    return max(least, 1 << (n - 1).bit_length())


def _at(place: ir.Place | None, slot: int = 0) -> int:
    """Offset in units of ALIGNMENT."""
    return place.at(slot) // UNIT if place else 0


def _stride(place: ir.Place | None) -> int:
    return place.stride // UNIT if place else 0


class Lowering:
    """Turns operations into launches.

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
        self._batch = program.batch
        self.routes: dict[str, RouteTables] = {}

    def lower(self) -> list[list[Launch]]:
        """The launches of every operation, in order."""
        steps = []
        for operation in self._program.operations:
            launches = getattr(self, "_" + type(operation).__name__.lower())(operation)
            for view in operation.outputs():
                self._fresh = {key for key in self._fresh if key[0].register != view.register}
            steps.append(launches)
        return steps

    # -- inputs and places

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

    def _input(self, view: ir.View, gain: ir.Vector | None) -> tuple[Any, int, list[Launch]]:
        """A bfloat16 input: (first element, row stride / 8, launches that make it)."""
        shadow = self._registers.shadow(view.register) if gain is None else None
        if shadow is not None and view.offset % 8 == 0 and shadow.shape[1] % 8 == 0:
            return shadow[:, view.offset :], shadow.shape[1] // 8, []
        out = self._registers.prepared(view, gain)
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
            {"NORM": gain is not None, "BLOCK": min(2048, power(view.width, 128))},
            warps=8 if view.width > 1024 else 4,
            reuses=(view, gain) in self._fresh,
        )
        self._fresh.add((view, gain))
        return out, out.shape[1] // 8, [launch]

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

    def _cut(self, weight: ir.Weight, programs: int, splits: int = 0) -> Cut:
        wanted = self._configuration.programs * self._processors
        return cut(weight.format, weight.columns, programs, wanted, self._configuration.chunks, splits)

    # -- dense products

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
        x, stride8, launches = self._input(op.x, op.gain)
        column, run = 0, list(op.matrices)
        while run:
            first = run[0]
            same = [w for w in run[:4] if (w.format, w.columns) == (first.format, first.columns)]
            same = same[: next((i for i, w in enumerate(run[:4]) if w not in same), len(same))]
            if self._tiled(first, blocks=op.blocks):
                tiled = [w for w in same if self._tiled(w, blocks=op.blocks)]
                if op.blocks > 1 or len(tiled) < len(same):
                    tiled = same[:1]
                launches.append(self._dense(op, tiled, x, stride8, column))
                used = tiled
            else:
                launches += self._dense_plain(op, first, x, stride8 * 8, column)
                used = [first]
            column += sum(w.rows for w in used)
            run = run[len(used) :]
        return launches

    def _dense(self, op: ir.Product, matrices: list[ir.Weight], x: Any, stride8: int, column: int) -> Launch:
        rows = sum(w.rows for w in matrices)
        plan = self._cut(matrices[0], rows // 16)
        return self._tiled_product(
            matrices, plan, rows, x, stride8, op.out, column, op.biases, op.blocks, op.accumulate
        )

    def _tiled_product(
        self,
        matrices: list[ir.Weight],
        plan: Cut,
        rows: int,
        x: Any,
        stride8: int,
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
        parts = plan.splits * (2 if gated else 1)
        arguments = {
            **self._matrix_pools(matrices[0]),
            **self._output(out),
            **self._biases(biases, out.width),
            "x": x,
            "part": self._registers.part(parts * self._batch * rows),
            "counters": self._registers.counters(rows // 16),
            **{f"w{i}": _at(w.weights) for i, w in enumerate(padded)},
            **{f"s{i}": _at(w.scales) for i, w in enumerate(padded)},
            **{f"t{i}": _at(w.tensor_scale) for i, w in enumerate(padded)},
            **{f"end{i}": ends[i] for i in range(3)},
            "rows": rows,
            "column": column,
            "tiles": plan.tiles,
            "tiles_per_split": plan.per_split,
            "splits": plan.splits,
            "batch": self._batch,
            "x_stride8": stride8,
            "row_tiles_per_block": rows // 16 // blocks,
        }
        constants = {
            "FORMAT": matrices[0].format,
            "NT": power(self._batch, 8),
            "TILES": plan.chunk,
            "EVEN": plan.even,
            "GATED": gated,
            "SILU": silu,
            "ACCUMULATE": accumulate,
            "SHADOW": self._shadowed(out),
            **self._common,
        }
        return Launch(product.product, (rows // 16, parts), arguments, constants)

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
            "w": _at(weight.weights),
            "s": _at(weight.scales),
            "t": _at(weight.tensor_scale),
            "w_stride": _stride(weight.weights),
            "s_stride": _stride(weight.scales),
            "t_stride": _stride(weight.tensor_scale),
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
            "splits": 1,
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
        x, stride8, launches = self._input(op.x, op.gain)
        return launches + self._gated(op.gate, op.up, x, stride8, op.out)

    def _gated(self, gate: ir.Weight | None, up: ir.Weight, x: Any, stride8: int, out: ir.View) -> list[Launch]:
        matrices = [w for w in (gate, up) if w]
        gated, rows = gate is not None, up.rows
        if len({w.format for w in matrices}) == 1 and self._tiled(*matrices):
            plan = self._cut(up, len(matrices) * rows // 16)
            return [self._tiled_product(matrices, plan, rows, x, stride8, out, 0, gated=gated, silu=not gated)]
        part = self._registers.part(2 * self._batch * rows)
        return [
            *(
                self._plain_rows(w, x, stride8 * 8, self._batch, rows, part=part, part_first=i * self._batch)
                for i, w in enumerate(matrices)
            ),
            self._finish(rows, part, out, 0, gated=gated, silu=not gated),
        ]

    # -- experts

    def _expert_tokens(self, tables: RouteTables) -> int:
        """Tokens multiplied at a time: twice the mean of one expert, 8 to 32."""
        mean = self._batch * tables.top_k / tables.experts
        return min(32, power(min(self._batch, math.ceil(2 * mean)), 8))

    def _tables(self, tables: RouteTables) -> dict[str, Any]:
        names = ("slots", "counts", "members", "distinct")
        return {name: getattr(tables, name) for name in names}

    def _slot_bias(self, bias: ir.Vector | None) -> tuple[Any, int, int]:
        """(first element, stride in elements, length)."""
        if bias is None:
            return self._registers.nothing("bf16"), 0, 0
        return self._vector(bias), bias.place.stride // (4 if bias.dtype == "f32" else 2), bias.length

    def _expertsup(self, op: ir.ExpertsUp) -> list[Launch]:
        x, stride8, launches = self._input(op.x, op.gain)
        tables = self.routes[op.route]
        own, rest = op.shared[:1], op.shared[1:]
        shared_gate, shared_up = own[0] if own else (None, None)
        gated = op.gate is not None
        if own and gated != (shared_gate is not None):
            raise DeviceError(
                f"{op.label}: routed and shared experts differ in having a gate.", advice="Use --device cpu."
            )
        like = op.gate or op.up
        alike = (like.format, like.weights.stride) == (op.up.format, op.up.weights.stride)
        if not (alike and self._tiled(op.gate, op.up, shared_gate, shared_up)):
            launches += self._up_plain(op, x, stride8, tables)
        else:
            launches.append(self._up_tiled(op, x, stride8, tables, shared_gate, shared_up))
        column = op.top_k * op.up.rows + (shared_up.rows if shared_up else 0)
        for gate, up in rest:
            out = ir.View(op.out.register, op.out.offset + column, up.rows)
            launches += self._gated(gate, up, x, stride8, out)
            column += up.rows
        return launches

    def _up_tiled(
        self,
        op: ir.ExpertsUp,
        x: Any,
        stride8: int,
        tables: RouteTables,
        shared_gate: ir.Weight | None,
        shared_up: ir.Weight | None,
    ) -> Launch:
        rows, most, sides = op.up.rows, tables.most(self._batch), 2 if op.gate else 1
        height = max(rows, shared_up.rows if shared_up else 0)
        plan = self._cut(op.up, sides * rows // 16 * (most + bool(shared_up)))
        other = self._cut(shared_up, 1, plan.splits) if shared_up else plan
        gate_bias, bias_stride, gate_length = self._slot_bias(op.gate_bias)
        up_bias, up_stride, up_length = self._slot_bias(op.up_bias)
        grid = (height // 16, sides * plan.splits, most + bool(shared_up))
        arguments = {
            **self._matrix_pools(op.up),
            **self._matrix_pools(shared_up or op.up, "shared_"),
            **self._output(op.out),
            **self._tables(tables),
            "x": x,
            "part": self._registers.part(sides * plan.splits * self._batch * (op.top_k + 1) * height),
            "counters": self._registers.counters(grid[0] * grid[2]),
            "gate_bias": gate_bias,
            "up_bias": up_bias,
            "bias_stride": max(bias_stride, up_stride),
            "gate_length": gate_length,
            "up_length": up_length,
            **_offsets("gate", op.gate),
            **_offsets("up", op.up),
            **_strides(op.up),
            **_offsets("shared_gate", shared_gate),
            **_offsets("shared_up", shared_up),
            "rows": rows,
            "shared_rows": shared_up.rows if shared_up else 0,
            "tiles": plan.tiles,
            "tiles_per_split": plan.per_split,
            "shared_tiles": other.tiles,
            "shared_tiles_per_split": other.per_split,
            "splits": plan.splits,
            "batch": self._batch,
            "x_stride8": stride8,
            "experts_most": most,
        }
        constants = {
            **self._expert_constants(op.up, shared_up, plan, other, tables),
            "GATED": op.gate is not None,
            "SHADOW": self._shadowed(op.out),
        }
        return Launch(experts_up.experts_up, grid, arguments, constants, maxnreg=REGISTERS)

    def _expert_constants(
        self, routed: ir.Weight, shared: ir.Weight | None, plan: Cut, other: Cut, tables: RouteTables
    ) -> dict[str, Any]:
        return {
            "FORMAT": routed.format,
            "SHARED": shared.format if shared else "",
            "TOPK": tables.top_k,
            "NT": self._expert_tokens(tables),
            "TILES": plan.chunk,
            "EVEN": plan.even,
            "SHARED_TILES": other.chunk,
            "SHARED_EVEN": other.even,
            **self._common,
        }

    def _up_plain(self, op: ir.ExpertsUp, x: Any, stride8: int, tables: RouteTables) -> list[Launch]:
        """Routed and first shared expert by the obvious kernel."""
        rows, pairs = op.up.rows, self._batch * op.top_k
        shared = op.shared[0] if op.shared else None
        height = max(rows, shared[1].rows if shared else 0)
        total = self._batch * (op.top_k + 1)
        part = self._registers.part(2 * total * height)
        launches = []
        for i, weight in enumerate(w for w in (op.up, op.gate) if w):
            launches.append(
                self._plain_rows(
                    weight,
                    x,
                    stride8 * 8,
                    pairs,
                    height,
                    part=part,
                    part_first=i * total,
                    choices=op.top_k,
                    slot_of=tables.slot_of,
                )
            )
        if shared:
            for i, matrix in enumerate(w for w in (shared[1], shared[0]) if w):
                launches.append(
                    self._plain_rows(
                        matrix, x, stride8 * 8, self._batch, height, part=part, part_first=i * total + pairs
                    )
                )
        gate_bias, stride, gate_length = self._slot_bias(op.gate_bias)
        up_bias, up_stride, up_length = self._slot_bias(op.up_bias)
        arguments = {
            **self._output(op.out),
            "part": part,
            "gate_bias": gate_bias,
            "up_bias": up_bias,
            "slot_of": tables.slot_of,
            "rows": rows,
            "shared_rows": shared[1].rows if shared else 0,
            "height": height,
            "batch": self._batch,
            "bias_stride": max(stride, up_stride),
            "gate_length": gate_length,
            "up_length": up_length,
        }
        constants = {"TOPK": op.top_k, "GATED": op.gate is not None, "SHADOW": self._shadowed(op.out)}
        grid = (-(-height // 16), pairs + (self._batch if shared else 0))
        return [*launches, Launch(experts_up.experts_up_finish, grid, arguments, constants)]

    def _expertsdown(self, op: ir.ExpertsDown) -> list[Launch]:
        x, stride8, launches = self._input(op.x, None)
        tables = self.routes[op.route]
        shared = op.shared[0] if op.shared else None
        if self._tiled(op.down, shared) and op.down.columns % 8 == 0:
            launches.append(self._down_tiled(op, x, stride8, tables, shared))
        else:
            launches += self._down_plain(op, x, stride8, tables, shared)
        column = op.top_k * op.down.columns + (shared.columns if shared else 0)
        for weight in op.shared[1:]:
            view = ir.View(op.x.register, op.x.offset + column, weight.columns)
            more = ir.Product(op.label, view, op.out, (weight,), accumulate=True)
            launches += self._product(more)
            column += weight.columns
        return launches

    def _down_tiled(
        self, op: ir.ExpertsDown, x: Any, stride8: int, tables: RouteTables, shared: ir.Weight | None
    ) -> Launch:
        rows, most = op.down.rows, tables.most(self._batch)
        plan = self._cut(op.down, rows // 16 * (most + bool(shared)))
        other = self._cut(shared, 1, plan.splits) if shared else plan
        bias, bias_stride, length = self._slot_bias(op.bias)
        grid = (rows // 16, plan.splits, most + bool(shared))
        arguments = {
            **self._matrix_pools(op.down),
            **self._matrix_pools(shared or op.down, "shared_"),
            **self._output(op.out),
            **self._tables(tables),
            "share": tables.share,
            "slot_of": tables.slot_of,
            "x": x,
            "part": self._registers.part(plan.splits * self._batch * (op.top_k + 1) * rows),
            "counters": self._registers.counters(grid[0]),
            "bias": bias,
            "bias_stride": bias_stride,
            "length": length,
            **_offsets("down", op.down),
            **_strides(op.down),
            **_offsets("shared", shared),
            "rows": rows,
            "width8": op.down.columns // 8,
            "tiles": plan.tiles,
            "tiles_per_split": plan.per_split,
            "shared_tiles": other.tiles,
            "shared_tiles_per_split": other.per_split,
            "splits": plan.splits,
            "batch": self._batch,
            "x_stride8": stride8,
            "experts_most": most,
        }
        constants = {**self._expert_constants(op.down, shared, plan, other, tables), "SHADOW": self._shadowed(op.out)}
        return Launch(experts_down.experts_down, grid, arguments, constants, maxnreg=REGISTERS)

    def _down_plain(
        self, op: ir.ExpertsDown, x: Any, stride8: int, tables: RouteTables, shared: ir.Weight | None
    ) -> list[Launch]:
        rows, pairs = op.down.rows, self._batch * op.top_k
        part = self._registers.part(self._batch * (op.top_k + 1) * rows)
        launches = [
            self._plain_rows(
                op.down,
                x,
                stride8 * 8,
                pairs,
                rows,
                part=part,
                choices=op.top_k,
                inner=op.down.columns,
                slot_of=tables.slot_of,
            )
        ]
        if shared:
            behind = x[:, op.top_k * op.down.columns :]
            launches.append(
                self._plain_rows(shared, behind, stride8 * 8, self._batch, rows, part=part, part_first=pairs)
            )
        bias, bias_stride, length = self._slot_bias(op.bias)
        arguments = {
            **self._output(op.out),
            "part": part,
            "bias": bias,
            "share": tables.share,
            "slot_of": tables.slot_of,
            "rows": rows,
            "batch": self._batch,
            "bias_stride": bias_stride,
            "length": length,
        }
        constants = {"TOPK": op.top_k, "SHARED": shared is not None, "SHADOW": self._shadowed(op.out)}
        return [*launches, Launch(experts_down.experts_down_finish, (-(-rows // 16),), arguments, constants)]

    # -- the rest

    def _route(self, op: ir.Route) -> list[Launch]:
        tables = RouteTables(op, self._batch, self._registers.device)
        self.routes[op.label] = tables
        alone = self._batch == 1
        shared = {
            "slot_of": tables.slot_of,
            **self._tables(tables),
            "choices": tables.choices,
            "experts": op.experts,
            "batch": self._batch,
            "stride": op.stride,
            "slot_count": op.slots,
        }
        choose = {
            **shared,
            "logits": self._registers.view(op.logits),
            "prior": tables.prior,
            "ids": tables.ids,
            "share": tables.share,
            "logits_stride": self._registers.stride(op.logits),
            "slope": op.GAIN,
        }
        constants = {"TOPK": op.top_k, "E2": power(op.experts, 32)}
        launches = [Launch(route.choose, (self._batch,), choose, {**constants, "ALONE": alone})]
        if not alone:
            constants["P2"] = power(self._batch * op.top_k, 32)
            shared.update(firsts=tables.firsts, numbers=tables.numbers)
            launches.append(Launch(route.group, (1,), shared, constants, warps=4))
        return launches

    def _embed(self, op: ir.Embed) -> list[Launch]:
        arguments = {
            **self._matrix_pools(op.table, words="u8"),
            "out": self._registers.view(op.out),
            "w": _at(op.table.weights),
            "s": _at(op.table.scales),
            "t": _at(op.table.tensor_scale),
            "columns": op.out.width,
            "out_stride": self._registers.stride(op.out),
        }
        grid = (self._batch, -(-op.out.width // 512))
        return [Launch(prepare.embed, grid, arguments, {"FORMAT": op.table.format, "BLOCK": 512}, warps=4)]

    def _state(self, op: ir.State) -> list[Launch]:
        arguments = {
            "pool": self._pool(op.place.pool, "f32")[op.place.offset // 4 :],
            "x": self._registers.view(op.x),
            "out": self._registers.view(op.out),
            "elements": op.elements,
            "x_width": op.x.width,
            "x_stride": self._registers.stride(op.x),
            "out_width": op.out.width,
            "out_stride": self._registers.stride(op.out),
        }
        return [Launch(prepare.state, (self._batch, -(-op.out.width // 128)), arguments, {"BLOCK": 128}, warps=4)]

    def _attention(self, op: ir.Attention) -> list[Launch]:
        mla = op.kind == "mla"
        heads = min(32, power(op.heads, 16)) if mla else power(op.heads // op.kv_heads, 16)
        blocks = -(-op.heads // heads) if mla else op.kv_heads
        key = op.value_dim if mla else op.head_dim
        rope = op.head_dim - op.value_dim if mla else 0
        block = 32 if mla else 64
        most = -(-op.length // (4 * block))  # at least 4 blocks of the cache per program
        splits = max(1, min(most, 2 * self._processors // max(1, self._batch * blocks)))
        per = -(-max(1, op.length) // splits // block) * block if op.length else block
        per = max(block, -(-op.length // (splits * block)) * block)
        splits = max(1, -(-op.length // per))
        cache = "u8" if op.cache_format == "fp8" else "bf16"
        size = 1 if cache == "u8" else 2
        kept = self._batch * blocks * splits * heads

        def cached(place: ir.Place | None) -> Any:
            return (
                self._registers.nothing(cache)
                if place is None
                else self._pool(place.pool, cache)[place.offset // size :]
            )

        arguments = {
            **self._output(op.out),
            "q": self._registers.view(op.q),
            "q_rope": self._registers.view(op.q_rope or op.q),
            "k": self._registers.view(op.k),
            "v": self._registers.view(op.v or op.k),
            "keys": cached(op.keys),
            "values": cached(op.values),
            "part": self._registers.part(kept * op.value_dim),
            "stats": self._registers.stats(kept * 2),
            "counters": self._registers.counters(self._batch * blocks),
            "heads": op.heads,
            "kv_heads": op.kv_heads,
            "length": op.length,
            "per_split": per,
            "q_stride": self._registers.stride(op.q),
            "r_stride": self._registers.stride(op.q_rope or op.q),
            "k_stride": self._registers.stride(op.k),
            "v_stride": self._registers.stride(op.v or op.k),
            "scale": op.head_dim**-0.5,
        }
        constants = {
            "MLA": mla,
            "FP8": op.cache_format == "fp8",
            "HEADS": heads,
            "KEY": key,
            "KEY2": power(key, 16),
            "VALUE": op.value_dim,
            "VALUE2": power(op.value_dim, 16),
            "ROPE": rope,
            "ROPE2": power(max(rope, 1), 16),
            "BLOCK": block,
            "ASM": self._compiled,
            "SHADOW": self._shadowed(op.out),
        }
        return [Launch(attention.attention, (self._batch, blocks, splits), arguments, constants, 8 if mla else 4, 1)]


def _offsets(prefix: str, weight: ir.Weight | None) -> dict[str, int]:
    places = (weight.weights, weight.scales, weight.tensor_scale) if weight else (None, None, None)
    return {f"{prefix}_{kind}": _at(place) for kind, place in zip("wst", places, strict=True)}


def _strides(weight: ir.Weight) -> dict[str, int]:
    places = (weight.weights, weight.scales, weight.tensor_scale)
    return {f"{kind}_stride": _stride(place) for kind, place in zip("wst", places, strict=True)}
