"""The work compared at a point (matrices, tokens, chosen experts), the same for this kit and every peer.

`product`: the gate projections of `count` experts, one product each, every token through every matrix.
`experts`: the routed experts of `layers` MoE layers, gate, up, SwiGLU, down and the weighted sum, B tokens a layer.
`decode`: one whole decode step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moegauge.bench.plan.points import Point
from moegauge.errors import UsageError
from moegauge.shape import Attention, Experts, Matrix, ModelShape, Vectors

KERNELS = ("product", "experts")
# Bytes between two readings of a place, in last-level caches: five is the least for a cold cache (docs/measuring.md).
COLD = 8


@dataclass(frozen=True, slots=True)
class Work:
    """One comparison.

    Attributes:
        point: model, format, batch and context asked for.
        kernel: `product`, `experts`, or None for the whole step.
        shape: the model, every layer of it that is run, in the point's format.
        format: what the routed experts are stored in: a row of FORMATS.
        rows, columns: inner and hidden width: the gate projection of one expert.
        experts: distinct experts of a layer (`experts`), or matrices of one run (`product`).
        top_k: experts a token uses.
        layers: MoE layers of one run (`experts`).
        pool: routed experts of a layer of the model.
        seed: of weights and inputs.
    """

    point: Point
    kernel: str | None
    shape: ModelShape
    format: str
    rows: int
    columns: int
    experts: int
    top_k: int
    layers: int
    pool: int
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens decoded together."""
        return self.point.batch

    @property
    def parameters(self) -> int:
        """Weights one run of a peer multiplies by."""
        if self.kernel == "product":
            return self.experts * self.rows * self.columns
        if self.kernel == "experts":
            return 3 * self.layers * self.experts * self.rows * self.columns
        return self.shape.active_without_embedding

    def tokens_of(self, expert: int) -> list[int]:
        """The tokens that use an expert of a layer: token b uses experts b k to b k + k - 1, round and round."""
        return [b for b in range(self.tokens) if (expert - b * self.top_k) % self.experts < self.top_k]

    def chosen(self) -> NDArray[np.int64]:
        """Experts of every token, [tokens, top_k], numbered within a layer."""
        first = np.arange(self.tokens)[:, None] * self.top_k
        return (first + np.arange(self.top_k)[None, :]) % self.experts


def kernel_work(point: Point, shape: ModelShape, kernel: str, cache: int, seed: int = 0) -> Work:
    """The work of a kernel point.

    Args:
        point: what is asked for.
        shape: its model, in its format.
        kernel: `product` or `experts`.
        cache: bytes of the last-level cache; one run reads at least eight times this at half a byte a weight.
        seed: of weights and inputs.

    Raises:
        UsageError: the model has no routed experts with a gate.
    """
    pool = _pool(shape)
    gate, _, down = pool.matrices
    weights = COLD * cache * 2  # at half a byte each
    distinct = max(pool.top_k, round(pool.coverage(point.batch)))
    if kernel == "product":
        experts, layers = max(2, math.ceil(weights / gate.parameters)), 1
    else:
        experts, layers = distinct, max(2, math.ceil(weights / (distinct * pool.expert_parameters)))
    return Work(
        point, kernel, shape, gate.format, down.columns, gate.columns, experts, pool.top_k, layers, pool.count, seed
    )


def decode_work(point: Point, shape: ModelShape, layers: int | None = None, seed: int = 0) -> Work:
    """The work of a whole step, of the first `layers` layers only where given; the name then says so.

    Raises:
        UsageError: the model has no routed experts with a gate.
    """
    if layers is not None and layers < len(shape.layers):
        shape = replace(shape, name=f"{shape.name}, {layers} layers", layers=shape.layers[:layers])
    pool = _pool(shape)
    gate, _, down = pool.matrices
    experts = max(pool.top_k, round(pool.coverage(point.batch)))
    sizes = down.columns, gate.columns, experts, pool.top_k, shape.moe_layers, pool.count
    return Work(point, None, shape, gate.format, *sizes, seed)


def experts_only(work: Work) -> ModelShape:
    """A model of `work.layers` MoE layers that mix no tokens, for this kit's own experts."""
    layer = next(layer for layer in work.shape.layers if layer.experts)
    pool = replace(layer.experts[0], vectors=Vectors())
    router = Matrix("router", "router", pool.count, work.columns, "bf16")
    bare = replace(layer, attention=Attention("none"), matrices=(router,), experts=(pool,), vectors=Vectors())
    table = Matrix("embed_tokens", "embedding", 64, work.columns, "bf16")
    return replace(work.shape, embedding=table, head=None, layers=(bare,) * work.layers, vectors=Vectors())


def _pool(shape: ModelShape) -> Experts:
    for layer in shape.layers:
        for pool in layer.experts:
            if pool.gated:
                return pool
    raise UsageError(
        f"{shape.name} has no routed experts with gate, up and down matrices.", advice="Choose another --model."
    )
