"""Float64 reference of every operation of a step program, and error bounds of a backend's answer.

`expect` recomputes sampled outputs of one operation from the inputs the backend actually had and from weights read back
from its arena. Each value comes with a bound derived from the backend's `Precision`; nothing is tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moegauge.formats import get_format
from moegauge.kernels import codes, packing
from moegauge.kernels.backend import Arena, Precision
from moegauge.kernels.program import (
    Attend,
    Choice,
    Embed,
    ExpertsDown,
    ExpertsUp,
    GatedProduct,
    Operation,
    Product,
    Route,
    State,
    Vector,
    View,
    Weight,
)

Floats = NDArray[np.float64]
EPSILON = 2.0**-20  # of one value: norm, activation function, final additions in float32, some ten roundings


def read_row(arena: Arena, weight: Weight, row: int, slot: int = 0) -> Floats:
    """One row of a packed matrix as float64 [columns]."""
    fmt = get_format(weight.format)
    size = fmt.weight_bytes(1, weight.columns)
    raw = arena.read(weight.weights.pool, weight.weights.at(slot) + row * size, size, weight)
    scales, tensor = np.zeros(0, np.uint8), 1.0
    if weight.scales:
        wide = weight.scales.bytes // -(-weight.rows // fmt.scale_rows)
        start = weight.scales.at(slot) + row // fmt.scale_rows * wide
        scales = arena.read(weight.scales.pool, start, wide, weight)
    if weight.tensor_scale:
        tensor = float(arena.read(weight.tensor_scale.pool, weight.tensor_scale.at(slot), 4).view(np.float32)[0])
    packed = packing.from_bytes(weight.format, 1, weight.columns, raw, scales, tensor)
    return np.asarray(packing.unpack(packed)[0])


def read_vector(arena: Arena, vector: Vector, slot: int = 0) -> Floats:
    """A small vector as float64 [length]."""
    raw = arena.read(vector.place.pool, vector.place.at(slot), vector.place.bytes)
    return raw.view(np.float32).astype(np.float64) if vector.dtype == "f32" else codes.decode_bf16(raw.view(np.uint16))


def rms_norm(x: Floats, gain: Floats) -> Floats:
    """x / sqrt(mean(x^2) + 1e-6) * gain, over the last axis."""
    return np.asarray(x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * gain)


def silu(x: Floats) -> Floats:
    """x / (1 + e^-x)."""
    return np.asarray(x / (1 + np.exp(-x)))


@dataclass(frozen=True, slots=True)
class Value:
    """An expected output: registers[register][token, column] = value, off by at most bound."""

    register: str
    token: int
    column: int
    value: float
    bound: float


class Reference:
    """Expected outputs of operations.

    Args:
        arena: where the weights are.
        precision: the backend's, by format.
        choice: what a `Route` label chose.
        read: a register before the operation, float32 [B, width].
        rng: draws the samples.
        samples: outputs per operation.
    """

    def __init__(
        self,
        arena: Arena,
        precision: Callable[[str], Precision],
        choice: Callable[[str], Choice],
        read: Callable[[str], NDArray[np.float32]],
        rng: np.random.Generator,
        samples: int,
    ) -> None:
        self._arena, self._precision, self._choice, self._read = arena, precision, choice, read
        self._rng, self._samples = rng, samples
        self._asked: list[tuple[int, int]] | None = None

    def expect(self, operation: Operation, pairs: list[tuple[int, int]] | None = None) -> list[Value]:
        """Sampled outputs of `operation`, from the registers as they are now (`Route` apart); those of `pairs`, (token,
        column of its output), where given."""
        kind = type(operation).__name__.lower()
        self._asked = pairs
        values: list[Value] = getattr(self, f"_{kind}")(operation)
        return values

    def _view(self, view: View) -> Floats:
        return self._read(view.register)[:, view.offset : view.offset + view.width].astype(np.float64)

    def _input(self, view: View, gain: Vector | None) -> Floats:
        x = self._view(view)
        return rms_norm(x, read_vector(self._arena, gain)) if gain else x

    def _pairs(self, batch: int, width: int, parts: Sequence[int] = ()) -> list[tuple[int, int]]:
        """Sampled (token, column) pairs: the asked ones where some were, else both corners and as many more as fit,
        every one of `parts` (widths side by side) in turn."""
        if not batch:
            return []
        if self._asked is not None:
            return self._asked
        ends = np.cumsum(parts or (width,))
        starts = ends - np.asarray(parts or (width,))
        count = max(0, self._samples - 2)
        part = (np.arange(count) + self._rng.integers(len(ends))) % len(ends)
        columns = self._rng.integers(starts[part], ends[part]) if count else part
        tokens = self._rng.integers(0, batch, count)
        return sorted({(0, 0), (batch - 1, width - 1), *zip(tokens.tolist(), columns.tolist(), strict=True)})

    def _dot(self, weight: Weight, row: int, x: Floats, slot: int = 0) -> tuple[float, float]:
        """(W[row] . x, bound)."""
        w = read_row(self._arena, weight, row, slot)
        p, size = self._precision(weight.format), float(np.abs(w * x).sum())
        bound = size * (p.relative + weight.columns * p.per_term + EPSILON)
        bound += p.of_largest * float(np.abs(x).max(initial=0)) * float(np.abs(w).sum())
        return float(w @ x), bound + 1e-30

    def _embed(self, op: Embed) -> list[Value]:
        out = []
        for b, c in self._pairs(len(self._view(op.out)), op.out.width):
            value = float(read_row(self._arena, op.table, b)[c])
            out.append(Value(op.out.register, b, op.out.offset + c, value, abs(value) * EPSILON))
        return out

    def _product(self, op: Product) -> list[Value]:
        x, before = self._input(op.x, op.gain), self._view(op.out) if op.accumulate else None
        biases = [read_vector(self._arena, v) for v in op.biases]
        out = []
        for b, c in self._pairs(len(x), op.out.width, [m.rows for m in op.matrices]):
            row, weight = c, op.matrices[0]
            for weight in op.matrices:
                if row < weight.rows:
                    break
                row -= weight.rows
            part = row // (weight.rows // op.blocks) * weight.columns
            value, bound = self._dot(weight, row, x[b, part : part + weight.columns])
            added = [float(v[c :: op.out.width].sum()) for v in biases]
            added += [float(before[b, c])] if before is not None else []
            bound += EPSILON * sum(map(abs, [value, *added]))
            out.append(Value(op.out.register, b, op.out.offset + c, value + sum(added), bound))
        return out

    def _gate(
        self, gate: Weight | None, up: Weight, row: int, x: Floats, slot: int, biases: tuple[float, float]
    ) -> tuple[float, float]:
        """(silu(gate) * up, bound); without a gate, silu(up)."""
        u, du = self._dot(up, row, x, slot)
        u += biases[1]
        if gate is None:
            value = float(silu(np.array(u)))
            return value, 1.1 * du + EPSILON * abs(value)  # |silu'| < 1.1
        g, dg = self._dot(gate, row, x, slot)
        s = float(silu(np.array(g + biases[0])))
        bound = 1.1 * dg * (abs(u) + du) + abs(s) * du
        return s * u, bound + EPSILON * abs(s * u)

    def _gatedproduct(self, op: GatedProduct) -> list[Value]:
        x, out = self._input(op.x, op.gain), []
        for b, c in self._pairs(len(x), op.out.width):
            value, bound = self._gate(op.gate, op.up, c, x[b], 0, (0.0, 0.0))
            out.append(Value(op.out.register, b, op.out.offset + c, value, bound))
        return out

    def _expertsup(self, op: ExpertsUp) -> list[Value]:
        x, choice, out = self._input(op.x, op.gain), self._choice(op.route), []
        routed = op.top_k * op.up.rows
        parts = [op.up.rows] * op.top_k + [up.rows for _, up in op.shared]
        for b, c in self._pairs(len(x), op.out.width, parts):
            if c < routed:
                i, row = divmod(c, op.up.rows)
                slot = int(choice.slots[b, i])
                biases = (self._bias(op.gate_bias, slot, row), self._bias(op.up_bias, slot, row))
                value, bound = self._gate(op.gate, op.up, row, x[b], slot, biases)
            else:
                row = c - routed
                pairs = iter(op.shared)
                gate, up = next(pairs)
                while row >= up.rows:
                    row -= up.rows
                    gate, up = next(pairs)
                value, bound = self._gate(gate, up, row, x[b], 0, (0.0, 0.0))
            out.append(Value(op.out.register, b, op.out.offset + c, value, bound))
        return out

    def _bias(self, bias: Vector | None, slot: int, row: int, width: int = 0) -> float:
        if bias is None:
            return 0.0
        v = read_vector(self._arena, bias, slot)
        return float(v[row::width].sum() if width else v[row])

    def _expertsdown(self, op: ExpertsDown) -> list[Value]:
        x, choice, before, out = self._view(op.x), self._choice(op.route), self._view(op.out), []
        for b, c in self._pairs(len(x), op.out.width):
            terms = [(float(before[b, c]), 0.0)]
            for i in range(op.top_k):
                slot, share = int(choice.slots[b, i]), float(choice.share[b, i])
                part = x[b, i * op.down.columns : (i + 1) * op.down.columns]
                value, bound = self._dot(op.down, c, part, slot)
                value += self._bias(op.bias, slot, c, op.out.width)
                terms.append((share * value, share * bound))
            at = op.top_k * op.down.columns
            for weight in op.shared:
                terms.append(self._dot(weight, c, x[b, at : at + weight.columns]))
                at += weight.columns
            bound = sum(e for _, e in terms) + EPSILON * sum(abs(v) for v, _ in terms)
            out.append(Value(op.out.register, b, op.out.offset + c, sum(v for v, _ in terms), bound))
        return out

    def _attend(self, op: Attend) -> list[Value]:
        q, k = self._view(op.q), self._view(op.k)
        v = self._view(op.v) if op.v else None
        rope = self._view(op.q_rope) if op.q_rope else None
        out = []
        for b, c in self._pairs(len(q), op.out.width):
            head, column = divmod(c, op.value_dim)
            kv = head // (op.heads // op.kv_heads)
            wide = op.value_dim if op.kind == "mla" else op.head_dim
            query = q[b, head * wide : (head + 1) * wide]
            if rope is not None:
                tail = op.head_dim - wide
                query = np.concatenate([query, rope[b, head * tail : (head + 1) * tail]])
            keys = self._cached(op, op.keys, b, kv, op.head_dim)
            own_key = k[b, kv * op.head_dim : (kv + 1) * op.head_dim]
            own_value = own_key[: op.value_dim] if v is None else v[b, kv * op.value_dim : (kv + 1) * op.value_dim]
            values = keys if v is None else self._cached(op, op.values, b, kv, op.value_dim)
            keys = np.vstack([keys, own_key])
            column_values = np.append(values[:, column], own_value[column])
            scores = keys @ query / np.sqrt(op.head_dim)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            p = self._precision(op.cache_format)
            size = np.abs(keys) @ np.abs(query) / np.sqrt(op.head_dim)
            spread = float(np.max(size * (p.relative + op.head_dim * p.per_term + EPSILON)))
            # A score off by d scales its weight by at most e^d, and the sum they are divided by as much.
            total = float(weights @ np.abs(column_values))
            bound = total * (np.expm1(2 * spread) + 2 * p.relative + len(scores) * 2.0**-24 + EPSILON)
            out.append(
                Value(op.out.register, b, op.out.offset + c, float(weights @ column_values), float(bound) + 1e-30)
            )
        return out

    def _cached(self, op: Attend, place: Any, b: int, kv: int, width: int) -> Floats:
        """Cached rows [length, width] of one sequence and KV head."""
        if place is None:
            return np.zeros((0, width))
        size = get_format(op.cache_format).element_bits // 8
        one = op.length * width * size
        raw = self._arena.read(place.pool, place.offset + (b * op.kv_heads + kv) * one, one)
        values = codes.E4M3[raw] if size == 1 else codes.decode_bf16(raw.view(np.uint16))
        return np.asarray(values.reshape(op.length, width))

    def _state(self, op: State) -> list[Value]:
        x, out = self._view(op.x), []
        for b, c in self._pairs(len(x), op.out.width):
            raw = self._arena.read(op.place.pool, op.place.offset + b * op.elements * 4, op.elements * 4)
            index = np.arange(c, op.elements, op.out.width)
            new = 0.5 * raw.view(np.float32)[index].astype(np.float64) + 0.5 * x[b, index % op.x.width]
            value = float(new.mean()) if len(index) else 0.0
            bound = EPSILON * float(np.abs(new).mean()) if len(index) else 0.0
            out.append(Value(op.out.register, b, op.out.offset + c, value, bound + 1e-30))
        return out

    def wrong_choice(self, op: Route) -> str:
        """What is wrong with the backend's choice for `op`, in words; empty when nothing is."""
        choice, logits = self._choice(op.label), self._view(op.logits)
        score = op.prior.astype(np.float64) + op.GAIN * logits
        numbers: dict[int, int] = {}
        for b in range(len(logits)):
            ids = choice.ids[b].tolist()
            if len(set(ids)) < op.top_k or not all(0 <= e < op.experts for e in ids):
                return f"token {b} chose {ids}"
            slack = 1e-5 * (1 + float(np.abs(score[b]).max()))  # float32 scores may order near-ties otherwise
            ideal = np.sort(score[b])[::-1][: op.top_k]
            if np.abs(score[b, ids] - ideal).max() > slack:
                return f"token {b} chose {ids}, not the {op.top_k} largest scores"
            share = np.exp(logits[b, ids] - logits[b, ids].max())
            if np.abs(choice.share[b] - share / share.sum()).max() > 1e-5:
                return f"token {b} has shares {choice.share[b].tolist()}"
            for i, e in enumerate(ids):
                j = numbers.setdefault(e, len(numbers))
                if choice.slots[b, i] != op.slot_of(j, e):
                    return f"token {b}, expert {e} lies in slot {choice.slots[b, i]}, not {op.slot_of(j, e)}"
        if choice.distinct != len(numbers):
            return f"{choice.distinct} distinct experts counted, not {len(numbers)}"
        return ""
