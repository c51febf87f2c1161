"""Routing kernel: top-k of the router's scores, and the tables the expert kernels read.

Written, for B tokens, k choices, pair p = b k + i and D distinct experts numbered in order of first use:
ids[p], share[p] (softmax of the chosen logits), slot_of[p] and, of several tokens, number_of[p] (the j of its expert);
slots[j], counts[j] and members[j, 0 .. counts[j]) (pairs) for j < D; distinct[0] = D.
"""

import triton
import triton.language as tl

from moegauge.kernels.triton.device.row_tile import wait_for_producers


@triton.jit
def slot_for(j, expert, stride, slots):
    """Slot of the j-th distinct expert; see `moegauge.kernels.program.Route`."""
    return (j * stride + expert % stride) % slots


@triton.jit
def scores_of(logits, prior, slope, e, experts):
    """(logits, scores) of experts `e`, any shape; a score that is not a number is the lowest there is."""
    logit = tl.load(logits + e, mask=e < experts, other=0.0)
    score = tl.load(prior + e, mask=e < experts, other=0.0) + slope * logit
    return logit, tl.where((e < experts) & (score > float("-inf")), score, float("-inf"))


@triton.jit
def choose_for(
    b, logits, prior, ids, share, slot_of, slots, counts, members, distinct, choices,
    experts, logits_stride, stride, slot_count, slope,
    TOPK: tl.constexpr, E2: tl.constexpr, BATCH1: tl.constexpr,
):  # fmt: skip
    """The experts of token `b` by rank: how many score higher, ties going to the lower id. Every lane compares its own
    experts with all others, RIVALS at a time, so that no maximum waits for the one before it."""
    RIVALS: tl.constexpr = 1024 // E2 if E2 < 1024 else 1
    e = tl.arange(0, E2)
    logits += b * logits_stride
    prior += b * experts
    logit, score = scores_of(logits, prior, slope, e, experts)
    better = tl.zeros((RIVALS, E2), tl.int32)
    for first in range(0, experts, RIVALS):
        other = first + tl.arange(0, RIVALS)
        _, rival = scores_of(logits, prior, slope, other, experts)
        ties = (rival[:, None] == score[None, :]) & (other[:, None] < e[None, :])
        better += ((rival[:, None] > score[None, :]) | ties).to(tl.int32)
    rank = tl.sum(better, 0)
    there = (rank < TOPK) & (e < experts)
    choice = tl.where(there, rank, -1)
    pair = b * TOPK + choice
    weight = tl.exp(logit - tl.max(tl.where(there, logit, float("-inf")), 0))
    weight = tl.where(there, weight, 0.0)
    tl.store(ids + pair, e, mask=there)
    tl.store(share + pair, weight / tl.sum(weight, 0), mask=there)
    if BATCH1:
        slot = slot_for(choice, e, stride, slot_count)
        tl.store(slot_of + pair, slot, mask=there)
        tl.store(slots + choice, slot, mask=there)
        tl.store(counts + choice, e * 0 + 1, mask=there)
        tl.store(members + choice, choice, mask=there)
        tl.store(distinct, TOPK)
    else:
        tl.store(choices + b * experts + e, choice, mask=e < experts)


@triton.jit(do_not_specialize=["experts", "logits_stride", "stride", "slot_count"])
def choose(
    logits, prior, ids, share, slot_of, slots, counts, members, distinct, choices,
    experts, logits_stride, stride, slot_count, slope,
    TOPK: tl.constexpr, E2: tl.constexpr, BATCH1: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token per program. BATCH1: a single token needs no grouping, every choice is a distinct expert.

    choices: [B, experts] int32, the choice's number or -1, for `group`.
    """
    if PDL:
        wait_for_producers()
    choose_for(
        tl.program_id(0), logits, prior, ids, share, slot_of, slots, counts, members, distinct, choices,
        experts, logits_stride, stride, slot_count, slope, TOPK, E2, BATCH1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["experts", "batch", "stride", "slot_count"])
def group(
    slot_of, number_of, slots, counts, members, distinct, choices, firsts, numbers,
    experts, batch, stride, slot_count,
    TOPK: tl.constexpr, E2: tl.constexpr, P2: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Number the distinct experts and list their pairs; one program. firsts [P2], numbers [experts]: scratch."""
    if PDL:
        wait_for_producers()
    e = tl.arange(0, E2)
    p = tl.arange(0, P2)
    used = tl.zeros((E2,), tl.int32)
    first = tl.full((E2,), P2, tl.int32)
    tl.store(firsts + p, p * 0 - 1)
    for b in range(0, batch):
        choice = tl.load(choices + b * experts + e, mask=e < experts, other=-1)
        first = tl.where(choice >= 0, tl.minimum(first, b * TOPK + choice), first)
        used += (choice >= 0).to(tl.int32)
    tl.debug_barrier()
    tl.store(firsts + first, e, mask=used > 0)
    tl.debug_barrier()
    expert = tl.load(firsts + p)
    opens = (expert >= 0).to(tl.int32)
    j = tl.cumsum(opens, 0) - 1
    tl.store(slots + j, slot_for(j, expert, stride, slot_count), mask=opens > 0)
    tl.store(numbers + expert, j, mask=opens > 0)
    tl.store(distinct, tl.sum(opens, 0))
    tl.debug_barrier()
    number = tl.load(numbers + e, mask=used > 0, other=0)
    slot = slot_for(number, e, stride, slot_count)
    tl.store(counts + number, used, mask=used > 0)
    seen = tl.zeros((E2,), tl.int32)
    for b in range(0, batch):
        choice = tl.load(choices + b * experts + e, mask=e < experts, other=-1)
        there = choice >= 0
        tl.store(members + number * batch + seen, b * TOPK + choice, mask=there)
        tl.store(slot_of + b * TOPK + choice, slot, mask=there)
        tl.store(number_of + b * TOPK + choice, number, mask=there)
        seen += there.to(tl.int32)
