"""Bytes read, kernel launches and multiply-accumulates of one decode step of a `ModelShape`.

A step reads every dense matrix once whatever the batch, the distinct routed experts its tokens choose, and each
sequence's own cache. Expected distinct experts of a layer under uniform routing are E (1 - (1 - k/E)^B); routing that
is skewed or alike from token to token chooses fewer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from moegauge.errors import UnknownNameError, UsageError
from moegauge.shape import Attention, Layer, Matrix, ModelShape

KV_BYTES = {"f32": 4, "bf16": 2, "fp8": 1}  # per cached element
STATE_BYTES = 2 * 4  # a recurrent state is read and written in float32
MAX_BATCH = 1_000_000
MAX_CONTEXT = 100_000_000  # tokens


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one decode step costs.

    Attributes:
        dense_bytes: weights every token uses, head included, norms and biases too.
        routed_bytes: routed experts read.
        embedding_bytes: one row of the input table per token.
        kv_bytes: cache and recurrent state of all sequences.
        kernels: kernel boundaries, counted as `kernel_boundaries` says.
        layers, moe_layers: decoder layers, and those with routed experts.
        macs: multiply-accumulates of the products and of attention.
        attention_macs: those of attention over the cache.
        distinct_experts: expected distinct experts per routed pool; 0 without pools.
        all_reduces: sums over tensor-parallel devices: one behind attention, one behind the MLP of each layer.
        hidden: width of the residual stream.
    """

    dense_bytes: float
    routed_bytes: float
    embedding_bytes: float
    kv_bytes: float
    kernels: int
    layers: int
    moe_layers: int
    macs: float
    distinct_experts: float
    all_reduces: int
    hidden: int
    attention_macs: float = 0.0

    @property
    def weight_bytes(self) -> float:
        """Dense, routed and embedding rows."""
        return self.dense_bytes + self.routed_bytes + self.embedding_bytes

    @property
    def total_bytes(self) -> float:
        """Everything one step reads."""
        return self.weight_bytes + self.kv_bytes


@dataclass(frozen=True, slots=True)
class LayerTraffic:
    """Bytes of one layer in one step, by term."""

    dense_bytes: float
    routed_bytes: float
    kv_bytes: float
    kernels: int


def step_traffic(shape: ModelShape, *, batch: int = 1, context: int = 0, kv_format: str = "bf16") -> Traffic:
    """Traffic of one step of `batch` sequences, each with `context` cached tokens.

    Args:
        shape: the model, its matrices in the formats they are read in (see `ModelShape.cast`).
        batch: sequences decoded together.
        context: tokens in each cache.
        kv_format: `bf16`, `fp8` or `f32`.

    Raises:
        UnknownNameError: no such cache format.
        UsageError: batch or context out of range.
    """
    check_counts(batch, context)
    if kv_format not in KV_BYTES:
        raise UnknownNameError("KV format", kv_format, KV_BYTES)
    layers = [layer_traffic(layer, batch, context, kv_format) for layer in shape.layers]
    pools = [pool for layer in shape.layers for pool in layer.experts]
    return Traffic(
        dense_bytes=shape.head_matrix.bytes + shape.vectors.bytes + sum(t.dense_bytes for t in layers),
        routed_bytes=sum(t.routed_bytes for t in layers),
        embedding_bytes=batch * (shape.embedding.bytes // shape.embedding.rows),
        kv_bytes=sum(t.kv_bytes for t in layers),
        kernels=2 + sum(t.kernels for t in layers),
        layers=len(shape.layers),
        moe_layers=shape.moe_layers,
        macs=sum(format_macs(shape, batch=batch).values()) + attention_macs(shape, batch, context),
        attention_macs=attention_macs(shape, batch, context),
        distinct_experts=sum(p.coverage(batch) for p in pools) / len(pools) if pools else 0.0,
        all_reduces=2 * len(shape.layers),
        hidden=shape.hidden,
    )


def format_bytes(
    shape: ModelShape,
    *,
    batch: int = 1,
    context: int = 0,
    kv_format: str = "bf16",
    distinct: float | None = None,
) -> dict[str, float]:
    """Bytes of one step's matrices by format, and of its cache under `kv:` and its format, the most first.

    Args:
        distinct: distinct experts read per routed pool, where that was measured; None expects uniform routing.
        shape, batch, context, kv_format: as `step_traffic`.
    """
    found: dict[str, float] = {}
    for layer in shape.layers:
        for matrix in layer.dense_matrices:
            found[matrix.format] = found.get(matrix.format, 0.0) + matrix.bytes
        for pool in layer.experts:
            times = pool.coverage(batch) if distinct is None else distinct
            for matrix in pool.matrices:
                found[matrix.format] = found.get(matrix.format, 0.0) + times * matrix.bytes
    head = shape.head_matrix
    found[head.format] = found.get(head.format, 0.0) + head.bytes
    cache = sum(layer_traffic(layer, batch, context, kv_format).kv_bytes for layer in shape.layers)
    if cache:
        found[f"kv:{kv_format}"] = float(cache)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def weight_bytes(shape: ModelShape) -> int:
    """Bytes of all weights of the decoder, every expert and the whole embedding included."""
    embedding = shape.embedding.bytes if shape.head else 0
    return (
        embedding + shape.dense_bytes + sum(e.count * e.expert_bytes for layer in shape.layers for e in layer.experts)
    )


def format_macs(shape: ModelShape, *, batch: int = 1) -> dict[str, float]:
    """Multiply-accumulates of one step with weights, by the weight's format, the most first."""
    found: dict[str, float] = {}

    def add(matrices: Iterable[Matrix], times: float) -> None:
        for matrix in matrices:
            found[matrix.format] = found.get(matrix.format, 0.0) + times * matrix.parameters

    add([shape.head_matrix], batch)
    for layer in shape.layers:
        add(layer.dense_matrices, batch)
        for pool in layer.experts:
            add(pool.matrices, batch * pool.top_k)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def format_passes(
    shape: ModelShape, *, batch: int = 1, tile: int = 1, distinct: float | None = None
) -> dict[str, float]:
    """Times one step takes a weight's code apart, by the weight's format, where that is done once for every `tile`
    tokens it meets: of a dense matrix ceil(batch / tile), of an expert as uniform routing gives it tokens.

    Args:
        distinct: distinct experts read per routed pool, where that was counted.
        shape, batch: as `format_macs`.
    """
    found: dict[str, float] = {}

    def add(matrices: Iterable[Matrix], times: float) -> None:
        for matrix in matrices:
            found[matrix.format] = found.get(matrix.format, 0.0) + times * matrix.parameters

    dense = math.ceil(batch / tile)
    add([shape.head_matrix], dense)
    for layer in shape.layers:
        add(layer.dense_matrices, dense)
        for pool in layer.experts:
            chance = pool.top_k / pool.count
            # Sum over tiles of the chance that an expert has so many tokens: binomial.
            over = [_more_than(tile * i, batch, chance) for i in range(dense)]
            counted = 1.0 if distinct is None else distinct / pool.coverage(batch)
            add(pool.matrices, pool.count * sum(over) * counted)
    return found


def _more_than(least: int, trials: int, chance: float) -> float:
    """Probability of more than `least` successes in independent trials."""
    if chance >= 1:
        return float(trials > least)
    below = (math.comb(trials, n) * chance**n * (1 - chance) ** (trials - n) for n in range(least + 1))
    return max(0.0, 1.0 - sum(below))


def check_counts(batch: int, context: int) -> None:
    """Refuse a batch or context no step can have.

    Raises:
        UsageError: naming the one that is wrong.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise UsageError(f"batch is {batch}, not between 1 and {MAX_BATCH:,}.")
    if not 0 <= context <= MAX_CONTEXT:
        raise UsageError(f"context is {context}, not between 0 and {MAX_CONTEXT:,} tokens.")


def layer_traffic(layer: Layer, batch: int, context: int, kv_format: str) -> LayerTraffic:
    """Bytes and boundaries of one layer."""
    attention = layer.attention
    seen = context if attention.window is None else min(context, attention.window)
    cache = attention.cache_elements * seen * KV_BYTES[kv_format] + attention.state_elements * STATE_BYTES
    return LayerTraffic(
        layer.vectors.bytes + sum(m.bytes for m in layer.dense_matrices),
        sum(pool.coverage(batch) * pool.expert_bytes for pool in layer.experts),
        batch * cache,
        kernel_boundaries(layer),
    )


def kernel_boundaries(layer: Layer) -> int:
    """Dependent kernels of one layer in a fused decode step (docs/architecture.md, "A step is a program").

    Projections of one input share a kernel: GQA needs one for q, k, v; MLA three (down-projections, up-projection,
    absorption into the latent) and one for the latent's way back; then the mixer and the output projection. An MLP is
    gate with up, then down; an MoE is router, choice, experts up, experts down, shared experts riding along.
    """
    mixer = {"gqa": 3, "mla": 6, "linear": 3, "none": 0}[layer.attention.kind]
    if layer.experts:
        return mixer + 4 * len(layer.experts)
    return mixer + (2 if layer.matrices else 0)


def attention_macs(shape: ModelShape, batch: int, context: int) -> float:
    """Multiply-accumulates of attention over the cache, and with recurrent state."""
    return batch * sum(layer_attention_macs(layer.attention, context) for layer in shape.layers)


def layer_attention_macs(attention: Attention, context: int) -> float:
    """Those of one layer and sequence."""
    seen = context if attention.window is None else min(context, attention.window)
    return float(attention.heads * (attention.head_dim + attention.value_dim) * seen + attention.state_elements)


def slowdown(shape: ModelShape, batch: int, *, context: int = 0, kv_format: str = "bf16") -> float:
    """Bytes of a step at `batch` over bytes of a step at batch 1: how much slower each stream is for its company."""
    one = step_traffic(shape, context=context, kv_format=kv_format).total_bytes
    return step_traffic(shape, batch=batch, context=context, kv_format=kv_format).total_bytes / one


def coverage_factor(expansion: float, batch: float) -> float:
    """Distinct experts a batch reads over those one token reads: (E/k) (1 - (1 - k/E)^B).

    Args:
        expansion: E / k, at least 1.
        batch: tokens decoded together.
    """
    if expansion <= 1:
        return 1.0
    return expansion * -math.expm1(batch * math.log1p(-1.0 / expansion))
