"""Numpy backends: `reference` in float64, and the float32 fallback of `cpu` without the compiled core.

Every matrix is unpacked whole for every product, so the time says nothing about memory: the description names it, and
the fallback warns once.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moegauge.errors import DeviceError
from moegauge.formats import FORMATS, get_format
from moegauge.kernels import codes, content, packing
from moegauge.kernels.backend import Arena, Backend, Precision, Runnable, Stream
from moegauge.kernels.host_memory import available_memory, last_level_cache, processor
from moegauge.kernels.program import (
    Attend,
    Choice,
    Embed,
    ExpertsDown,
    ExpertsUp,
    GatedProduct,
    Place,
    Product,
    Program,
    Route,
    State,
    Vector,
    View,
    Weight,
)
from moegauge.kernels.reference import read_vector, rms_norm, silu
from moegauge.units import human_bytes

Array = NDArray[Any]


class NumpyArena(Arena):
    """Pools of canonical bytes."""

    def __init__(self, pools: Mapping[str, int], seed: int) -> None:
        self.pools = dict(pools)
        self._bytes = {name: np.empty(size, np.uint8) for name, size in pools.items()}
        for name, memory in self._bytes.items():
            content.fill(memory, name, seed)

    def read(self, pool: str, offset: int, size: int, within: Weight | None = None) -> NDArray[np.uint8]:
        """A copy of some bytes."""
        return self._bytes[pool][offset : offset + size].copy()

    def write(self, pool: str, offset: int, data: NDArray[np.uint8]) -> None:
        """Overwrite some bytes: recurrent state."""
        self._bytes[pool][offset : offset + data.size] = data

    def close(self) -> None:
        """Give the memory back."""
        self._bytes.clear()


class NumpyRunnable(Runnable):
    """A program, interpreted."""

    def __init__(self, program: Program, arena: NumpyArena, dtype: type[np.floating[Any]]) -> None:
        self.program, self._arena, self._dtype = program, arena, dtype
        self._registers = {n: np.zeros((program.batch, w), np.float32) for n, w in program.registers.items()}
        self._choices: dict[str, Choice] = {}

    def run_range(self, first: int, last: int) -> None:
        """Some operations."""
        for i in range(first, last):
            self.run_operation(i)

    def run_operation(self, index: int) -> None:
        """One operation."""
        op = self.program.operations[index]
        if self.program.batch or isinstance(op, Route):
            getattr(self, f"_{type(op).__name__.lower()}")(op)

    def read(self, register: str) -> NDArray[np.float32]:
        """A copy of a register."""
        return self._registers[register].copy()

    def write(self, register: str, values: NDArray[np.float32]) -> None:
        """Overwrite a register."""
        self._registers[register][:] = values

    def choice(self, route: str) -> Choice:
        """The last choice of a route."""
        nothing = np.zeros((0, 0))
        return self._choices.get(
            route, Choice(nothing.astype(np.int32), nothing.astype(np.float32), nothing.astype(np.int32), 0)
        )

    def forget(self) -> None:
        """There are no choices until the next run."""
        self._choices.clear()

    def _view(self, view: View) -> Array:
        return self._registers[view.register][:, view.offset : view.offset + view.width]

    def _input(self, view: View, gain: Vector | None) -> Array:
        x = self._view(view).astype(self._dtype)
        return rms_norm(x, read_vector(self._arena, gain)).astype(self._dtype) if gain else x

    def _matrix(self, weight: Weight, slot: int = 0) -> Array:
        def part(place: Place | None) -> NDArray[np.uint8]:
            return self._arena.read(place.pool, place.at(slot), place.bytes) if place else np.zeros(0, np.uint8)

        tensor = float(part(weight.tensor_scale).view(np.float32)[0]) if weight.tensor_scale else 1.0
        packed = packing.from_bytes(
            weight.format, weight.rows, weight.columns, part(weight.weights), part(weight.scales), tensor
        )
        return packing.unpack(packed).astype(self._dtype)

    def _embed(self, op: Embed) -> None:
        self._view(op.out)[:] = self._matrix(op.table)

    def _product(self, op: Product) -> None:
        x, parts = self._input(op.x, op.gain), []
        for weight in op.matrices:
            w = self._matrix(weight).reshape(op.blocks, -1, weight.columns)
            inputs = x.reshape(len(x), op.blocks, -1)[:, :, : weight.columns]
            parts.append(np.einsum("hrc,bhc->bhr", w, inputs, optimize=True).reshape(len(x), -1))
        y = np.concatenate(parts, axis=1)
        for bias in op.biases:
            _add_around(y, read_vector(self._arena, bias))
        self._view(op.out)[:] = y + self._view(op.out) if op.accumulate else y

    def _act(self, gate: Array | None, up: Array) -> Array:
        return silu(up) if gate is None else silu(gate) * up

    def _gatedproduct(self, op: GatedProduct) -> None:
        x = self._input(op.x, op.gain)
        gate = x @ self._matrix(op.gate).T if op.gate else None
        self._view(op.out)[:] = self._act(gate, x @ self._matrix(op.up).T)

    def _bias(self, bias: Vector | None, slot: int) -> Array:
        return read_vector(self._arena, bias, slot) if bias else np.zeros(1)

    def _expertsup(self, op: ExpertsUp) -> None:
        x, out, choice = self._input(op.x, op.gain), self._view(op.out), self._choices[op.route]
        width = op.up.rows
        for slot in np.unique(choice.slots).tolist():
            gate_w, up_w = self._matrix(op.gate, slot) if op.gate else None, self._matrix(op.up, slot)
            for b, i in np.argwhere(choice.slots == slot).tolist():
                gate = None if gate_w is None else gate_w @ x[b] + self._bias(op.gate_bias, slot)
                out[b, i * width : (i + 1) * width] = self._act(gate, up_w @ x[b] + self._bias(op.up_bias, slot))
        at = op.top_k * width
        for gate_weight, up in op.shared:
            gate = x @ self._matrix(gate_weight).T if gate_weight else None
            out[:, at : at + up.rows] = self._act(gate, x @ self._matrix(up).T)
            at += up.rows

    def _expertsdown(self, op: ExpertsDown) -> None:
        x, choice = self._view(op.x).astype(self._dtype), self._choices[op.route]
        y = self._view(op.out).astype(self._dtype)
        for slot in np.unique(choice.slots).tolist():
            w, bias = self._matrix(op.down, slot), np.zeros((1, op.out.width))
            _add_around(bias, self._bias(op.bias, slot) if op.bias else np.zeros(0))
            for b, i in np.argwhere(choice.slots == slot).tolist():
                part = x[b, i * op.down.columns : (i + 1) * op.down.columns]
                y[b] += choice.share[b, i] * (w @ part + bias[0])
        at = op.top_k * op.down.columns
        for weight in op.shared:
            y += x[:, at : at + weight.columns] @ self._matrix(weight).T
            at += weight.columns
        self._view(op.out)[:] = y

    def _route(self, op: Route) -> None:
        logits = self._view(op.logits).astype(np.float64)
        score = op.prior[: len(logits)] + op.GAIN * logits
        ids = np.argsort(-score, axis=1, kind="stable")[:, : op.top_k].astype(np.int32)
        chosen = np.take_along_axis(logits, ids, axis=1)
        share = np.exp(chosen - chosen.max(axis=1, keepdims=True, initial=-np.inf))
        share = (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
        numbers: dict[int, int] = {}
        slots = np.zeros_like(ids)
        for place, e in np.ndenumerate(ids):
            slots[place] = op.slot_of(numbers.setdefault(int(e), len(numbers)), int(e))
        self._choices[op.label] = Choice(ids, share, slots, len(numbers))

    def _cache(self, op: Attend, place: Place | None, width: int) -> Array:
        """[B, kv_heads, length, width]"""
        if place is None:
            return np.zeros((self.program.batch, op.kv_heads, 0, width))
        raw = self._arena.read(place.pool, place.offset, place.bytes)
        one_byte = get_format(op.cache_format).element_bits == 8
        values = codes.E4M3[raw] if one_byte else codes.decode_bf16(raw.view(np.uint16))
        return values.reshape(self.program.batch, op.kv_heads, op.length, width)

    def _attend(self, op: Attend) -> None:
        batch, group = self.program.batch, op.heads // op.kv_heads
        parts = [self._view(v).reshape(batch, op.heads, -1) for v in (op.q, op.q_rope) if v]
        q = np.concatenate(parts, axis=-1).reshape(batch, op.kv_heads, group, op.head_dim).astype(self._dtype)
        own_key = self._view(op.k).reshape(batch, op.kv_heads, 1, op.head_dim)
        keys = np.concatenate([self._cache(op, op.keys, op.head_dim), own_key], axis=2).astype(self._dtype)
        if op.v:
            own_value = self._view(op.v).reshape(batch, op.kv_heads, 1, op.value_dim)
            values = np.concatenate([self._cache(op, op.values, op.value_dim), own_value], axis=2)
        else:
            values = keys[..., : op.value_dim]
        scores = q @ keys.swapaxes(-1, -2) / np.sqrt(op.head_dim)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        self._view(op.out)[:] = (weights @ values).reshape(batch, -1)

    def _state(self, op: State) -> None:
        x, out = self._view(op.x), self._view(op.out)
        for b in range(len(x)):
            start, size = op.place.offset + b * op.elements * 4, op.elements * 4
            state = self._arena.read(op.place.pool, start, size).view(np.float32)
            index = np.arange(op.elements)
            state = (0.5 * state + 0.5 * x[b, index % op.x.width]).astype(np.float32)
            self._arena.write(op.place.pool, start, state.view(np.uint8))
            total = np.bincount(index % op.out.width, weights=state, minlength=op.out.width)
            out[b] = total / np.maximum(1, np.bincount(index % op.out.width, minlength=op.out.width))


def _add_around(y: Array, bias: Array) -> None:
    """y[:, i mod width] += bias[i] for every i."""
    for start in range(0, len(bias), y.shape[1]):
        part = bias[start : start + y.shape[1]]
        y[:, : len(part)] += part


class NumpyStream(Stream):
    """A sum over a buffer."""

    pattern = "numpy sum"
    shape: Mapping[str, int] = {}

    def __init__(self, buffer: NDArray[np.uint64]) -> None:
        self.bytes, self._buffer = buffer.nbytes, buffer

    def run(self) -> None:
        """One pass."""
        np.bitwise_xor.reduce(self._buffer)


class NumpyBackend(Backend):
    """Whole-matrix numpy.

    Args:
        name: `reference` (float64) or `cpu` (float32, the fallback; warns once).
    """

    matrix_formats = frozenset(FORMATS)
    threads = 1

    def __init__(self, name: str) -> None:
        self.name = name
        self._dtype: type[np.floating[Any]] = np.float64 if name == "reference" else np.float32
        self.last_level_cache = last_level_cache()
        self.description = f"{processor()}, numpy {np.dtype(self._dtype).name}" + (
            "" if name == "reference" else ", no compiled core"
        )
        if name == "cpu":
            warnings.warn(
                "the compiled CPU core is absent: numpy is used, and its times say nothing about memory. "
                "Reinstall with a C++ compiler at hand.",
                RuntimeWarning,
                stacklevel=3,
            )

    @property
    def memory(self) -> int:
        """Bytes an arena may take."""
        return available_memory() * 9 // 10

    def precision(self, format_name: str) -> Precision:
        """float64, or float32 sums of unknown order."""
        return Precision(per_term=2.0**-52 if self._dtype is np.float64 else 2.0**-24)

    def arena(self, pools: Mapping[str, int], seed: int = 0) -> NumpyArena:
        """Allocate and fill pools.

        Raises:
            DeviceError: they do not fit.
        """
        if sum(pools.values()) > self.memory:
            raise DeviceError(
                f"an arena of {human_bytes(sum(pools.values()))} does not fit in the {human_bytes(self.memory)} free.",
                advice="Lower it with --arena-bytes.",
            )
        return NumpyArena(pools, seed)

    def compile(self, program: Program, arena: Arena) -> Runnable:
        """Bind a program to an arena of this backend."""
        assert isinstance(arena, NumpyArena)
        return NumpyRunnable(program, arena, self._dtype)

    def streams(self, size: int) -> list[Stream]:
        """One pattern."""
        return [NumpyStream(np.full(max(1, size // 8), 0x5555555555555555, np.uint64))]

    def synchronize(self) -> None:
        """Nothing is ever pending."""

    def time(self, function: Callable[[], None]) -> float:
        """Wall-clock seconds."""
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
