"""Small step programs for the GPU tests, and the numerical gate over them."""

from __future__ import annotations

import numpy as np

from moegauge.formats import get_format
from moegauge.kernels.program import (
    Attend,
    ExpertsDown,
    ExpertsUp,
    GatedProduct,
    Place,
    Product,
    Program,
    Route,
    Vector,
    View,
    Weight,
)
from moegauge.kernels.reference import Reference


class Places:
    """Hands out places of an arena one behind the other."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def place(self, pool: str, size: int, slots: int = 1) -> Place:
        start = self._next.get(pool, 0)
        stride = -(-size // 256) * 256
        self._next[pool] = start + stride * slots
        return Place(pool, start, size, stride if slots > 1 else 0)

    def weight(self, fmt: str, rows: int, columns: int, slots: int = 1) -> Weight:
        f = get_format(fmt)
        scales = f.scale_bytes(rows, columns) - f.tensor_scale_bits // 8
        return Weight(
            "w", "attention", rows, columns, fmt, self.place(f"{fmt}.weight", f.weight_bytes(rows, columns), slots),
            self.place(f"{fmt}.scale", scales, slots) if scales > 0 else None,
            self.place(f"{fmt}.tensor", 4, slots) if f.tensor_scale_bits else None,
            slots,
        )  # fmt: skip


def product(fmt: str, rows: int, columns: int, batch: int, *, accumulate: bool = False) -> Program:
    """One dense product with a norm and a bias."""
    places = Places()
    gain = Vector("norm", columns, "bf16", places.place("gain.bf16", 2 * columns))
    bias = Vector("bias", rows, "f32", places.place("bias.f32", 4 * rows))
    op = Product(
        "product", View("x", 0, columns), View("y", 0, rows), (places.weight(fmt, rows, columns),), gain, (bias,),
        accumulate=accumulate,
    )  # fmt: skip
    return Program(f"{fmt} {rows}x{columns} batch {batch}", batch, {"x": columns, "y": rows}, (op,))


def layer(fmt: str, hidden: int, inner: int, experts: int, top_k: int, batch: int, shared: str = "bf16") -> Program:
    """Router, experts up, experts down, a gated product; routing skewed so that experts repeat within a batch."""
    places = Places()
    slots = min(experts, 2 * batch * top_k)
    gate, up = places.weight(fmt, inner, hidden, slots), places.weight(fmt, inner, hidden, slots)
    down = places.weight(fmt, hidden, inner, slots)
    own = tuple(places.weight(shared, inner, hidden) for _ in range(2)) if shared else ()
    prior = np.log1p(np.random.default_rng(0).random((batch, experts)).astype(np.float32))
    wide = top_k * inner + (inner if shared else 0)
    gain = Vector("norm", hidden, "bf16", places.place("gain.bf16", 2 * hidden))
    residual, logits, between = View("residual", 0, hidden), View("logits", 0, experts), View("between", 0, wide)
    operations = (
        Product("router", residual, logits, (places.weight("bf16", experts, hidden),), gain),
        Route("route", logits, prior, experts, top_k, 2 if slots > top_k else 1, slots),
        ExpertsUp("up", "route", residual, between, gate, up, top_k, shared=(own,) if own else (), gain=gain),
        ExpertsDown(
            "down", "route", between, residual, down, top_k,
            shared=(places.weight(shared, hidden, inner),) if shared else (),
        ),
        GatedProduct("mlp", residual, View("mlp", 0, inner), places.weight(fmt, inner, hidden),
                     places.weight(fmt, inner, hidden), gain),
    )  # fmt: skip
    registers = {"residual": hidden, "logits": experts, "between": wide, "mlp": inner}
    return Program(f"{fmt} layer, batch {batch}", batch, registers, operations)


def attention(kind: str, cache: str, heads: int, batch: int, length: int) -> Program:
    """One attention over a cache."""
    places, size = Places(), 1 if cache == "fp8" else 2
    mla = kind == "mla"
    kv, key, value = (1, 576, 512) if mla else (heads // 4, 128, 128)
    registers = {"q": heads * (value if mla else key), "k": kv * key, "v": kv * value, "out": heads * value}
    if mla:
        registers["rope"] = heads * 64

    def view(name: str) -> View:
        return View(name, 0, registers[name])

    op = Attend(
        "attention", view("q"), view("k"), None if mla else view("v"), view("out"), kind, heads, kv, key, value, length,
        cache, places.place(f"kv.{cache}", batch * kv * length * key * size) if length else None,
        places.place(f"kv.{cache}", batch * kv * length * value * size) if length and not mla else None,
        view("rope") if mla else None,
    )  # fmt: skip
    return Program(f"{kind} {cache} batch {batch} length {length}", batch, registers, (op,))


def start(runnable, scale: float = 1.0) -> None:
    """Fresh random values in every register."""
    rng = np.random.default_rng(1)
    for name, width in runnable.program.registers.items():
        values = rng.standard_normal((runnable.program.batch, width)) * scale
        runnable.write(name, values.astype(np.float32))


def gate(backend, arena, runnable, samples: int = 64) -> None:
    """Every operation against float64, outputs poisoned first where they are not added to."""
    rng = np.random.default_rng(2)
    reference = Reference(arena, backend.precision, runnable.choice, runnable.read, rng, samples)
    for i, op in enumerate(runnable.program.operations):
        if isinstance(op, Route):
            runnable.run_operation(i)
            assert not reference.wrong_choice(op)
            continue
        expected = reference.expect(op)
        if not isinstance(op, ExpertsDown) and not getattr(op, "accumulate", False):
            for view in op.outputs():
                runnable.write(view.register, np.full_like(runnable.read(view.register), np.nan))
        runnable.run_operation(i)
        for v in expected:
            got = float(runnable.read(v.register)[v.token, v.column])
            assert abs(got - v.value) <= v.bound, (runnable.program.name, op.label, v, got)
