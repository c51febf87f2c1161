"""The step program: a decode step as a list of operations on registers and weights, for every backend.

Legend: B tokens decoded together, E experts, k experts a token uses, D distinct experts of one layer in one step,
T tokens of context. Every activation is a float32 register [B, width], row-major. One operation is one kernel boundary.

An operation is a frozen dataclass; what it must compute stands in its docstring, and `moegauge.kernels.reference`
computes it slowly. A backend may use another order of summation and any packed order of the weights (its `prepack`),
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = (
    256  # bytes; every place and every slot starts on it, so a row-major matrix starts on a cache line and a GPU sector
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run of bytes lies.

    Attributes:
        pool: key of the arena's pool, e.g. `fp8.weight`, `fp8.scale`, `kv.bf16`.
        offset: first byte in the pool, a multiple of ALIGNMENT.
        bytes: length of one slot.
        stride: bytes from one slot to the next (0 for what has a single slot); a multiple of ALIGNMENT.
    """

    pool: str
    offset: int
    bytes: int
    stride: int = 0

    def at(self, slot: int) -> int:
        """First byte of slot `slot`."""
        return self.offset + slot * self.stride


@dataclass(frozen=True, slots=True)
class Weight:
    """A packed matrix y[rows] = W[rows, columns] x[columns], or `slots` such matrices side by side (routed experts).

    Attributes:
        name, role: as in `moegauge.shape.Matrix`.
        rows, columns: outputs and inputs of one slot.
        format: a row of `moegauge.formats.FORMATS`.
        weights: packed elements, `Format.weight_bytes(rows, columns)` per slot, canonical order of
            `moegauge.kernels.packing` (row-major, each row on a byte boundary) unless the backend prepacks.
        scales: packed scales, row-major by block, without the per-matrix scale; None when the format has none.
        tensor_scale: the float32 per matrix of nvfp4; None otherwise.
        slots: how many matrices lie side by side.
    """

    name: str
    role: str
    rows: int
    columns: int
    format: str
    weights: Place
    scales: Place | None = None
    tensor_scale: Place | None = None
    slots: int = 1

    @property
    def bytes(self) -> int:
        """Bytes one product with one slot reads."""
        return self.weights.bytes + self.scale_bytes

    @property
    def scale_bytes(self) -> int:
        """Bytes of one slot's scales."""
        return sum(p.bytes for p in (self.scales, self.tensor_scale) if p)


@dataclass(frozen=True, slots=True)
class Vector:
    """A small vector read beside a matrix: a norm's gain, a bias, state parameters.

    Attributes:
        name: for listings.
        length: elements of one slot.
        dtype: `bf16` or `f32`.
        place: where it lies.
        slots: how many lie side by side (biases of routed experts).
    """

    name: str
    length: int
    dtype: str
    place: Place
    slots: int = 1

    @property
    def bytes(self) -> int:
        """Bytes one slot reads."""
        return self.place.bytes


@dataclass(frozen=True, slots=True)
class View:
    """Columns [offset, offset + width) of a register; its rows are as far apart as the register is wide."""

    register: str
    offset: int
    width: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One kernel boundary. `label` names it in listings, e.g. `layer 3: experts up`."""

    label: str

    def weights(self) -> Iterator[tuple[Weight | Vector, bool]]:
        """What it reads of the arena but KV: (weight, routed). A routed one is read once per distinct expert."""
        return iter(())

    def outputs(self) -> Iterator[View]:
        """The views it writes (accumulates into, where it says so)."""
        return iter(())

    def views(self) -> Iterator[View]:
        """Every view it reads or writes."""
        values = (getattr(self, item.name) for item in fields(self))
        return (value for value in values if isinstance(value, View))


@dataclass(frozen=True, slots=True)
class Embed(Operation):
    """out[b] = row b of `table`, dequantised. `table` has B rows: the rows of the tokens being decoded."""

    table: Weight
    out: View

    def weights(self) -> Iterator[tuple[Weight | Vector, bool]]:
        yield self.table, False

    def outputs(self) -> Iterator[View]:
        yield self.out


@dataclass(frozen=True, slots=True)
class Product(Operation):
    """Products of several matrices with the same input; row outputs side by side in `out`.

    n = rms_norm(x) * gain where `gain` is given, else x. Matrix m writes (or, with `accumulate`, adds) W_m n to its
    rows' columns of `out`, in order. `blocks` > 1 makes each matrix block-diagonal: rows and x are cut in `blocks`
    equal parts and row part h reads x part h, so x.width = blocks * columns. bias[i] is added to output
    i mod out.width, for every i < bias.length.

    rms_norm(x)_i = x_i / sqrt(mean(x^2) + 1e-6).
    """

    x: View
    out: View
    matrices: tuple[Weight, ...]
    gain: Vector | None = None
    biases: tuple[Vector, ...] = ()
    accumulate: bool = False
    blocks: int = 1

    def weights(self) -> Iterator[tuple[Weight | Vector, bool]]:
        yield from ((m, False) for m in self.matrices)
        yield from ((v, False) for v in (self.gain, *self.biases) if v)

    def outputs(self) -> Iterator[View]:
        yield self.out


@dataclass(frozen=True, slots=True)
class GatedProduct(Operation):
    """out = silu(W_gate n) * (W_up n), n as in `Product`; without a gate, out = silu(W_up n)."""

    x: View
    out: View
    gate: Weight | None
    up: Weight
    gain: Vector | None = None

    def weights(self) -> Iterator[tuple[Weight | Vector, bool]]:
        yield from ((m, False) for m in (self.gate, self.up, self.gain) if m)

    def outputs(self) -> Iterator[View]:
        yield self.out


@dataclass(frozen=True, slots=True)
class Attend(Operation):
    """Softmax attention of one new token per sequence over `length` cached tokens and itself, scale head_dim^-0.5.

    `gqa`: q [B, heads * head_dim], k [B, kv_heads * head_dim], v [B, kv_heads * value_dim] (the new token's);
    the cache is keys [B, kv_heads, length, head_dim] and values [B, kv_heads, length, value_dim].
    `mla`: q is `q` [B, heads, value_dim] beside `q_rope` [B, heads, head_dim - value_dim]; k is [B, head_dim], v its
    first value_dim columns; the cache is keys [B, length, head_dim] and no values.
    out [B, heads * value_dim]. Head h of q reads kv head h // (heads / kv_heads). Cache elements are `cache_format`
    (`bf16`, or `fp8`: raw e4m3 without scale). The new token's k and v are read from their registers; appending them
    to the cache (one row) is left out.
    """

    q: View
    k: View
    v: View | None
    out: View
    kind: str
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    length: int
    cache_format: str
    keys: Place | None
    values: Place | None
    q_rope: View | None = None

    @property
    def kv_bytes(self) -> int:
        """Bytes of cache it reads, all sequences."""
        return sum(p.bytes for p in (self.keys, self.values) if p)

    def outputs(self) -> Iterator[View]:
        yield self.out


@dataclass(frozen=True, slots=True)
class State(Operation):
    """A recurrent mixer by its bytes: reads and rewrites `elements` float32 of state per sequence.

    s <- 0.5 s + 0.5 x[i mod x.width], out[i] = sum of new s over the elements with index = i mod out.width, divided
    by their number (0 where there are none). State is [B, elements] float32 in `place`.
    """

    x: View
    out: View
    elements: int
    place: Place

    @property
    def kv_bytes(self) -> int:
        """Bytes of state it reads; it writes as many."""
        return self.place.bytes

    def outputs(self) -> Iterator[View]:
        yield self.out


@dataclass(frozen=True, slots=True)
class Route(Operation):
    """Choose k of E experts per token, and the slots of the distinct ones.

    score = prior + GAIN * logits; ids[b] = indices of the k largest scores, ties to the lower id, in falling order of
    score; share[b] = softmax of the chosen *logits*. The distinct experts are numbered j = 0.. in order of first use
    (token by token, choice by choice); expert e, the j-th distinct one, lies in slot `slot_of(j, e)`.
    `prior` [B, E] float32 holds the routing law (uniform, Zipf, a trace) and lies outside the arena.
    """

    logits: View
    prior: NDArray[np.float32]
    experts: int
    top_k: int
    stride: int
    slots: int

    GAIN = 2.0**-6  # the prior's law decides, the logits make the choice depend on the data

    def slot_of(self, j: int, expert: int) -> int:
        """Slot of the j-th distinct expert: its address depends on the router's answer (see docs/architecture.md)."""
        return (j * self.stride + expert % self.stride) % self.slots


@dataclass(frozen=True, slots=True)
class ExpertsUp(Operation):
    """Every chosen expert's gated product, and the shared experts', in one boundary.

    n as in `Product`. For token b and choice i (expert e in slot s):
    out[b, i * width : (i + 1) * width] = act(W_gate,s n + bias) * (W_up,s n + bias), width = up.rows; then the shared
    experts' gated products side by side behind column top_k * width. act as in `GatedProduct`.
    `route` is the label of the `Route` operation whose choice it follows.
    """

    route: str
    x: View
    out: View
    gate: Weight | None
    up: Weight
    top_k: int
    gate_bias: Vector | None = None
    up_bias: Vector | None = None
    shared: tuple[tuple[Weight | None, Weight], ...] = ()
    gain: Vector | None = None

    def weights(self) -> Iterator[tuple[Weight | Vector, bool]]:
        yield from ((m, True) for m in (self.gate, self.up, self.gate_bias, self.up_bias) if m)
        yield from ((m, False) for pair in self.shared for m in pair if m)
        if self.gain:
            yield self.gain, False

    def outputs(self) -> Iterator[View]:
        yield self.out


@dataclass(frozen=True, slots=True)
class ExpertsDown(Operation):
    """out[b] += sum over choices i of share[b, i] * (W_down,s x[b, i] + bias) + sum over shared experts of W x_shared.

    x is laid out as `ExpertsUp.out`. bias[i] is added to output i mod out.width.
    """

    route: str
    x: View
    out: View
    down: Weight
    top_k: int
    bias: Vector | None = None
    shared: tuple[Weight, ...] = ()

    def weights(self) -> Iterator[tuple[Weight | Vector, bool]]:
        yield from ((m, True) for m in (self.down, self.bias) if m)
        yield from ((m, False) for m in self.shared)

    def outputs(self) -> Iterator[View]:
        yield self.out


def route_of(op: Operation) -> str:
    """The label of the `Route` operation whose choice an operation follows; "" where it follows none."""
    return op.route if isinstance(op, ExpertsUp | ExpertsDown) else ""


@dataclass(frozen=True, slots=True)
class Program:
    """One decode step.

    Attributes:
        name: model, format, batch, context: for messages.
        batch: B.
        registers: width of every register.
        operations: in order; each depends on those before it.
        pools: bytes of every arena pool it reaches into.
    """

    name: str
    batch: int
    registers: dict[str, int]
    operations: tuple[Operation, ...]
    pools: dict[str, int] = field(default_factory=dict)

    @property
    def routes(self) -> tuple[Route, ...]:
        """Its `Route` operations, in order."""
        return tuple(op for op in self.operations if isinstance(op, Route))


@dataclass(frozen=True, slots=True)
class Choice:
    """What one `Route` chose in the last run.

    Attributes:
        ids: [B, k] int32.
        share: [B, k] float32.
        slots: [B, k] int32, the slot of each choice.
        distinct: D.
    """

    ids: NDArray[np.int32]
    share: NDArray[np.float32]
    slots: NDArray[np.int32]
    distinct: int
