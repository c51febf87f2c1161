"""In-cache speed: what a product with each weight format, and attention, costs where memory costs nothing.

The law's cost of a multiply-accumulate is this measurement, made in the run that the steps are timed in. One operation
multiplies with the same weights again and again; they are few enough for the last-level cache, and all cores work at
once, as in a step. Formats take turns, so that a slow moment falls on all alike. Whatever disturbs a sample
makes it slower, so the median of the faster half is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np

from moegauge.bench.clock import statistics
from moegauge.bench.step.build import DecodeStep
from moegauge.bench.step.rings import Layout
from moegauge.estimator.traffic import KV_BYTES, format_macs
from moegauge.kernels.backend import Backend
from moegauge.kernels.program import Attend, Operation, Place, Product, Program, View
from moegauge.record import AttentionInCache, InCache
from moegauge.shape import Matrix, ModelShape
from moegauge.units import GB

Key = TypeVar("Key")
Geometry = tuple[str, int, int, int, int]  # kind, heads, KV heads, widths of a key head and of a value head

# Weights, and the cache that attention reads, as a share of the last-level cache: more than cores have of their own,
# since a core that decodes hides the way from the last-level cache as badly as that from memory, in some formats more
# than in others. At most MOST bytes, where a cloud's machine is told of a cache that it shares.
CACHED = 1 / 4
MOST = 8 << 20
COLUMNS = 4096
# Bytes one sample multiplies with: 0.5 to 1 ms on two cores, so that barriers (some 10 us an operation) are 2 %.
SAMPLE = 32 << 20
TILE = 4  # inputs that the core decodes a weight for once (kernels/cpu/native/products.h)
ROUNDS = 14


def measure_in_cache(
    backend: Backend, points: Iterable[tuple[ModelShape, int]], kv_format: str
) -> tuple[list[InCache], list[AttentionInCache]]:
    """What the law needs of a plan: a product of every weight format, attention of every model that has a context.

    Args:
        backend: the device.
        points: (shape in the point's format, tokens of context).
        kv_format: of the caches.

    Raises:
        NumericsError, DeviceError: as `in_cache`.
    """
    known = list(points)
    formats = dict.fromkeys(name for shape, _ in known for name in format_macs(shape))
    return in_cache(backend, formats), attention_in_cache(backend, (s for s, context in known if context), kv_format)


def in_cache(backend: Backend, formats: Iterable[str]) -> list[InCache]:
    """Each format's product on weights that lie in the cores' caches; some 20 ms a format.

    Args:
        backend: the device; nothing is measured where it names no instruction set (`Backend.isa`).
        formats: of the weights; those it has no kernel for are left out.

    Raises:
        NumericsError: a product outside its error bound.
        DeviceError: no room.
    """
    names = [name for name in dict.fromkeys(formats) if backend.isa and name in backend.matrix_formats]
    runs = {(name, tokens): _product(backend, name, tokens) for name in names for tokens in (1, TILE)}
    seconds = _sample(backend, runs)
    found = []
    for name in names:
        # GB/s of weights and scales of one core, in the faster half of the samples.
        rates = {
            t: [runs[name, t].bytes / s / backend.threads / GB for s in _fast(seconds[name, t])] for t in (1, TILE)
        }
        found.append(
            InCache(
                format=name,
                isa=backend.isa,
                threads=backend.threads,
                gb_per_s_per_core=statistics.median(rates[1]),
                interval_gb_per_s_per_core=statistics.interval(rates[1]),
                tile=TILE,
                tile_gb_per_s_per_core=statistics.median(rates[TILE]),
            )
        )
    return found


def attention_in_cache(backend: Backend, shapes: Iterable[ModelShape], kv_format: str) -> list[AttentionInCache]:
    """Attention over a cache that lies in the last-level cache, for every geometry of some models; some 20 ms each.
    Arguments and errors as for `in_cache`."""
    if not backend.isa:
        return []
    layers = [layer.attention for shape in shapes for layer in shape.layers if layer.attention.kind in ("gqa", "mla")]
    kinds = dict.fromkeys((a.kind, a.heads, a.kv_heads, a.head_dim, a.value_dim) for a in layers)
    runs = {kind: _attention(backend, kind, kv_format) for kind in kinds}
    seconds = _sample(backend, runs)
    return [
        AttentionInCache(
            kind=kind[0],
            heads=kind[1],
            kv_heads=kind[2],
            head_dim=kind[3],
            value_dim=kind[4],
            kv_format=kv_format,
            isa=backend.isa,
            threads=backend.threads,
            ps_per_mac=1e12 * statistics.median(_fast(seconds[kind])) * backend.threads / runs[kind].macs,
        )
        for kind in kinds
    ]


@dataclass(frozen=True, slots=True)
class _Run:
    """A program bound to its own small arena; bytes of weights and multiply-accumulates of one run."""

    step: DecodeStep
    bytes: float
    macs: float


def _sample(backend: Backend, runs: dict[Key, _Run]) -> dict[Key, list[float]]:
    """Seconds of every run, ROUNDS of each in turn; checks them first, and gives their arenas back."""
    try:
        for run in runs.values():
            run.step.check()  # which also brings the weights into the caches
        seconds: dict[Key, list[float]] = {key: [] for key in runs}
        for _ in range(ROUNDS):
            for key, run in runs.items():
                run.step.run()
                seconds[key].append(backend.time(run.step.run))
        return seconds
    finally:
        for run in runs.values():
            run.step.close()


def _fast(seconds: list[float]) -> list[float]:
    return sorted(seconds)[: (len(seconds) + 1) // 2]


def _cached(backend: Backend) -> int:
    return min(MOST, int(backend.last_level_cache * CACHED))


def _product(backend: Backend, name: str, tokens: int) -> _Run:
    """One product with as many copies of one matrix as make SAMPLE bytes."""
    row = Matrix("in cache", "dense_mlp", 16, COLUMNS, name)
    matrix = Matrix("in cache", "dense_mlp", max(1, _cached(backend) // row.bytes) * 16, COLUMNS, name)
    times = max(1, SAMPLE // matrix.bytes)
    layout = Layout()
    weight = layout.weight(matrix)
    x, y = View("x", 0, COLUMNS), View("y", 0, times * matrix.rows)
    step = _bind(backend, f"{name} in cache", tokens, Product(f"in cache: {name}", x, y, (weight,) * times), layout)
    return _Run(step, times * matrix.bytes, times * matrix.parameters * tokens)


def _attention(backend: Backend, geometry: Geometry, kv_format: str) -> _Run:
    """One token's attention over as long a cache as makes CACHED of the last-level cache."""
    kind, heads, kv_heads, head_dim, value_dim = geometry
    latent = kind == "mla"
    width = kv_heads * (head_dim if latent else head_dim + value_dim)  # elements cached per token
    length = max(1, _cached(backend) // (width * KV_BYTES[kv_format]))
    layout = Layout()
    pool = f"kv.{kv_format}"

    def cached(elements: int) -> Place:
        return layout.place(pool, elements * length * KV_BYTES[kv_format])

    operation = Attend(
        f"in cache: {kind} attention",
        q=View("q", 0, heads * (value_dim if latent else head_dim)),
        k=View("k", 0, kv_heads * head_dim),
        v=None if latent else View("v", 0, kv_heads * value_dim),
        out=View("mix", 0, heads * value_dim),
        kind=kind,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        length=length,
        cache_format=kv_format,
        keys=cached(kv_heads * head_dim),
        values=None if latent else cached(kv_heads * value_dim),
        q_rope=View("rope", 0, heads * (head_dim - value_dim)) if latent else None,
    )
    step = _bind(backend, f"{kind} attention in cache", 1, operation, layout)
    return _Run(step, 0.0, heads * (head_dim + value_dim) * length)


def _bind(backend: Backend, name: str, tokens: int, operation: Operation, layout: Layout) -> DecodeStep:
    """A program of one operation, its registers filled with normal numbers, on an arena of its own."""
    registers = {v.register: v.width for f in fields(operation) if isinstance(v := getattr(operation, f.name), View)}
    arena = backend.arena(layout.demand)
    program = Program(name, tokens, registers, (operation,), dict(layout.demand))
    runnable = backend.compile(program, arena)
    rng = np.random.default_rng(0)
    for register, width in registers.items():
        runnable.write(register, rng.standard_normal((tokens, width), dtype=np.float32))
    return DecodeStep(backend, arena, [runnable], 0)
