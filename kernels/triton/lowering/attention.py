"""Lower attention to launches: one kernel, or two of one-warp programs."""

from __future__ import annotations

from typing import Any

from moegauge.formats import get_format
from moegauge.kernels import program as ir
from moegauge.kernels.triton.device import attention, attention_narrow
from moegauge.kernels.triton.launching.launch import PERSISTENT_WARPS, Launch
from moegauge.kernels.triton.lowering.base import LoweringBase, power

HEADS, SPAN = 16, 16  # rows of a tensor-core product; tokens of the cache one program scores


class AttentionLowering(LoweringBase):
    """`Attend`."""

    def _cached(self, op: ir.Attend, place: ir.Place | None) -> Any:
        kind, size = ("u8", 1) if get_format(op.cache_format).element_bits == 8 else ("bf16", 2)
        if place is None:
            return self._registers.nothing(kind)
        return self._pool(place.pool, kind)[place.offset // size :]

    def _attend(self, op: ir.Attend) -> list[Launch]:
        if self._narrow:
            return self._attention_narrow(op)
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
        kept = self._batch * blocks * splits * heads

        arguments = {
            **self._output(op.out),
            "q": self._registers.view(op.q),
            "q_rope": self._registers.view(op.q_rope or op.q),
            "k": self._registers.view(op.k),
            "v": self._registers.view(op.v or op.k),
            "keys": self._cached(op, op.keys),
            "values": self._cached(op, op.values),
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
            "FP8": get_format(op.cache_format).element_bits == 8,
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

    def _attention_narrow(self, op: ir.Attend) -> list[Launch]:
        mla, fp8 = op.kind == "mla", get_format(op.cache_format).element_bits == 8
        group = op.heads // op.kv_heads
        heads = HEADS if mla else power(group, HEADS)
        blocks = -(-op.heads // heads) if mla else op.kv_heads
        key = op.value_dim if mla else op.head_dim
        rope = op.head_dim - op.value_dim if mla else 0
        spans = -(-op.length // SPAN) + 1
        padded = -(-(op.length + 1) // SPAN) * SPAN
        # 16 rows of 64 columns are 32 registers of sums; more heads of one kv head get fewer columns.
        columns = max(16, min(64 * HEADS // heads, power(op.value_dim, 16)))
        block = 16  # tokens; 32 would spill
        pieces = -(-op.value_dim // columns)
        programs = max(1, self._batch * blocks * pieces)
        most = -(-op.length // (4 * block))  # at least 4 blocks of the cache per program
        splits = max(1, min(most, PERSISTENT_WARPS * self._processors // programs))
        per = max(block, -(-op.length // (splits * block)) * block)
        splits = max(1, -(-op.length // per))
        kept = programs * splits * heads
        common = {
            "k": self._registers.view(op.k),
            "keys": self._cached(op, op.keys),
            "score": self._registers.score(self._batch * blocks * heads * padded),
            "maxima": self._registers.maxima(self._batch * blocks * heads * spans),
            "heads": op.heads,
            "kv_heads": op.kv_heads,
            "length": op.length,
            "padded": padded,
            "k_stride": self._registers.stride(op.k),
        }
        score = {
            **common,
            "q": self._registers.view(op.q),
            "q_rope": self._registers.view(op.q_rope or op.q),
            "q_stride": self._registers.stride(op.q),
            "r_stride": self._registers.stride(op.q_rope or op.q),
            "scale": op.head_dim**-0.5,
        }
        constants = {"MLA": mla, "FP8": fp8, "HEADS": heads, "ROPE": rope, "ASM": self._compiled}
        first = {
            **constants,
            "KEY": key,
            "ROPE2": power(max(rope, 1), 16),
            "CHUNK": min(32, power(key, 16)),
            "SPAN": SPAN,
        }
        mix = {
            **common,
            **self._output(op.out),
            "v": self._registers.view(op.v or op.k),
            "values": self._cached(op, op.values),
            "part": self._registers.part(kept * columns),
            "stats": self._registers.stats(kept),
            "counters": self._registers.counters(programs),
            "spans": spans,
            "per_split": per,
            "column_parts": pieces,
            "v_stride": self._registers.stride(op.v or op.k),
        }
        second = {
            **constants,
            "VALUE": op.value_dim,
            "COLUMNS": columns,
            "BLOCK": block,
            "SHADOW": self._shadowed(op.out),
        }
        return [
            Launch(attention_narrow.scores, (self._batch, blocks, spans), score, first),
            Launch(attention_narrow.mix, (self._batch, blocks, pieces * splits), mix, second),
        ]
