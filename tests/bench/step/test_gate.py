"""What the numerical gate must refuse: one thing broken at a time, in every format, on kernels that run for real."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import made_up
import numpy as np
import pytest

from moegauge.bench.step.build import DecodeStep, build_step
from moegauge.errors import NumericsError
from moegauge.formats import FORMATS
from moegauge.kernels.cpu.core import library
from moegauge.kernels.devices import get_backend
from moegauge.kernels.program import ExpertsDown, ExpertsUp, GatedProduct, Product, Route
from moegauge.kernels.reference import Reference

pytestmark = pytest.mark.skipif(library() is None, reason="installed without a C++ compiler")

PACKED = [name for name in FORMATS if name != "f32"]
REFUSED = r"output \d+ of token \d+ is"


def step_of(fmt: str = "native", **options: Any) -> DecodeStep:
    options = {"arena_bytes": 1 << 24, "reuse": 0.0, **options}
    return build_step(made_up.decoder().cast(fmt), get_backend("cpu"), **options)


def spoil(step: DecodeStep, pool: str, change: Any) -> None:
    """Change bytes of a pool under the kernels' hands: the reference reads what it read before."""
    arena: Any = step._arena
    true = arena._memory.copy()
    start, size = arena._start[pool], arena.pools[pool]
    change(arena._memory[start : start + size])
    kept = arena.read

    def read(name: str, offset: int, size: int, within: Any = None) -> Any:
        spoilt, arena._memory = arena._memory, true
        try:
            return kept(name, offset, size, within)
        finally:
            arena._memory = spoilt

    arena.read = read


def double(format_name: str) -> Any:
    """Twice every scale of a format."""

    def change(raw: Any) -> None:
        bits = FORMATS[format_name].scale_bits
        if format_name in ("mxfp4", "mxfp8"):
            raw += 1
        elif format_name == "nvfp4":
            raw += 8
        elif bits == 16:
            raw.view(np.uint16)[:] += 1 << 7
        else:
            raw.view(np.float32)[:] *= 2

    return change


@pytest.mark.parametrize("fmt", [name for name in FORMATS if FORMATS[name].scale_bits])
def test_a_wrong_scale(fmt: str) -> None:
    step = step_of(fmt)
    spoil(step, f"{fmt}.scale", double(fmt))
    with pytest.raises(NumericsError, match=REFUSED):
        step.check()


def test_a_wrong_tensor_scale() -> None:
    step = step_of("nvfp4")
    spoil(step, "nvfp4.tensor", double("fp8"))
    with pytest.raises(NumericsError, match=REFUSED):
        step.check()


@pytest.mark.parametrize("fmt", PACKED)
def test_wrong_elements(fmt: str) -> None:
    """Nibbles swapped; wider elements one place further on."""

    def change(raw: Any) -> None:
        raw[:] = (
            (raw >> 4) | (raw << 4) if FORMATS[fmt].element_bits == 4 else np.roll(raw, FORMATS[fmt].element_bits // 8)
        )

    step = step_of(fmt)
    spoil(step, f"{fmt}.weight", change)
    with pytest.raises(NumericsError, match=REFUSED):
        step.check()


@pytest.mark.parametrize("fmt", PACKED)
@pytest.mark.parametrize("kind", [ExpertsUp, ExpertsDown])
def test_another_expert_for_one_choice(fmt: str, kind: type) -> None:
    """The route is right, but the kernel takes one token's last choice from a neighbouring slot."""
    step = step_of(fmt)
    lap: Any = step._laps[0]
    run, operations = lap.run_operation, lap.program.operations

    def wrong(index: int) -> None:
        op = operations[index]
        if not isinstance(op, kind):
            run(index)
            return
        state = lap._code.routes[op.route]
        for slots in (state.slot, state.distinct_slot):
            slots.reshape(-1)[-1] ^= 1
        run(index)
        for slots in (state.slot, state.distinct_slot):
            slots.reshape(-1)[-1] ^= 1

    lap.run_operation = wrong
    with pytest.raises(NumericsError, match=rf"experts {'up' if kind is ExpertsUp else 'down'}: {REFUSED}"):
        step.check()


@pytest.mark.parametrize("column", [0, 37, -1])
@pytest.mark.parametrize("kind", [GatedProduct, ExpertsUp, ExpertsDown, "adds"])
def test_one_output_that_is_not_written(kind: Any, column: int) -> None:
    """One column of one token stays as it was, poisoned or (where the operation adds) stale."""
    step = step_of(batch=3)
    lap: Any = step._laps[0]
    run, operations = lap.run_operation, lap.program.operations

    def partial(index: int) -> None:
        op = operations[index]
        hit = isinstance(op, Product) and op.accumulate if kind == "adds" else isinstance(op, kind)
        if not hit:
            run(index)
            return
        (view,) = op.outputs()
        before = lap.read(view.register)
        run(index)
        after = lap.read(view.register)
        at = view.offset + column % view.width
        after[1, at] = before[1, at]
        lap.write(view.register, after)

    lap.run_operation = partial
    with pytest.raises(NumericsError, match=r"output \d+ of token 1 is"):
        step.check()


def test_an_operation_that_adds_twice() -> None:
    step = step_of()
    lap: Any = step._laps[0]
    run = lap.run_operation
    down = next(i for i, op in enumerate(lap.program.operations) if isinstance(op, ExpertsDown))
    lap.run_operation = lambda i: [run(i) for _ in range(2 if i == down else 1)]
    with pytest.raises(NumericsError, match=REFUSED):
        step.check()


def test_every_lap_is_a_program_of_its_own_and_more_than_one_is_checked() -> None:
    step = step_of(reuse=1.0, arena_bytes=None)
    assert len(step.programs) > 2
    lap: Any = step._laps[len(step._laps) // 3]
    lap.run_operation = lambda _: None
    with pytest.raises(NumericsError):
        step.check()
    step.close()


def test_samples_hold_both_corners_and_every_choice() -> None:
    sampled = Reference(None, None, None, None, np.random.default_rng(0), 16)._pairs(8, 4000, [1000, 1000, 500, 1500])  # type: ignore[arg-type]
    assert len(sampled) <= 16
    assert (0, 0) in sampled
    assert (7, 3999) in sampled
    assert {int(np.searchsorted([1000, 2000, 2500, 4000], c, side="right")) for _, c in sampled} == {0, 1, 2, 3}


def test_a_wrong_share_and_a_wrong_count() -> None:
    for change in ({"share": 0.9}, {"distinct": 1}):
        step = step_of()
        lap: Any = step._laps[0]
        choice = lap.choice

        def other(label: str, change: Any = change, choice: Any = choice) -> Any:
            true = choice(label)
            return replace(true, **{k: (v * true.share if k == "share" else v) for k, v in change.items()})

        lap.choice = other
        route = next(op for op in lap.program.operations if isinstance(op, Route))
        with pytest.raises(NumericsError, match=f"{route.label}:"):
            step.check()


@pytest.mark.skipif(library() is None, reason="installed without a C++ compiler")
@pytest.mark.parametrize("left_out", ["q, k, v", "route", "experts down", "logits"])
def test_a_whole_run_that_differs_from_its_operations(left_out: str) -> None:
    """A step whose operations are right one by one, and which loses one of them when it is run as it is timed."""
    step = step_of()
    lap = step._laps[0]
    kept = [i for i, op in enumerate(lap.program.operations) if op.label.partition(": ")[2] != left_out]
    assert len(kept) < len(lap.program.operations)
    assert step.check() >= 0
    lap.run = lambda: [lap.run_operation(i) for i in kept]  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match=r"run as a whole: .* one by one give"):
        step.check()
    step.close()
