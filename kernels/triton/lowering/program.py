"""Lower a whole step program: every operation to one launch, and a bfloat16 input made first where needed."""

from __future__ import annotations

from typing import Any

from moegauge.kernels import program as ir
from moegauge.kernels.triton.device import prepare, route
from moegauge.kernels.triton.launching.launch import BATCH_PROGRAMS, BATCH_REGISTERS, ROUTER_EXPERTS, Launch
from moegauge.kernels.triton.lowering.attention import AttentionLowering
from moegauge.kernels.triton.lowering.base import at, power
from moegauge.kernels.triton.lowering.experts import ExpertLowering
from moegauge.kernels.triton.lowering.registers import RouteTables

MAX_BATCH = 64


class Lowering(AttentionLowering, ExpertLowering):
    """Turns operations into launches; the remaining ones stand here."""

    def lower(self) -> list[list[Launch]]:
        """The launches of every operation, in order."""
        steps = []
        for index, operation in enumerate(self._program.operations):
            self._index = index
            if not isinstance(operation, ir.Route):
                self._writers = {}
            launches = getattr(self, "_" + type(operation).__name__.lower())(operation)
            for view in operation.outputs():
                self._fresh = {key for key in self._fresh if key[0].register != view.register}
                self._normalised = {key for key in self._normalised if key[0].register != view.register}
            self._normalised.update(self._promised)
            self._promised.clear()
            if any(launch.enqueued for launch in launches):
                self._latest = {view.register for view in operation.outputs()}
            steps.append(launches)
        return steps

    def _route(self, op: ir.Route) -> list[Launch]:
        tables = RouteTables(op, self._batch, self._registers.device)
        self.routes[op.label] = tables
        alone = self._batch == 1
        shared = {
            "slot_of": tables.slot_of,
            **self._tables(tables),
            "choices": tables.choices,
            "experts": op.experts,
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
        writer = self._writers.get(op.logits) if alone else None
        if writer is not None:
            self._choose_there(writer, op, tables, constants)
        chosen = {**constants, "BATCH1": alone}
        once = op.logits.register not in self.written
        launches = [Launch(route.choose, (self._batch,), choose, chosen, warps=4, reuses=writer is not None, once=once)]
        if not alone:
            constants["P2"] = power(self._batch * op.top_k, 32)
            shared.update(batch=self._batch, firsts=tables.firsts, numbers=tables.numbers, number_of=tables.number_of)
            launches.append(Launch(route.group, (1,), shared, constants, warps=4, once=once))
        return launches

    def _choose_there(self, writer: Launch, op: ir.Route, tables: RouteTables, constants: dict[str, Any]) -> None:
        """Have the product that makes a single token's logits choose its experts."""
        writer.arguments |= {
            **{name: getattr(tables, name) for name in ("ids", "share", "slot_of", "slots", "counts", "members")},
            "distinct": tables.distinct,
            "prior": tables.prior,
            "slope": op.GAIN,
            "experts": op.experts,
            "slot_stride": op.stride,
            "slot_count": op.slots,
        }
        writer.constants |= constants
        if constants["E2"] > ROUTER_EXPERTS and writer.grid[0] <= BATCH_PROGRAMS * self._processors:
            writer.maxnreg = BATCH_REGISTERS

    def _embed(self, op: ir.Embed) -> list[Launch]:
        arguments = {
            **self._matrix_pools(op.table, words="u8"),
            "out": self._registers.view(op.out),
            "w": at(op.table.weights),
            "s": at(op.table.scales),
            "t": at(op.table.tensor_scale),
            "columns": op.out.width,
            "out_stride": self._registers.stride(op.out),
        }
        grid = (self._batch, -(-op.out.width // 512))
        constants = {"FORMAT": op.table.format, "BLOCK": 512}
        return [Launch(prepare.embed, grid, arguments, constants, warps=4)]

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
        grid = (self._batch, -(-op.out.width // 128))
        return [Launch(prepare.state, grid, arguments, {"BLOCK": 128}, warps=4)]
