"""Numerical gate of a whole run: the step as it is timed against its operations run one by one.

What only a whole run can get wrong shows here: an operation that starts before the one it needs has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from moegauge.kernels.backend import Runnable
from moegauge.kernels.program import ExpertsDown, Operation, Product, Program, State, View

Registers = dict[str, NDArray[np.float32]]


def named(op: Operation) -> set[str]:
    """Registers an operation names."""
    return {view.register for view in op.views()}


def adds(op: Operation) -> bool:
    """Whether an operation adds to what its output holds."""
    return isinstance(op, ExpertsDown) or (isinstance(op, Product) and op.accumulate)


def snapshot(lap: Runnable) -> Registers:
    """A copy of every register."""
    return {name: lap.read(name) for name in lap.program.registers}


def disagreement(lap: Runnable, before: Mapping[str, NDArray[np.float32]], synchronize: Callable[[], None]) -> str:
    """Run the whole program from the registers `before`; "" where it gives, bit for bit, what the registers hold now,
    as left by its operations one by one, and chooses as they did, else where it does not.

    Outputs are NaN at the start, but for those that the program begins by adding to or by reading. A program that keeps
    recurrent state in its arena is not run: its second run has another answer.
    """
    program = lap.program
    if any(isinstance(op, State) for op in program.operations):
        return ""
    alone = snapshot(lap)
    choices = {route.label: lap.choice(route.label).ids for route in program.routes}
    lap.forget()
    for name, values in before.items():
        lap.write(name, _poisoned(program, name, values))
    lap.run()
    synchronize()
    for view in _views(program):
        part = np.s_[:, view.offset : view.offset + view.width]
        got, expected = lap.read(view.register)[part], alone[view.register][part]
        wrong = np.argwhere(got != expected)  # NaN is unlike anything
        if len(wrong):
            token, column = (int(i) for i in wrong[0])
            return (
                f"{view.register}, output {column} of token {token} is {float(got[token, column])!r} where its "
                f"operations one by one give {float(expected[token, column])!r}"
            )
    for label, ids in choices.items():
        if not np.array_equal(found := lap.choice(label).ids, ids):
            return (
                f"{label} chose {found[0].tolist()} for token 0 where its operations one by one give {ids[0].tolist()}"
            )
    return ""


def _views(program: Program) -> Iterator[View]:
    yield from dict.fromkeys(view for op in program.operations for view in op.outputs())


def _poisoned(program: Program, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    first = next((op for op in program.operations if name in named(op)), None)
    if first is None or adds(first) or name not in {view.register for view in first.outputs()}:
        return values
    poisoned = values.copy()
    for view in _views(program):
        if view.register == name:
            poisoned[:, view.offset : view.offset + view.width] = np.nan
    return poisoned
