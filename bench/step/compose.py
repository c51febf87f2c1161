"""Turn a `ModelShape` into the operations of one decode step, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from moegauge.bench.step.emitter import Emitter
from moegauge.bench.step.mixers import compose_attention
from moegauge.bench.step.rings import Layout
from moegauge.bench.step.routing import Routing
from moegauge.errors import ShapeError
from moegauge.kernels.program import (
    Embed,
    ExpertsDown,
    ExpertsUp,
    GatedProduct,
    Product,
    Program,
    Route,
    Vector,
    View,
    Weight,
)
from moegauge.shape import Experts, Layer, Matrix, ModelShape, Vectors

SLOT_STRIDE = 2  # slots per chosen expert: the low bit of its id picks one, so the address waits for the router


class Composer(Emitter):
    """Builds one step's program.

    Args:
        shape, layout, batch, context, kv_format: as `Emitter`.
        routing: the routing law.
        rng: drawn from for the routing priors alone.
    """

    def __init__(
        self,
        shape: ModelShape,
        layout: Layout,
        *,
        batch: int,
        context: int,
        kv_format: str,
        routing: Routing,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(shape, layout, batch=batch, context=context, kv_format=kv_format)
        self._routing, self._rng = routing, rng

    def build(self) -> Program:
        """The whole step."""
        shape = self.shape
        self.where = "embedding"
        table = self.layout.weight(shape.embedding, rows=max(1, self.batch))
        self.emit(Embed(self.label("rows"), table, self.residual))
        for i, layer in enumerate(shape.layers):
            self.where, self.layer_index = f"layer {i}", i
            gains, biases = self.vectors(layer.vectors, 2)
            compose_attention(self, layer.attention, gains[0], biases)
            self._feed_forward(layer, gains[1])
        self.where = "head"
        gains, biases = self.vectors(shape.vectors, 1)
        head = self.layout.weight(shape.head_matrix)
        logits = self.register("vocabulary", head.rows)
        self.emit(Product(self.label("logits"), self.residual, logits, (head,), gains[0], biases))
        name = f"{shape.name}, batch {self.batch}, context {self.context}"
        pools = dict(self.layout.capacity or self.layout.demand)
        return Program(name, self.batch, dict(self.registers), tuple(self.operations), pools)

    def vectors(self, vectors: Vectors, norms: int) -> tuple[list[Vector], tuple[Vector, ...]]:
        """A layer's small vectors: the gains of `norms` norms, and the rest as biases.

        Only their number and bytes are known: so many of 4 bytes and so many of 2 as give the bytes, the gains first.
        A norm is always there, so one gain is read even where none is listed, and shared where only one is.
        """
        hidden = self.shape.hidden
        wide = min(max(0, (vectors.bytes - 2 * vectors.parameters) // 2), vectors.parameters)
        left = {"bf16": vectors.parameters - wide, "f32": wide}
        gains: list[Vector] = []
        for dtype in ("bf16", "f32"):
            while len(gains) < norms and left[dtype] >= hidden:
                gains.append(self.layout.vector("norm", hidden, dtype, "gain"))
                left[dtype] -= hidden
        if not gains:
            gains.append(self.layout.vector("norm", hidden, "bf16", "gain"))
        gains += gains[-1:] * (norms - len(gains))
        biases = tuple(self.layout.vector("biases", n, dtype, "bias") for dtype, n in left.items() if n)
        return gains, biases

    def _feed_forward(self, layer: Layer, gain: Vector) -> None:
        routers = [m for m in layer.matrices if m.role == "router"]
        dense, before, after = _split(layer.matrices, self.shape.hidden)
        for matrix in before:
            self._single(matrix, gain, self.register("scratch", matrix.rows), accumulate=False)
        pools = layer.experts
        joined = bool(pools) and all(m.columns == pools[0].matrices[0].columns for group in dense for m in group[:1])
        for group in () if joined else dense:
            self._gated(group, gain)
        for i, pool in enumerate(pools):
            router = routers[min(i, len(routers) - 1)] if routers else None
            self._experts(pool, i, router, gain, dense if joined and i == 0 else [])
        for matrix in after:
            wide = matrix.rows == self.shape.hidden
            self._single(matrix, gain, self.residual if wide else self.register("extra", matrix.rows), accumulate=wide)

    def _single(self, matrix: Matrix, gain: Vector, out: View, *, accumulate: bool) -> None:
        x, norm = self.source(matrix.columns, gain)
        weight = self.layout.weight(matrix)
        self.emit(Product(self.label(matrix.name), x, out, (weight,), norm, accumulate=accumulate))

    def _pair(self, group: Sequence[Matrix], slots: int = 1) -> tuple[Weight | None, Weight, Weight]:
        """(gate, up, down) of an MLP; a fused gate and up matrix is read as its two halves."""
        *first, last = group
        if not 1 <= len(first) <= 2:
            raise ShapeError(f"{self.shape.name}, {self.where}: an MLP of {len(group)} matrices.")
        gate: Weight | None = None
        if len(first) == 2:
            gate, up = (self.layout.weight(m, slots=slots) for m in first)
        elif first[0].rows == 2 * last.columns:
            gate, up = (
                self.layout.weight(first[0], slots=slots, rows=last.columns, name=part)
                for part in ("gate_proj", "up_proj")
            )
        else:
            up = self.layout.weight(first[0], slots=slots)
        down = self.layout.weight(last, slots=slots)
        if up.rows != down.columns or (gate and (gate.rows, gate.columns) != (up.rows, up.columns)):
            raise ShapeError(f"{self.shape.name}, {self.where}: gate, up and down projections do not fit each other.")
        return gate, up, down

    def _gated(self, group: Sequence[Matrix], gain: Vector) -> None:
        gate, up, down = self._pair(group)
        x, norm = self.source(up.columns, gain)
        inner = self.register("inner", up.rows)
        self.emit(GatedProduct(self.label("gate and up"), x, inner, gate, up, norm))
        out = self.residual if down.rows == self.shape.hidden else self.register("scratch", down.rows)
        self.emit(Product(self.label("down"), inner, out, (down,), accumulate=out is self.residual))

    def _experts(
        self, pool: Experts, index: int, router: Matrix | None, gain: Vector, shared: Sequence[Sequence[Matrix]]
    ) -> None:
        name = self.label(f"route {index}" if index else "route")
        logits = self.register("router", max(pool.count, router.rows if router else 0))
        if router:
            self._single(router, gain, View("router", 0, router.rows), accumulate=False)
        wanted = min(pool.count, self.batch * pool.top_k) * SLOT_STRIDE
        slots = self.layout.slots(pool.matrices, max(1, wanted))
        prior = self._routing.prior(self.layer_index, self.batch, pool.count, pool.top_k, self._rng)
        self.emit(Route(name, View(logits.register, 0, pool.count), prior, pool.count, pool.top_k, SLOT_STRIDE, slots))
        gate, up, down = self._pair(pool.matrices, slots)
        pairs = [self._pair(group) for group in shared]
        biases = self._expert_biases(pool, up, down, gate is not None, slots)
        x, norm = self.source(up.columns, gain)
        inner = self.register("inner", pool.top_k * up.rows + sum(p[1].rows for p in pairs))
        self.emit(
            ExpertsUp(
                self.label("experts up"),
                name,
                x,
                inner,
                gate,
                up,
                pool.top_k,
                biases[0],
                biases[1],
                tuple((g, u) for g, u, _ in pairs),
                norm,
            )
        )
        out = self.residual if down.rows == self.shape.hidden else self.register("latent sum", down.rows)
        self.emit(
            ExpertsDown(
                self.label("experts down"), name, inner, out, down, pool.top_k, biases[2], tuple(d for *_, d in pairs)
            )
        )

    def _expert_biases(
        self, pool: Experts, up: Weight, down: Weight, gated: bool, slots: int
    ) -> tuple[Vector | None, Vector | None, Vector | None]:
        """Biases of (gate, up, down), from the count of an expert's small parameters: one per output where there are as
        many, else all of them behind the down projection."""
        n = pool.vectors.parameters
        if not n:
            return None, None, None
        dtype = "f32" if pool.vectors.bytes >= 4 * n else "bf16"

        def bias(length: int) -> Vector:
            return self.layout.vector("expert bias", length, dtype, "bias", slots)

        if n != up.rows * (1 + gated) + down.rows:
            return None, None, bias(n)
        return bias(up.rows) if gated else None, bias(up.rows), bias(down.rows)


def _split(matrices: Iterable[Matrix], hidden: int) -> tuple[list[list[Matrix]], list[Matrix], list[Matrix]]:
    """(MLPs as groups ending with their down projection, projections before the experts, projections after them)."""
    groups: list[list[Matrix]] = []
    before: list[Matrix] = []
    after: list[Matrix] = []
    open_group: list[Matrix] = []
    for matrix in matrices:
        if matrix.role == "router":
            continue
        if matrix.role not in ("dense_mlp", "shared_expert") or matrix.rows == 1:
            (before if matrix.columns == hidden else after).append(matrix)
            continue
        open_group.append(matrix)
        if matrix.rows == hidden and len(open_group) > 1:
            groups.append(open_group)
            open_group = []
    if open_group:
        before += open_group
    return groups, before, after
