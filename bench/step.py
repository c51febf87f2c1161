"""One decode step of a model, emulated: its true depth, order, dependencies and bytes, on random weights from an arena.

Emulated: every matrix of every layer, read once per step (once per distinct expert), at its shape and format; the
norms before attention and feed-forward; attention over a KV cache of the asked length (GQA, sliding windows, absorbed
MLA); routing by the router's logits and a law, expert addresses depending on it; shared experts, residuals, LM head;
linear mixers by their projections and state. Norm gains, biases and other small vectors are read and counted.

Left out: rotary embedding, per-head and latent norms (their bytes are read as biases), activation clamps, appending
the new token to the cache, sampling, and anything between steps. The answers mean nothing: this is not inference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moegauge.bench.arena import Layout, capacities
from moegauge.bench.compose import Composer
from moegauge.bench.routing import Routing
from moegauge.errors import DeviceError, NumericsError, UnknownNameError, UsageError
from moegauge.kernels.backend import Arena, Backend, Runnable
from moegauge.kernels.program import Attention, ExpertsDown, Product, Program, Route, State, Vector
from moegauge.kernels.reference import Reference
from moegauge.shape import Matrix, ModelShape
from moegauge.units import human_bytes

GATE_ROWS = 16  # outputs of every operation the numerical gate recomputes
KV_FORMATS = ("bf16", "fp8")
MINIMUM_ARENA = 1 << 30  # bytes
CACHES = 32  # a default arena in last-level caches: six times what REUSE asks, filled in a second or two
REUSE = 5.0  # last-level caches between two readings of one place (flashinfer's rule for cold caches)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one step, counted from what was passed to the kernels.

    Attributes:
        weights: packed elements, norms' gains and biases.
        scales: every scale.
        kv: KV cache (and recurrent state) read.
        distinct_experts: mean distinct routed experts per MoE layer in the last run; 0 without MoE layers.
    """

    weights: int
    scales: int
    kv: int
    distinct_experts: float

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.scales + self.kv


class DecodeStep:
    """A model's decode step bound to a backend. Made by `build_step`.

    Attributes:
        backend: where it runs.
        kernel_names: every kernel boundary of one step, in order.
        max_relative_error: of the last `check`; NaN before.
    """

    def __init__(
        self, backend: Backend, arena: Arena, laps: list[Runnable], seed: int, gate_rows: int = GATE_ROWS
    ) -> None:
        self._gate_rows = gate_rows
        self.backend, self._arena, self._laps, self._seed = backend, arena, laps, seed
        self._next = 0
        self._last = laps[0]
        self.kernel_names = tuple(op.label for op in laps[0].program.operations)
        self.max_relative_error = math.nan

    @property
    def kernels(self) -> int:
        """Kernel boundaries of one step."""
        return len(self.kernel_names)

    @property
    def programs(self) -> tuple[Program, ...]:
        """The programs successive runs go through, round and round."""
        return tuple(lap.program for lap in self._laps)

    def run(self) -> None:
        """Enqueue one step; the next run reads other places of the arena."""
        self._last = self._laps[self._next]
        self._next = (self._next + 1) % len(self._laps)
        self._last.run()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of kernel in a step, e.g. `experts up`, in order of first use."""
        return tuple(dict.fromkeys(_kind(name) for name in self.kernel_names))

    def part(self, kind: str) -> DecodeStep:
        """The kernels of one kind alone, every layer's in order, on this step's arena; close only the whole step.

        Experts keep the routing they follow, one more boundary each. Registers start with random numbers.

        Raises:
            UnknownNameError: no kernel of that kind.
        """
        if kind not in self.kinds:
            raise UnknownNameError("kernel", kind, self.kinds)
        rng = np.random.default_rng(self._seed)
        laps = []
        for whole in self.programs:
            wanted = [op for op in whole.operations if _kind(op.label) == kind]
            routes = {getattr(op, "route", "") for op in wanted}
            kept = tuple(op for op in whole.operations if op.label in routes or op in wanted)
            lap = self.backend.compile(replace(whole, name=f"{whole.name}, {kind}", operations=kept), self._arena)
            for name, width in whole.registers.items():
                lap.write(name, rng.standard_normal((max(1, whole.batch), width)).astype(np.float32))
            laps.append(lap)
        return DecodeStep(self.backend, self._arena, laps, self._seed, self._gate_rows)

    def launches(self) -> list[Any]:
        """What a device launches for one step, see `moegauge.bench.profile`; empty where the backend does not tell."""
        tell = getattr(self._last, "profile", None)
        return list(tell()) if tell else []

    def traffic(self) -> Traffic:
        """Bytes of the last run (of the first program, before any)."""
        self.backend.synchronize()
        return traffic(self._last)

    def check(self, sample_rows: int | None = None) -> float:
        """The numerical gate: one program, operation by operation, against float64.

        Outputs are poisoned with NaN first. `sample_rows` outputs (None: as the step was built) of every operation of
        every layer are recomputed from the inputs it actually had, with bounds derived from the backend's arithmetic.

        Returns:
            The largest error of any operation, relative to the largest sampled output of that operation.

        Raises:
            NumericsError: an output past its bound, or a wrong routing choice; names operation, token and column.
        """
        lap = self._laps[self._next]
        rng = np.random.default_rng(self._seed)
        rows = sample_rows or self._gate_rows
        reference = Reference(self._arena, self.backend.precision, lap.choice, lap.read, rng, rows)
        worst = 0.0
        for i, op in enumerate(lap.program.operations):
            if isinstance(op, Route):
                lap.run_operation(i)
                if wrong := reference.wrong_choice(op):
                    raise NumericsError(f"{lap.program.name}, {op.label}: {wrong}.", advice=_REPORT)
                continue
            expected = reference.expect(op)
            if not isinstance(op, ExpertsDown) and not (isinstance(op, Product) and op.accumulate):
                for view in op.outputs():
                    register = lap.read(view.register)
                    register[:, view.offset : view.offset + view.width] = np.nan
                    lap.write(view.register, register)
            lap.run_operation(i)
            largest = max((abs(v.value) for v in expected), default=0.0) or 1.0
            got = {v.register: lap.read(v.register) for v in expected[:1]}
            for v in expected:
                error = abs(float(got[v.register][v.token, v.column]) - v.value)
                if not error <= v.bound:  # NaN fails too
                    raise NumericsError(
                        f"{lap.program.name}, {op.label}: output {v.column} of token {v.token} is "
                        f"{float(got[v.register][v.token, v.column])!r}, expected {v.value!r} within {v.bound:.2g}.",
                        advice=_REPORT,
                    )
                worst = max(worst, error / largest)
        self.max_relative_error = worst
        return worst

    def close(self) -> None:
        """Give the arena back."""
        self._laps.clear()
        self._arena.close()


def step_kinds(shape: ModelShape, *, batch: int = 1, context: int = 0, format: str = "native") -> tuple[str, ...]:
    """`DecodeStep.kinds` without building the step: milliseconds, no memory."""
    rng, law = np.random.default_rng(0), Routing("uniform")
    cast = shape.with_format(format)
    composer = Composer(cast, Layout(), batch=batch, context=context, kv_format="bf16", routing=law, rng=rng)
    return tuple(dict.fromkeys(_kind(op.label) for op in composer.build().operations))


def _kind(label: str) -> str:
    return label.partition(": ")[2]


_REPORT = "A wrong answer has no time; please report it with the machine's description."


def traffic(runnable: Runnable) -> Traffic:
    """Bytes of a program's last run, from the places its operations were given."""
    weights = scales = kv = 0
    distinct = {route.label: runnable.choice(route.label).distinct for route in runnable.program.routes}
    seen: set[int] = set()
    for op in runnable.program.operations:
        times = distinct.get(getattr(op, "route", ""), 0)
        for weight, routed in op.weights():
            if isinstance(weight, Vector):
                if id(weight) in seen:  # a gain two operations share stays in the cache between them
                    continue
                seen.add(id(weight))
                weights += weight.bytes * (times if routed else 1)
            else:
                weights += weight.weights.bytes * (times if routed else 1)
                scales += weight.scale_bytes * (times if routed else 1)
        if isinstance(op, Attention | State):
            kv += op.kv_bytes
    mean = sum(distinct.values()) / len(distinct) if distinct else 0.0
    return Traffic(weights, scales, kv, mean)


def build_step(
    shape: ModelShape,
    backend: Backend,
    *,
    batch: int = 1,
    context: int = 0,
    format: str = "native",
    kv_format: str = "bf16",
    routing: str = "uniform",
    arena_bytes: int | None = None,
    seed: int = 0,
    reuse: float = REUSE,
    gate_rows: int = GATE_ROWS,
) -> DecodeStep:
    """Compile the decode step of `shape` for a backend.

    Args:
        shape: the model.
        backend: see `moegauge.kernels.backend.get_backend`.
        batch: tokens decoded together, each of its own sequence.
        context: tokens in every sequence's cache.
        format: `native`, or a row of FORMATS for attention, MLP and expert matrices.
        kv_format: `bf16` or `fp8`.
        routing: see `moegauge.bench.routing.Routing`.
        arena_bytes: memory for weights; None takes 32 last-level caches and at least 1 GiB (what is free where that is
            less), or what the model's largest matrices need where that is more.
        seed: of weights and routing.
        reuse: bytes between two readings of one place, in last-level caches. Tests of numerics lower it.
        gate_rows: outputs of every operation that `DecodeStep.check` recomputes.

    Raises:
        UsageError: a value out of range, an unknown name, or a format the backend has no kernel for.
        ShapeError: matrices that do not fit each other.
        DeviceError: the arena does not fit in memory, or is too small to keep `reuse`.
    """
    if batch < 0 or context < 0:
        raise UsageError(f"batch {batch} and context {context} must not be negative.")
    if kv_format not in KV_FORMATS:
        raise UnknownNameError("KV format", kv_format, KV_FORMATS)
    shape = shape.with_format(format)
    for name in sorted({m.format for m in _matrices(shape)} - backend.matrix_formats):
        raise UsageError(
            f"backend '{backend.name}' has no kernel for format '{name}'.", advice="Choose another --format."
        )
    law = Routing(routing)

    def compose(layout: Layout, laps: int) -> list[Program]:
        rng = np.random.default_rng([seed, batch])
        return [
            Composer(shape, layout, batch=batch, context=context, kv_format=kv_format, routing=law, rng=rng).build()
            for _ in range(laps)
        ]

    once = Layout()
    compose(once, 1)
    one_lap = max(1, sum(once.demand.values()))
    distance = int(reuse * backend.last_level_cache)
    # A lap's demand counts SLOT_STRIDE slots for each one read, so half of it is surely read.
    laps = max(1, math.ceil(2 * distance / one_lap))
    # One piece of every pool must fit at the least: DeepSeek-V3's LM head alone is 1.85 GB in a pool of its own.
    default = min(max(MINIMUM_ARENA, CACHES * backend.last_level_cache), backend.memory)
    budget = max(default, sum(once.largest.values())) if arena_bytes is None else arena_bytes
    if budget < 2 * distance < laps * one_lap:
        raise DeviceError(
            f"an arena of {human_bytes(budget)} would be read again while still in the last-level cache of "
            f"{human_bytes(backend.last_level_cache)}.",
            advice=f"Give at least {human_bytes(2 * distance)} with --arena-bytes.",
        )
    measured = Layout()
    compose(measured, laps)
    layout = Layout(capacities(measured, budget))
    programs = compose(layout, laps)
    assert layout.capacity is not None
    arena = backend.arena(layout.capacity, seed)
    return DecodeStep(backend, arena, [backend.compile(p, arena) for p in programs], seed, gate_rows)


def _matrices(shape: ModelShape) -> Iterator[Matrix]:
    yield shape.embedding
    yield shape.head_matrix
    for layer in shape.layers:
        yield from layer.dense_matrices
        for pool in layer.experts:
            yield from pool.matrices
