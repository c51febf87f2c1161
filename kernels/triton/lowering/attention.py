"""Lower attention to its one launch."""

from __future__ import annotations

from typing import Any

from moegauge.formats import get_format
from moegauge.kernels import program as ir
from moegauge.kernels.triton.device import attention
from moegauge.kernels.triton.launching.launch import Launch
from moegauge.kernels.triton.lowering.base import LoweringBase, power


class AttentionLowering(LoweringBase):
    """`Attend`."""

    def _cached(self, op: ir.Attend, place: ir.Place | None) -> Any:
        kind, size = ("u8", 1) if get_format(op.cache_format).element_bits == 8 else ("bf16", 2)
        if place is None:
            return self._registers.nothing(kind)
        return self._pool(place.pool, kind)[place.offset // size :]

    def _attend(self, op: ir.Attend) -> list[Launch]:
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
