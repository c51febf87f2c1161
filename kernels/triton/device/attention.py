"""Attention kernel over a KV cache, split over the context, merged by the last split to arrive.

`gqa`: the query heads of one kv head are the rows of the tensor-core product. `mla` (absorbed): up to 32 of all heads,
whose keys are the cache rows and whose values are their first VALUE columns; the rope part is a second product.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.decode import e4m3
from moegauge.kernels.triton.device.partial_sums import arrive
from moegauge.kernels.triton.device.row_tile import wait_for_producers


@triton.jit
def load_cache(cache, mask, FP8: tl.constexpr, ASM: tl.constexpr):
    """Cache elements as tensor-core operands."""
    if FP8:
        value = e4m3(tl.load(cache, mask=mask, other=0).to(tl.int32)).to(tl.bfloat16)
    else:
        value = tl.load(cache, mask=mask, other=0.0)
    return value if ASM else value.to(tl.float32)


@triton.jit
def operand(value, ASM: tl.constexpr):
    value = value.to(tl.bfloat16)
    return value if ASM else value.to(tl.float32)


@triton.jit(
    do_not_specialize=[
        "heads", "kv_heads", "length", "per_split", "q_stride", "r_stride", "k_stride", "v_stride", "out_stride",
    ]
)  # fmt: skip
def attention(
    q, q_rope, k, v,  # input: the new token's queries, key and value
    keys, values,  # the cache
    out, shadow,  # output, float32 and bfloat16
    part, stats, counters,  # scratch: sums of splits of the context, their maxima, splits that have arrived
    heads, kv_heads, length, per_split, q_stride, r_stride, k_stride, v_stride, out_stride, scale,  # shape
    MLA: tl.constexpr, FP8: tl.constexpr, HEADS: tl.constexpr, KEY: tl.constexpr, KEY2: tl.constexpr,
    VALUE: tl.constexpr, VALUE2: tl.constexpr, ROPE: tl.constexpr, ROPE2: tl.constexpr, BLOCK: tl.constexpr,
    ASM: tl.constexpr, PDL: tl.constexpr, SHADOW: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, head blocks, splits): kv heads for gqa, blocks of HEADS heads for mla.

    KEY: columns of the first product (gqa: the head; mla: VALUE); ROPE: of the second (0 for gqa); the *2 are the
    next powers of two. part [tokens, head blocks, splits, HEADS, VALUE], stats [.., HEADS, 2]: maximum and sum.
    The last split also takes the new token's own key and value.
    """
    if PDL:
        wait_for_producers()
    b = tl.program_id(0)
    h = tl.program_id(1)
    z = tl.program_id(2)
    splits = tl.num_programs(2)
    group = heads // kv_heads
    row = tl.arange(0, HEADS)
    if MLA:
        head = h * HEADS + row
        live = head < heads
        kv = b
    else:
        head = h * group + row
        live = row < group
        kv = b * kv_heads + h
    d = tl.arange(0, KEY2)
    e = tl.arange(0, VALUE2)
    r = tl.arange(0, ROPE2)
    WIDE: tl.constexpr = KEY + ROPE
    query = tl.load(
        q + b * q_stride + head[:, None] * KEY + d[None, :], mask=live[:, None] & (d < KEY)[None, :], other=0.0
    )
    own_key = tl.load(k + b * k_stride + (0 if MLA else h * KEY) + d, mask=d < KEY, other=0.0)
    own = tl.sum(query * own_key[None, :], 1)
    query = operand(query, ASM)
    if ROPE > 0:
        rope_at = q_rope + b * r_stride + head[:, None] * ROPE + r[None, :]
        rope = tl.load(rope_at, mask=live[:, None] & (r < ROPE)[None, :], other=0.0)
        own_rope = tl.load(k + b * k_stride + KEY + r, mask=r < ROPE, other=0.0)
        own += tl.sum(rope * own_rope[None, :], 1)
        rope = operand(rope, ASM)
    # Scaled here, not behind the loop: else the assembler puts the last addition off until there and keeps both terms,
    # two registers for each sum: on 8.9 Triton 3.9 spilled 8 bytes of `gqa`.
    own = own * scale
    keys += kv.to(tl.int64) * length * WIDE
    values += kv.to(tl.int64) * length * VALUE
    most = tl.full((HEADS,), -1e38, tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    acc = tl.zeros((HEADS, VALUE2), tl.float32)
    for start in range(z * per_split, tl.minimum((z + 1) * per_split, length), BLOCK):
        t = start + tl.arange(0, BLOCK)
        seen = t < length
        key_at = keys + t[None, :].to(tl.int64) * WIDE + d[:, None]
        key = load_cache(key_at, seen[None, :] & (d < KEY)[:, None], FP8, ASM)
        s = tl.dot(query, key)
        if ROPE > 0:
            tail_at = keys + t[None, :].to(tl.int64) * WIDE + KEY + r[:, None]
            s += tl.dot(rope, load_cache(tail_at, seen[None, :] & (r < ROPE)[:, None], FP8, ASM))
        s = tl.where(seen[None, :], s * scale, -1e38)
        top = tl.maximum(most, tl.max(s, 1))
        p = tl.where(seen[None, :], tl.exp(s - top[:, None]), 0.0)
        shrink = tl.exp(most - top)
        total = total * shrink + tl.sum(p, 1)
        if MLA:
            value = tl.trans(key)
        else:
            value_at = values + t[:, None].to(tl.int64) * VALUE + e[None, :]
            value = load_cache(value_at, seen[:, None] & (e < VALUE)[None, :], FP8, ASM)
        acc = acc * shrink[:, None] + tl.dot(operand(p, ASM), value)
        most = top
    if z == splits - 1:
        own_at = k + b * k_stride + e if MLA else v + b * v_stride + h * VALUE + e
        own_value = tl.load(own_at, mask=e < VALUE, other=0.0)
        top = tl.maximum(most, own)
        shrink = tl.exp(most - top)
        weight = tl.exp(own - top)
        total = total * shrink + weight
        acc = acc * shrink[:, None] + weight[:, None] * own_value[None, :]
        most = top
    block = b * tl.num_programs(1) + h
    there = live[:, None] & (e < VALUE)[None, :]
    at = row[:, None] * VALUE + e[None, :]
    tl.store(part + (block * splits + z) * HEADS * VALUE + at, acc, mask=there)
    tl.store(stats + (block * splits + z) * HEADS * 2 + row * 2, most)
    tl.store(stats + (block * splits + z) * HEADS * 2 + row * 2 + 1, total)
    if arrive(counters + block, splits):
        most = tl.full((HEADS,), -1e38, tl.float32)
        for i in range(0, splits):
            most = tl.maximum(most, tl.load(stats + (block * splits + i) * HEADS * 2 + row * 2, volatile=True))
        total = tl.zeros((HEADS,), tl.float32)
        acc = tl.zeros((HEADS, VALUE2), tl.float32)
        for i in range(0, splits):
            stat = stats + (block * splits + i) * HEADS * 2 + row * 2
            weight = tl.exp(tl.load(stat, volatile=True) - most)
            total += weight * tl.load(stat + 1, volatile=True)
            piece = tl.load(part + (block * splits + i) * HEADS * VALUE + at, mask=there, other=0.0, volatile=True)
            acc += weight[:, None] * piece
        acc = acc / total[:, None]
        # Heads by the program, not by the lane: addresses differ by constants, and the 128 stores of a lane have 26 to
        # 28 of them in registers. By lane (`head * VALUE`) they had 83 to 86, of two registers each, and `mla` spilled
        # 24 to 72 bytes with Triton 3.6 and 3.9 on 9.0 and 10.0.
        first = b * out_stride + h * (HEADS if MLA else group) * VALUE
        tl.store(out + first + at, acc, mask=there)
        if SHADOW:
            tl.store(shadow + first + at, acc.to(tl.bfloat16), mask=there)
