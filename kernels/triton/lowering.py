"""A step program as a list of launches: every operation becomes one kernel, besides a bfloat16 input made beforehand
where one is needed and not at hand.
"""

from __future__ import annotations

from typing import Any

from moegauge.kernels import program as ir
from moegauge.kernels.triton import attention, prepare, route
from moegauge.kernels.triton.launch import Launch
from moegauge.kernels.triton.lowering_base import at, power
from moegauge.kernels.triton.lowering_experts import ExpertLowering
from moegauge.kernels.triton.registers import RouteTables

MAX_BATCH = 64


class Lowering(ExpertLowering):
    """Turns operations into launches; the remaining ones stand here."""

    def lower(self) -> list[list[Launch]]:
        """The launches of every operation, in order."""
        steps = []
        for operation in self._program.operations:
            launches = getattr(self, "_" + type(operation).__name__.lower())(operation)
            for view in operation.outputs():
                self._fresh = {key for key in self._fresh if key[0].register != view.register}
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
            "w": at(op.table.weights),
            "s": at(op.table.scales),
            "t": at(op.table.tensor_scale),
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
