"""Attention kernels of one-warp programs, in two launches: all scores first, then the weighted values.

The persistent kernel runs everything in one warp, whose registers cannot hold what `attention` accumulates (16 rows by
512 columns of latent values are 256 of them). Here a program holds 16 heads by SPAN tokens of scores, then 16 heads by
COLUMNS values, and reads every byte of the cache once per grid: the scores, float32, are small beside it.
Legend as in `moegauge.kernels.triton.device.attention`. Position `length` of the scores is the new token.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.attention import load_cache, operand
from moegauge.kernels.triton.device.grid import program, programs
from moegauge.kernels.triton.device.partial_sums import arrive


@triton.jit
def query_head(h, row, heads, group, MLA: tl.constexpr, HEADS: tl.constexpr):
    """(query head, whether it is one) of each row of head block `h`."""
    if MLA:
        head = h * HEADS + row
        live = head < heads
    else:
        head = h * group + row
        live = row < group
    return head, live


@triton.jit(do_not_specialize=["heads", "kv_heads", "length", "padded", "q_stride", "r_stride", "k_stride"])
def scores(
    q, q_rope, k, keys,  # input: the new token's queries and key, and the cache
    score, maxima,  # output
    heads, kv_heads, length, padded, q_stride, r_stride, k_stride, scale,  # shape
    MLA: tl.constexpr, FP8: tl.constexpr, HEADS: tl.constexpr, KEY: tl.constexpr, ROPE: tl.constexpr,
    ROPE2: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr, at=None,
):  # fmt: skip
    """score [tokens, head blocks, HEADS, padded] = scale q k, and the largest of each SPAN tokens in `maxima`
    [tokens, head blocks, spans + 1, HEADS].

    Grid (tokens, head blocks, spans + 1); the last one takes the new token's own key. CHUNK: columns of keys
    multiplied at a time, a power of two.
    """
    b = program(at, 0)
    h = program(at, 1)
    z = program(at, 2)
    row = tl.arange(0, HEADS)
    head, live = query_head(h, row, heads, heads // kv_heads, MLA, HEADS)
    block = b * programs(at, 1) + h
    score += (block * HEADS + row).to(tl.int64) * padded
    maxima += (block * programs(at, 2) + z) * HEADS + row
    c = tl.arange(0, CHUNK)
    r = tl.arange(0, ROPE2)
    q += b * q_stride + head[:, None] * KEY
    q_rope += b * r_stride + head[:, None] * ROPE
    if z < programs(at, 2) - 1:
        WIDE: tl.constexpr = KEY + ROPE
        t = z * SPAN + tl.arange(0, SPAN)
        seen = t < length
        kv = b if MLA else b * kv_heads + h
        cache = keys + (kv.to(tl.int64) * length + t)[None, :] * WIDE
        s = tl.zeros((HEADS, SPAN), tl.float32)
        for first in range(0, KEY, CHUNK):
            d = first + c
            query = tl.load(q + d[None, :], mask=live[:, None] & (d < KEY)[None, :], other=0.0)
            key = load_cache(cache + d[:, None], seen[None, :] & (d < KEY)[:, None], FP8, ASM)
            s = tl.dot(operand(query, ASM), key, s)
        if ROPE > 0:
            query = tl.load(q_rope + r[None, :], mask=live[:, None] & (r < ROPE)[None, :], other=0.0)
            key = load_cache(cache + KEY + r[:, None], seen[None, :] & (r < ROPE)[:, None], FP8, ASM)
            s = tl.dot(operand(query, ASM), key, s)
        s = tl.where(seen[None, :], s * scale, -1e38)
        tl.store(score[:, None] + t[None, :], s, mask=seen[None, :])
        tl.store(maxima, tl.max(s, 1))
    else:
        new = k + b * k_stride
        terms = tl.zeros((HEADS, CHUNK), tl.float32)
        for first in range(0, KEY, CHUNK):
            d = first + c
            mine = tl.load(q + d[None, :], mask=live[:, None] & (d < KEY)[None, :], other=0.0)
            own_key = tl.load(new + (0 if MLA else h * KEY) + d, mask=d < KEY, other=0.0)
            terms += mine * own_key[None, :]
        own = tl.sum(terms, 1)
        if ROPE > 0:
            mine = tl.load(q_rope + r[None, :], mask=live[:, None] & (r < ROPE)[None, :], other=0.0)
            own_key = tl.load(new + KEY + r, mask=r < ROPE, other=0.0)
            own += tl.sum(mine * own_key[None, :], 1)
        tl.store(score + length, own * scale)
        tl.store(maxima, own * scale)


@triton.jit(
    do_not_specialize=[
        "heads", "kv_heads", "length", "padded", "spans", "per_split", "column_parts", "k_stride", "v_stride",
        "out_stride",
    ]
)  # fmt: skip
def mix(
    score, maxima, k, v, keys, values,  # input: scores, the new token's key and value, and the cache
    out, shadow,  # output, float32 and bfloat16
    part, stats, counters,  # scratch: sums of splits of the context, splits that have arrived
    heads, kv_heads, length, padded, spans, per_split, column_parts, k_stride, v_stride, out_stride,
    MLA: tl.constexpr, FP8: tl.constexpr, HEADS: tl.constexpr, VALUE: tl.constexpr, ROPE: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr, SHADOW: tl.constexpr, at=None,
):  # fmt: skip
    """out = softmax(score) values. Grid (tokens, head blocks, column parts x splits of the cache).

    part [tokens, head blocks, parts, splits, HEADS, COLUMNS], stats [.., HEADS]: sums. The maximum of all scores is
    known beforehand, so parts are added, nothing is rescaled. spans: entries of `maxima`, the new token's last.
    """
    b = program(at, 0)
    h = program(at, 1)
    piece = program(at, 2) % column_parts
    z = program(at, 2) // column_parts
    splits = programs(at, 2) // column_parts
    row = tl.arange(0, HEADS)
    head, live = query_head(h, row, heads, heads // kv_heads, MLA, HEADS)
    block = b * programs(at, 1) + h
    score += (block * HEADS + row).to(tl.int64) * padded
    maxima += block * spans * HEADS
    largest = tl.full((HEADS, 16), -1e38, tl.float32)
    i = tl.arange(0, 16)
    for start in range(0, spans, 16):
        at_most = maxima + (start + i)[None, :] * HEADS + row[:, None]
        found = tl.load(at_most, mask=(start + i < spans)[None, :], other=-1e38)
        largest = tl.maximum(largest, found)
    top = tl.max(largest, 1)
    e = piece * COLUMNS + tl.arange(0, COLUMNS)
    kv = b if MLA else b * kv_heads + h
    WIDE: tl.constexpr = VALUE + ROPE if MLA else VALUE
    cache = keys if MLA else values
    cache += kv.to(tl.int64) * length * WIDE
    weights = tl.zeros((HEADS, BLOCK), tl.float32)
    acc = tl.zeros((HEADS, COLUMNS), tl.float32)
    for start in range(z * per_split, tl.minimum((z + 1) * per_split, length), BLOCK):
        t = start + tl.arange(0, BLOCK)
        seen = t < length
        value = load_cache(
            cache + t[:, None].to(tl.int64) * WIDE + e[None, :], seen[:, None] & (e < VALUE)[None, :], FP8, ASM
        )
        s = tl.load(score[:, None] + t[None, :], mask=seen[None, :], other=-1e38)
        p = tl.where(seen[None, :], tl.exp(s - top[:, None]), 0.0)
        weights += p
        acc = tl.dot(operand(p, ASM), value, acc)
    total = tl.sum(weights, 1)
    if z == splits - 1:
        own_at = k + b * k_stride + e if MLA else v + b * v_stride + h * VALUE + e
        own = tl.load(own_at, mask=e < VALUE, other=0.0)
        weight = tl.exp(tl.load(score + length) - top)
        total += weight
        acc += weight[:, None] * own[None, :]
    block = block * column_parts + piece
    lane = row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(part + (block * splits + z) * HEADS * COLUMNS + lane, acc)
    tl.store(stats + (block * splits + z) * HEADS + row, total)
    if arrive(counters + block, splits):
        total = tl.zeros((HEADS,), tl.float32)
        acc = tl.zeros((HEADS, COLUMNS), tl.float32)
        for n in range(0, splits):
            total += tl.load(stats + (block * splits + n) * HEADS + row, volatile=True)
            acc += tl.load(part + (block * splits + n) * HEADS * COLUMNS + lane, volatile=True)
        acc = acc / total[:, None]
        there = live[:, None] & (e < VALUE)[None, :]
        target = b * out_stride + head[:, None] * VALUE + e[None, :]
        tl.store(out + target, acc, mask=there)
        if SHADOW:
            tl.store(shadow + target, acc.to(tl.bfloat16), mask=there)
