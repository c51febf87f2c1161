"""Build the emulated decode step of a model: its true depth, order and bytes, on random weights.

Emulated: every matrix of every layer, read once per step (once per distinct expert), at its shape and format; the
norms before attention and feed-forward; attention over a KV cache of the asked length (GQA, sliding windows, absorbed
MLA); routing by the router's logits and a law, expert addresses depending on it; shared experts, residuals, LM head;
linear mixers by their projections and state. Norm gains, biases and other small vectors are read and counted.

Left out: rotary embedding, per-head and latent norms (their bytes are read as biases), activation clamps, appending
the new token to the cache, sampling, and anything between steps. The answers mean nothing: this is not inference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moegauge.bench.step.compose import Composer
from moegauge.bench.step.gate import adds, disagreement, named, snapshot
from moegauge.bench.step.reuse import readings
from moegauge.bench.step.rings import Layout, plan, relaid
from moegauge.bench.step.routing import Routing
from moegauge.errors import ColdError, NumericsError, UnknownNameError, UsageError
from moegauge.kernels.backend import Arena, Backend, LaunchProfile, Runnable, Segment, Stream
from moegauge.kernels.program import Attend, Program, Route, State, Vector, route_of
from moegauge.kernels.reference import Reference, Value
from moegauge.shape import Matrix, ModelShape

WHOLE = "whole step"  # the kind of a verdict on a program run as it is timed
GATE_ROWS = 16  # outputs of every operation the numerical gate recomputes
KV_FORMATS = ("bf16", "fp8")
MINIMUM_ARENA = 1 << 30  # bytes
CACHES = 32  # a default arena in last-level caches: six times what REUSE asks, filled in a second or two
LAPS_CHECKED = 3  # programs the gate runs; they differ in addresses alone
UNWRITTEN = 16  # outputs an operation seems not to have written that are looked into
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
        self,
        backend: Backend,
        arena: Arena,
        laps: list[Runnable],
        seed: int,
        *,
        distance: int = 0,
        owns: bool = True,
        gate_rows: int = GATE_ROWS,
    ) -> None:
        self._gate_rows = gate_rows
        self.backend, self._arena, self._laps, self._seed = backend, arena, laps, seed
        self._distance, self._owns = distance, owns
        self._next = self._runs = 0
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
        self._runs += 1
        self._last.run()

    def run_cut(self, size: int, stream: Stream | None) -> list[Segment]:
        """As `run`, in segments with slices of `stream` between them; see `moegauge.kernels.backend.Segments`."""
        self._last = self._laps[self._next]
        self._next = (self._next + 1) % len(self._laps)
        self._runs += 1
        return self._last.run_cut(size, stream)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of kernel in a step, e.g. `experts up`, in order of first use."""
        return tuple(dict.fromkeys(_kind(name) for name in self.kernel_names))

    def part(self, *kinds: str) -> DecodeStep:
        """The kernels of some kinds alone, every layer's in order, laid out anew so that successive runs keep the same
        distance between two readings of one place: on this step's arena where that suffices, else on one of its own.
        Close it before this step.

        Experts keep the routing they follow, one more boundary each. Registers start with random numbers.

        Raises:
            UnknownNameError: no kernel of that kind.
            ColdError: it reads so little that it would come from the cache.
            DeviceError: no room for its arena.
        """
        for kind in kinds:
            if kind not in self.kinds:
                raise UnknownNameError("kernel", kind, self.kinds)
        whole = self.programs[0]
        wanted = {op.label for op in whole.operations if _kind(op.label) in kinds}
        wanted |= {route_of(op) for op in whole.operations if op.label in wanted}
        kept = tuple(op for op in whole.operations if op.label in wanted)
        touched = set().union(*map(named, kept))
        registers = {register: width for register, width in whole.registers.items() if register in touched}
        name = f"{whole.name}, {' + '.join(kinds)}"
        if not any(True for op in kept for _ in readings(op)):
            raise ColdError(f"{name}: reads nothing but registers.", advice="Time the whole step.")

        def compose(layout: Layout, laps: int) -> list[Program]:
            found = []
            for _ in range(laps):
                memo: dict[int, object] = {}
                operations = tuple(relaid(op, layout, memo) for op in kept)
                pools = dict(layout.capacity or layout.demand)
                found.append(replace(whole, name=name, registers=registers, operations=operations, pools=pools))
            return found

        room = max(self.backend.memory, sum(self._arena.pools.values()))
        programs, sizes = plan(compose, distance=self._distance, wanted=2 * self._distance, room=room, fixed=False)
        owns = any(size > self._arena.pools.get(pool, 0) for pool, size in sizes.items())
        arena = self.backend.arena(sizes, self._seed) if owns else self._arena
        rng = np.random.default_rng(self._seed)
        rows = {r: rng.standard_normal((whole.batch, width), np.float32) for r, width in registers.items()}
        laps = [self.backend.compile(program, arena) for program in programs]
        for lap in laps:
            for register, values in rows.items():
                lap.write(register, values)
        return DecodeStep(
            self.backend, arena, laps, self._seed, distance=self._distance, owns=owns, gate_rows=self._gate_rows
        )

    def launches(self) -> list[LaunchProfile]:
        """Distinct launches of one step; empty where no compiler tells."""
        return self._last.launches()

    def traffic(self, runs: int = 1) -> Traffic:
        """Mean bytes of the last `runs` runs (of the first program, before any)."""
        self.backend.synchronize()
        if not self._runs:
            return traffic(self._laps[0])
        # Laps are run in turn and each keeps its last choice of experts, so the last runs are the last laps.
        seen = [traffic(self._laps[(self._next - 1 - i) % len(self._laps)]) for i in range(min(runs, len(self._laps)))]
        times = [len(range(i, min(runs, self._runs), len(self._laps))) for i in range(len(seen))]
        weights, scales, kv, distinct = (
            sum(n * getattr(t, name) for n, t in zip(times, seen, strict=True)) / sum(times)
            for name in ("weights", "scales", "kv", "distinct_experts")
        )
        return Traffic(round(weights), round(scales), round(kv), distinct)

    def check(self, sample_rows: int | None = None) -> float:
        """The numerical gate: operation by operation, against float64, for up to three of the programs.

        Outputs are poisoned with NaN first, and none may be NaN after; where an operation adds to what is there, the
        outputs that stay as they were are recomputed. `sample_rows` outputs (None: as the step was built) of every
        operation of every layer (two, in programs but the next to run) are recomputed from the inputs it actually had,
        with bounds derived from the backend's arithmetic. Then the next program to run is run as it is timed, and must
        give what its operations gave one by one.

        Returns:
            The largest error of any operation, relative to the largest sampled output of that operation.

        Raises:
            NumericsError: an output past its bound, or a wrong routing choice; names operation, token and column.
        """
        rows = sample_rows or self._gate_rows
        count = len(self._laps)
        checked = [
            self._laps[(self._next + i * count // LAPS_CHECKED) % count] for i in range(min(count, LAPS_CHECKED))
        ]
        for lap in self._laps:  # what a backend does once per program is done before one is run as it is timed
            lap.warm()
        self.backend.synchronize()
        before = snapshot(checked[0])
        worst = self._check(checked[0], rows)
        if wrong := disagreement(checked[0], before, self.backend.synchronize):
            raise NumericsError(f"{checked[0].program.name}, run as a whole: {wrong}.", advice=_REPORT)
        worst = max([worst, *(self._check(lap, min(2, rows)) for lap in checked[1:])])
        self.max_relative_error = worst
        return worst

    def _check(self, lap: Runnable, samples: int) -> float:
        rng = np.random.default_rng(self._seed)
        return max((self._judge(lap, i, rng, samples) for i in range(len(lap.program.operations))), default=0.0)

    def verdicts(self, runs: int = 1) -> Iterator[tuple[str, float | NumericsError]]:
        """The gate kind by kind: each kind of kernel with its largest relative error, or the first of its answers
        outside its bound, and last `whole step`, the program run as it is timed, `runs` times from the same start."""
        lap, rng = self._laps[0], np.random.default_rng(self._seed)
        lap.warm()
        self.backend.synchronize()
        before = snapshot(lap)
        found: dict[str, float | NumericsError] = {}
        for i, op in enumerate(lap.program.operations):
            kind = _kind(op.label)
            try:
                error = self._judge(lap, i, rng, self._gate_rows)
            except NumericsError as wrong:
                if not isinstance(found.get(kind), NumericsError):
                    found[kind] = wrong
                continue
            if not isinstance(known := found.get(kind, 0.0), NumericsError):
                found[kind] = max(known, error)
        yield from found.items()
        for _ in range(runs):
            if wrong_run := disagreement(lap, before, self.backend.synchronize):
                yield WHOLE, NumericsError(f"{lap.program.name}, run as a whole: {wrong_run}.", advice=_REPORT)
                return
        yield WHOLE, 0.0

    def _judge(self, lap: Runnable, i: int, rng: np.random.Generator, samples: int) -> float:
        """Run one operation and compare it with the reference; its largest relative error."""
        reference = Reference(self._arena, self.backend.precision, lap.choice, lap.read, rng, samples)
        op, worst = lap.program.operations[i], 0.0
        if isinstance(op, Route):
            lap.run_operation(i)
            if wrong := reference.wrong_choice(op):
                raise NumericsError(f"{lap.program.name}, {op.label}: {wrong}.", advice=_REPORT)
            return 0.0
        (view,) = op.outputs()
        accumulates = adds(op)
        before = lap.read(view.register)
        if not accumulates:
            before[:, view.offset : view.offset + view.width] = np.nan
            lap.write(view.register, before)
        expected = reference.expect(op)
        if accumulates:  # its inputs are gone once it has run: what it may have left out is recomputed from them
            kept = {name: lap.read(name) for name in named(op)}
        lap.run_operation(i)
        after = lap.read(view.register)
        part = np.s_[:, view.offset : view.offset + view.width]
        # Exactly as they were: never written, or (next to nothing was added) right as they are.
        left = np.argwhere(after[part].view(np.uint32) == before[part].view(np.uint32))
        left = np.vstack([left, np.argwhere(~np.isfinite(after[part]))])
        if len(left):
            pairs = [(int(b), int(c)) for b, c in left[rng.permutation(len(left))[:UNWRITTEN]]]
            if accumulates:
                source = Reference(self._arena, self.backend.precision, lap.choice, kept.__getitem__, rng, samples)
                expected = [*expected, *source.expect(op, pairs)]
            else:
                expected = [*(Value(view.register, b, view.offset + c, 0.0, 0.0) for b, c in pairs), *expected]
        largest = max((abs(v.value) for v in expected), default=0.0) or 1.0
        for v in expected:
            got = float(after[v.token, v.column])
            error = abs(got - v.value)
            if not error <= v.bound:  # NaN fails too
                raise NumericsError(
                    f"{lap.program.name}, {op.label}: output {v.column} of token {v.token} is {got!r}, expected "
                    f"{v.value!r} within {v.bound:.2g}.",
                    advice=_REPORT,
                )
            worst = max(worst, error / largest)
        return worst

    def close(self) -> None:
        """Give the arena back."""
        self._laps.clear()
        if self._owns:
            self._arena.close()


def step_kinds(shape: ModelShape, *, batch: int = 1, context: int = 0) -> tuple[str, ...]:
    """`DecodeStep.kinds` without building the step: milliseconds, no memory."""
    rng, law = np.random.default_rng(0), Routing("uniform")
    composer = Composer(shape, Layout(), batch=batch, context=context, kv_format="bf16", routing=law, rng=rng)
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
        times = distinct.get(route_of(op), 0)
        for weight, routed in op.weights():
            if isinstance(weight, Vector):
                if id(weight) in seen:  # a gain two operations share stays in the cache between them
                    continue
                seen.add(id(weight))
                weights += weight.bytes * (times if routed else 1)
            else:
                weights += weight.weights.bytes * (times if routed else 1)
                scales += weight.scale_bytes * (times if routed else 1)
        if isinstance(op, Attend | State):
            kv += op.kv_bytes
    mean = sum(distinct.values()) / len(distinct) if distinct else 0.0
    return Traffic(weights, scales, kv, mean)


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """A step laid out on paper: its programs and the pools they need.

    Attributes:
        backend: what it will run on.
        programs: the program copies.
        pools: bytes of every pool.
        distance: bytes between two readings of one place.
        seed, gate_rows: as in `build_step`.
    """

    backend: Backend
    programs: list[Program]
    pools: dict[str, int]
    distance: int
    seed: int
    gate_rows: int

    def on(self, arena: Arena, *, owns: bool = False) -> DecodeStep:
        """Compile it on an arena whose pools are at least as large; `owns`: closing the step closes the arena."""
        laps = [self.backend.compile(program, arena) for program in self.programs]
        return DecodeStep(
            self.backend, arena, laps, self.seed, distance=self.distance, owns=owns, gate_rows=self.gate_rows
        )


def shared_pools(plans: Iterable[StepPlan]) -> dict[str, int]:
    """Pools of an arena that every one of some steps can lie in: they run one after the other, and a step whose run was
    longer ago than its own distance finds nothing of it in a cache."""
    pools: dict[str, int] = {}
    for one in plans:
        for pool, size in one.pools.items():
            pools[pool] = max(size, pools.get(pool, 0))
    return pools


def build_step(shape: ModelShape, backend: Backend, **options: Any) -> DecodeStep:
    """`plan_step` with an arena of its own. Arguments and errors as there."""
    planned = plan_step(shape, backend, **options)
    return planned.on(backend.arena(planned.pools, planned.seed), owns=True)


def plan_step(
    shape: ModelShape,
    backend: Backend,
    *,
    batch: int = 1,
    context: int = 0,
    kv_format: str = "bf16",
    routing: str = "uniform",
    arena_bytes: int | None = None,
    seed: int = 0,
    reuse: float = REUSE,
    gate_rows: int = GATE_ROWS,
) -> StepPlan:
    """Lay the decode step of `shape` out for a backend.

    Args:
        shape: the model, its matrices in the formats to read (see `ModelShape.cast`).
        backend: see `moegauge.kernels.devices.get_backend`.
        batch: tokens decoded together, each of its own sequence.
        context: tokens in every sequence's cache.
        kv_format: `bf16` or `fp8`.
        routing: see `moegauge.bench.step.routing.Routing`.
        arena_bytes: memory for weights; None takes the backend's `usual_arena`, or 32 last-level caches and at least
            1 GiB (what is free where that is less), or what the model's largest matrices and `reuse` need where that is
            more.
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

    room = backend.memory
    programs, sizes = plan(
        compose,
        distance=int(reuse * backend.last_level_cache),
        wanted=min(max(MINIMUM_ARENA, CACHES * backend.last_level_cache), room) if arena_bytes is None else arena_bytes,
        room=room,
        fixed=arena_bytes is not None,
        roomy=backend.usual_arena if arena_bytes is None else 0,
    )
    return StepPlan(
        backend=backend,
        programs=programs,
        pools=sizes,
        distance=int(reuse * backend.last_level_cache),
        seed=seed,
        gate_rows=gate_rows,
    )


def _matrices(shape: ModelShape) -> Iterator[Matrix]:
    yield shape.embedding
    yield shape.head_matrix
    for layer in shape.layers:
        yield from layer.dense_matrices
        for pool in layer.experts:
            yield from pool.matrices
