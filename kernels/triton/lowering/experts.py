"""Lower the two expert operations to launches."""

from __future__ import annotations

import math
from typing import Any

from moegauge.errors import DeviceError
from moegauge.kernels import program as ir
from moegauge.kernels.triton.device import experts_down, experts_up
from moegauge.kernels.triton.launching.launch import BATCH_PROGRAMS, BATCH_REGISTERS, PROGRAMS, REGISTERS, WARPS, Launch
from moegauge.kernels.triton.lowering.base import Input, at, pitch, power
from moegauge.kernels.triton.lowering.configuration import Cut, Shares, cut
from moegauge.kernels.triton.lowering.dense import DenseLowering
from moegauge.kernels.triton.lowering.registers import RouteTables


class ExpertLowering(DenseLowering):
    """`ExpertsUp` and `ExpertsDown`."""

    def _expert_tokens(self, tables: RouteTables) -> int:
        """Tokens multiplied at a time: twice the mean of one expert, 8 or 16 (32 spill in the loops)."""
        mean = self._batch * tables.top_k / tables.experts
        return min(16, power(min(self._batch, math.ceil(2 * mean)), 8))

    def _tables(self, tables: RouteTables) -> dict[str, Any]:
        names = ("slots", "counts", "members", "distinct")
        return {name: getattr(tables, name) for name in names}

    def _slot_bias(self, bias: ir.Vector | None) -> tuple[Any, int, int]:
        """(first element, stride in elements, length)."""
        if bias is None:
            return self._registers.nothing("bf16"), 0, 0
        return self._vector(bias), bias.place.stride // (4 if bias.dtype == "f32" else 2), bias.length

    def _expertsup(self, op: ir.ExpertsUp) -> list[Launch]:
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
        tiled = alike and self._tiled(op.gate, op.up, shared_gate, shared_up)
        x = self._input(op.x, op.gain, scaled=tiled and all(self._gate_tiled(*pair) for pair in rest))
        launches = list(x.launches)
        if tiled:
            launches.append(self._up_tiled(op, x, tables, shared_gate, shared_up))
        else:
            launches += self._up_plain(op, x.first, x.stride8, tables)
        column = op.top_k * op.up.rows + (shared_up.rows if shared_up else 0)
        for gate, up in rest:
            out = ir.View(op.out.register, op.out.offset + column, up.rows)
            launches += self._gated(gate, up, x, out)
            column += up.rows
        return launches

    def _residency(self, tables: RouteTables) -> tuple[int, int]:
        """(registers per thread, programs of a multiprocessor) of an expert kernel: sums of 16 tokens and more spilled
        136 bytes in 128 registers (mxfp4, compute capability 8.0)."""
        few = self._batch == 1 or self._expert_tokens(tables) < 16
        return (REGISTERS, PROGRAMS) if few else (BATCH_REGISTERS, BATCH_PROGRAMS)

    def _up_tiled(
        self,
        op: ir.ExpertsUp,
        x: Input,
        tables: RouteTables,
        shared_gate: ir.Weight | None,
        shared_up: ir.Weight | None,
    ) -> Launch:
        rows, most, sides = op.up.rows, tables.most(self._batch), 2 if op.gate else 1
        height = max(rows, shared_up.rows if shared_up else 0)
        plan, other = _cuts(op.up, shared_up, WARPS // sides)
        shared_rows = shared_up.rows if shared_up else 0
        # As many experts as there are choices are distinct at least: what fits them fits more.
        routed, behind = op.top_k * (rows // 16) * plan.length, shared_rows // 16 * other.length
        registers, most_programs = self._residency(tables)
        shares = self._share(routed + behind, most_programs)
        depth = max(Shares(part, shares.programs).depth(cut.length) for part, cut in ((routed, plan), (behind, other)))
        gate_bias, bias_stride, gate_length = self._slot_bias(op.gate_bias)
        up_bias, up_stride, up_length = self._slot_bias(op.up_bias)
        squares, tiles2 = self._squares(x)
        counters = (most * rows + shared_rows) // 16
        arguments = {
            **self._matrix_pools(op.up),
            **self._matrix_pools(shared_up or op.up, "shared_"),
            **self._output(op.out),
            **self._tables(tables),
            **squares,
            "x": x.first,
            "part": self._registers.part(sides * depth * self._batch * (op.top_k + 1) * height),
            "counters": self._registers.counters(counters),
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
            "shared_rows": shared_rows,
            "tiles": plan.tiles,
            "shared_tiles": other.tiles,
            "batch": self._batch,
            "x_stride8": x.stride8,
            "experts_most": most,
        }
        constants = {
            **self._expert_constants(op.up, shared_up, plan, other, tables),
            **self._unroll(depth, 1 if self._batch == 1 else self._expert_tokens(tables)),
            "EARLY": not any(one.enqueued for one in x.launches)
            and self._latest.isdisjoint((op.x.register, op.out.register)),
            "GATED": op.gate is not None,
            "SHADOW": self._shadowed(op.out),
            **tiles2,
        }
        return Launch(
            experts_up.experts_up, (shares.programs,), arguments, constants, WARPS, maxnreg=registers,
            chunks=shares.total,
        )  # fmt: skip

    def _expert_constants(
        self, routed: ir.Weight, shared: ir.Weight | None, plan: Cut, other: Cut, tables: RouteTables
    ) -> dict[str, Any]:
        return {
            "FORMAT": routed.format,
            "SHARED": shared.format if shared else "",
            "TOPK": tables.top_k,
            "NT": self._expert_tokens(tables),
            **plan.constants,
            "SHARED_TILES": other.chunk,
            "SHARED_RAGGED": other.ragged,
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
        for i, weight in enumerate(w for w in (op.gate, op.up) if w):
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
            for i, matrix in enumerate(w for w in shared if w):
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
        given = self._input(op.x, None)
        x, stride8, launches = given.first, given.stride8, list(given.launches)
        tables = self.routes[op.route]
        shared = op.shared[0] if op.shared else None
        if self._tiled(op.down, shared) and op.down.columns % 8 == 0:
            launches.append(self._down_tiled(op, x, stride8, tables, shared))
            if len(op.shared) < 2:
                self._promise(op.out, launches)
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
        rows, alone = op.down.rows, self._batch == 1
        plan, other = _cuts(op.down, shared, WARPS)
        tall = op.top_k * plan.length + (other.length if shared else 0)
        registers, most_programs = self._residency(tables)
        shares = self._share(rows // 16 * tall, most_programs)
        if alone:  # a part is a program's sum over all experts of a row tile
            parts = shares.depth(tall)
        else:
            parts = max(shares.depth(plan.length), shares.depth(other.length)) * self._batch * (op.top_k + 1)
        bias, bias_stride, length = self._slot_bias(op.bias)
        arguments = {
            **self._matrix_pools(op.down),
            **self._matrix_pools(shared or op.down, "shared_"),
            **self._output(op.out),
            **self._tables(tables),
            "share": tables.share,
            "slot_of": tables.slot_of,
            "number_of": tables.number_of,
            **self._no_promise(),
            "x": x,
            "part": self._registers.part(parts * rows),
            "counters": self._registers.counters(rows // 16),
            "bias": bias,
            "bias_stride": bias_stride,
            "length": length,
            **_offsets("down", op.down),
            **_strides(op.down),
            **_offsets("shared", shared),
            "rows": rows,
            "width8": op.down.columns // 8,
            "tiles": plan.tiles,
            "shared_tiles": other.tiles,
            "batch": self._batch,
            "x_stride8": stride8,
        }
        constants = {
            **self._expert_constants(op.down, shared, plan, other, tables),
            "TOPK2": power(op.top_k),
            "UNROLL": self._unroll(parts, 1)["UNROLL"] if alone else 1,
            "BATCH1": alone,
            "NORMALISED": False,
            "SHADOW": self._shadowed(op.out),
        }
        return Launch(
            experts_down.experts_down, (shares.programs,), arguments, constants, WARPS, maxnreg=registers,
            chunks=shares.total,
        )  # fmt: skip

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


def _cuts(routed: ir.Weight, shared: ir.Weight | None, across: int) -> tuple[Cut, Cut]:
    """How the columns of a routed and of the shared expert's matrix are walked, `across` warps side by side."""
    plan = cut(routed.format, routed.columns, across)
    return plan, cut(shared.format, shared.columns, across) if shared else plan


def _offsets(prefix: str, weight: ir.Weight | None) -> dict[str, int]:
    places = (weight.weights, weight.scales, weight.tensor_scale) if weight else (None, None, None)
    return {f"{prefix}_{kind}": at(place) for kind, place in zip("wst", places, strict=True)}


def _strides(weight: ir.Weight) -> dict[str, int]:
    places = (weight.weights, weight.scales, weight.tensor_scale)
    return {f"{kind}_stride": pitch(place) for kind, place in zip("wst", places, strict=True)}
