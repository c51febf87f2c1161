"""The compiled core when things go wrong: programs that reach outside, no threads, no memory, fork, Ctrl-C."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import made_up
import numpy as np
import pytest

from moegauge.bench.step.build import DecodeStep, build_step
from moegauge.errors import ProgramError
from moegauge.kernels.cpu.backend import CpuBackend, CpuRunnable
from moegauge.kernels.cpu.core import Core, library
from moegauge.kernels.cpu.structs import FORMAT_INDEX, KINDS, CMatrix, COperation, CRegion, CView, region
from moegauge.kernels.program import Product

pytestmark = pytest.mark.skipif(library() is None, reason="installed without a C++ compiler")

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX alone has fork and limits")
# Under `make sanitize` a process of its own would have the core as installed, and the sanitizer trouble with limits
# of memory and forks of many threads.
ALONE = pytest.mark.skipif("MOEGAUGE_SANITIZED_CORE" in os.environ, reason="not in a process of its own")
MUTANTS = int(os.environ.get("MOEGAUGE_MUTANTS", "3000"))


@pytest.fixture(scope="module", params=["gqa", "mla", "linear"])
def step(request: pytest.FixtureRequest) -> Iterator[DecodeStep]:
    built = build_step(
        made_up.decoder(request.param).cast("nvfp4"), CpuBackend(1), batch=2, context=5, arena_bytes=1 << 24, reuse=0.0
    )
    yield built
    built.close()


def runnable(step: DecodeStep) -> CpuRunnable:
    (found,) = step._laps[:1]
    assert isinstance(found, CpuRunnable)
    return found


def regions(of: CpuRunnable) -> list[CRegion]:
    return [*of._arena.regions(), *map(region, of._registers.values()), *of._code.regions()]


def numbers(structure: Any) -> Iterator[tuple[Any, str]]:
    """(structure, name) of every integer, address and view in a record and what it points to."""
    for name, *_ in structure._fields_:
        value = getattr(structure, name)
        if isinstance(value, ctypes.Structure):
            yield from numbers(value)
        elif isinstance(value, ctypes._Pointer):
            if not value:
                continue
            count = structure.n_matrices if name == "matrices" else structure.n_biases if name == "biases" else 1
            for i in range(count):
                yield from numbers(value[i])
        elif name not in ("n_matrices", "n_biases"):  # how long an array of Python's is, Python knows
            yield structure, name


def test_no_field_of_a_program_reaches_outside(step: DecodeStep) -> None:
    """Random numbers for every number of every record: what the core takes it must run without harm, which the address
    sanitizer sees to (`make sanitize`); what reaches far outside it must refuse."""
    of, rng = runnable(step), random.Random(1)
    memory, operations = regions(of), of._code.operations
    fields = [(i, *field) for i in range(len(operations)) for field in numbers(operations[i])]
    kept = {name: values.copy() for name, values in of._registers.items()}
    refused = ran = 0
    for _ in range(MUTANTS):
        index, holder, name = rng.choice(fields)
        value = getattr(holder, name) or 0
        if isinstance(value, float):
            continue
        new = rng.choice([
            value + rng.choice([1, -1, 2, 8, 64, 4096, -4096]), value * 2, value * 3 + 1, value // 2, 0, -1, 1, 7,
            rng.randrange(2**12), rng.randrange(2**31), 2**40, 2**62, -(2**62), value + (1 << 24),
        ])  # fmt: skip
        setattr(holder, name, new)
        try:
            loaded = of._core.load(operations, memory)
        except ProgramError:
            refused += 1
        else:
            first = index if rng.random() < 0.5 else 0
            with contextlib.suppress(ProgramError):  # experts before their route
                of._core.run(loaded, first, len(operations) - first)
            ran += 1
        finally:
            setattr(holder, name, value or (None if name not in dict(int_fields(holder)) else 0))
            for register, values in kept.items():
                of._registers[register][:] = values
    assert refused > MUTANTS // 4
    assert ran > MUTANTS // 20


def int_fields(structure: Any) -> list[tuple[str, Any]]:
    return [(name, kind) for name, kind, *_ in structure._fields_ if kind is ctypes.c_int64]


FAR = 1 << 30
OUTSIDE = [
    ("x", "data", FAR), ("x", "data", -FAR), ("y", "data", FAR), ("y", "data", 4 << 20),
    ("x", "pitch", FAR), ("y", "pitch", FAR),
    ("x", "width", -1), ("y", "width", 1),
]  # fmt: skip


@pytest.mark.parametrize(("view", "field", "more"), OUTSIDE)
def test_a_view_outside_its_register_is_refused(step: DecodeStep, view: str, field: str, more: int) -> None:
    of = runnable(step)
    for record in of._code.operations:
        holder = getattr(record, view)
        if not holder.data:
            continue
        value = getattr(holder, field)
        setattr(holder, field, value + more if more != -1 else 0)
        if record.kind != KINDS[Product] and field == "width":  # only a product's y is as wide as its rows are many
            setattr(holder, field, value)
            continue
        with pytest.raises(ProgramError, match=r"operation \d+"):
            of._core.load(of._code.operations, regions(of))
        setattr(holder, field, value)
    of._core.load(of._code.operations, regions(of))


@pytest.mark.parametrize("field", ["weights", "scales", "tensor_scale", "rows", "columns", "weight_stride", "format"])
def test_a_matrix_outside_the_arena_is_refused(step: DecodeStep, field: str) -> None:
    of = runnable(step)
    refused = 0
    for record in of._code.operations:
        for i in range(record.n_matrices):
            matrix = record.matrices[i]
            value = getattr(matrix, field)
            if value is None or (field == "weight_stride" and not value):
                continue
            setattr(matrix, field, value + FAR)
            with pytest.raises(ProgramError, match="matri"):
                of._core.load(of._code.operations, regions(of))
            setattr(matrix, field, value)
            refused += 1
    assert refused


def test_arenas_are_only_read_but_for_state(step: DecodeStep) -> None:
    of = runnable(step)
    record = next(r for r in of._code.operations if r.y.data)
    before, record.y.data = record.y.data, of._arena.address("bf16.weight")
    try:
        with pytest.raises(ProgramError, match="memory that is only read"):
            of._core.load(of._code.operations, regions(of))
    finally:
        record.y.data = before


def test_a_program_is_a_copy(step: DecodeStep) -> None:
    """What Python does to its records after loading is no business of the core."""
    of = runnable(step)
    record = of._code.operations[1]
    value = record.y.data
    record.y.data = 8
    try:
        of.run_range(0, len(of._code.operations))
    finally:
        record.y.data = value
    with pytest.raises(ProgramError, match="of a program of"):
        of._core.run(of._loaded, 0, len(of._code.operations) + 1)
    with pytest.raises(ProgramError, match="of a program of"):
        of._core.run(of._loaded, -1, 1)


def test_a_choice_that_is_none_of_the_slots_is_refused() -> None:
    step = build_step(made_up.decoder().cast("fp8"), CpuBackend(1), arena_bytes=1 << 24, reuse=0.0)
    of = runnable(step)
    step.run()
    state = next(iter(of._code.routes.values()))
    state.distinct_slot[0] = 1 << 30
    up = next(i for i, label in enumerate(step.kernel_names) if label.endswith("experts up"))
    with pytest.raises(ProgramError, match="choice"):
        of.run_operation(up)
    step.run()  # the route comes first and chooses anew
    step.close()


def long_product(core: Core, operations: int) -> tuple[Any, list[np.ndarray]]:
    """A program of many products of 2 MB each into one register, the last into another; and that register first."""
    rows, columns = 512, 1024
    weights, x = np.ones((rows, columns), np.float32), np.ones((1, columns), np.float32)
    y, last = np.zeros((1, rows), np.float32), np.zeros((1, rows), np.float32)
    matrix = CMatrix(weights.ctypes.data, None, None, 0, 0, 0, rows, columns, FORMAT_INDEX["f32"], 0)
    records = (COperation * operations)()
    for i, op in enumerate(records):
        op.kind, op.batch, op.blocks, op.n_matrices = KINDS[Product], 1, 1, 1
        op.matrices = ctypes.pointer(matrix)
        out = last if i == operations - 1 else y
        op.x, op.y = CView(x.ctypes.data, columns, columns), CView(out.ctypes.data, rows, rows)
    return core.load(records, map(region, (weights, x, y, last))), [last, y, x, weights]


@POSIX
@ALONE
def test_ctrl_c_ends_a_long_run_and_the_core_goes_on() -> None:
    """A run of many seconds: its last operation must not have run."""
    core = Core()
    program, (last, y, *_) = long_product(core, 60_000)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        core.run(program, 0, 60_000)
    timer.join()
    assert not last.any()
    assert y.any()
    core.run(program, 59_999, 1)
    assert (last == 1024).all()


def run_alone(code: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, which may hang or die."""
    quiet = {"PYTHONWARNINGS": "ignore::DeprecationWarning", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **quiet},
    )


SETUP = """
import os, resource, sys
import numpy as np
from moegauge.errors import DeviceError
from moegauge.kernels.cpu import core
from moegauge.kernels.cpu.structs import *
def used(): return int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
def product(rows, batch=1):
    w = np.ones((rows, 16), np.float32); x = np.ones((batch, 16), np.float32); y = np.zeros((batch, rows), np.float32)
    m = CMatrix(w.ctypes.data, None, None, 0, 0, 0, rows, 16, FORMAT_INDEX["f32"], 0)
    op = (COperation * 1)()
    op[0].kind, op[0].batch, op[0].blocks, op[0].n_matrices, op[0].matrices = 1, batch, 1, 1, ctypes.pointer(m)
    op[0].x, op[0].y = CView(x.ctypes.data, 16, 16), CView(y.ctypes.data, rows, rows)
    return op, (w, x, y, m)
"""


@POSIX
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@ALONE
def test_threads_the_system_refuses_are_one_line() -> None:
    done = run_alone(
        SETUP
        + """
core.library()
core.cores = lambda: [-1] * 64
resource.setrlimit(resource.RLIMIT_AS, (used() + (40 << 20), resource.RLIM_INFINITY))
try:
    core.Core(64)
except DeviceError as error:
    print(error)
few = core.Core(2)  # what had been started is gone: there is room for two
op, kept = product(64)
few.run(few.load(op, [region(a) for a in kept[:3]]), 0, 1)
print(kept[2].sum())
"""
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith(
        "the system refuses 64 threads (Resource temporarily unavailable). Give fewer with --threads"
    )
    assert second == str(64.0 * 16)


@POSIX
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@ALONE
def test_memory_that_runs_out_within_a_run_is_one_line_and_the_core_goes_on() -> None:
    done = run_alone(
        SETUP
        + """
one = core.Core()
op, kept = product(1 << 20, 8)
program = one.load(op, [region(a) for a in kept[:3]])
resource.setrlimit(resource.RLIMIT_AS, (used() + (16 << 20), resource.RLIM_INFINITY))
try:
    one.run(program, 0, 1)
except DeviceError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
one.run(program, 0, 1)
print(kept[2].min(), kept[2].max())
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "no memory for the sums of an operation. Lower --batch or --context, or close other programs.", "16.0 16.0",
    ]  # fmt: skip


@POSIX
@ALONE
def test_a_forked_child_runs_exits_and_leaves_the_parent_alone() -> None:
    done = run_alone(
        SETUP
        + """
one = core.Core()
op, kept = product(512)
program = one.load(op, [region(a) for a in kept[:3]])
one.run(program, 0, 1)
for depth in range(3):
    kept[2][:] = 0
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        one.run(program, 0, 1)  # the parent's threads are where they were
        assert (kept[2] == 16).all()
        print("parent", depth, flush=True)
        sys.exit(0)
    one.run(program, 0, 1)
    assert (kept[2] == 16).all()
    print("child", depth, flush=True)
"""
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(f"{who} {i}" for who in ("child", "parent") for i in range(3))


@POSIX
@ALONE
def test_a_fork_in_the_middle_of_a_run_leaves_a_core_that_works() -> None:
    """A second thread forks while the first is in the core: the child has neither its threads nor its locks."""
    done = run_alone(
        SETUP
        + """
import threading
one = core.Core()
op, kept = product(1 << 16)
many = (COperation * 3000)(*[op[0]] * 3000)
program = one.load(many, [region(a) for a in kept[:3]])
busy = threading.Thread(target=one.run, args=(program, 0, 3000))
busy.start()
children = []
for _ in range(5):
    if not (child := os.fork()):
        one.run(program, 0, 1)
        os._exit(0)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children])
busy.join()
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0, 0, 0, 0, 0]"


def test_two_python_threads_take_turns() -> None:
    core = Core()
    programs = [long_product(core, 200) for _ in range(4)]
    threads = [threading.Thread(target=core.run, args=(program, 0, 200)) for program, _ in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((kept[0] == 1024).all() for _, kept in programs)


@ALONE
def test_a_core_still_held_at_exit_ends_with_the_interpreter() -> None:
    done = run_alone(
        SETUP
        + """
one = core.Core()
op, kept = product(1 << 16)
many = (COperation * 3000)(*[op[0]] * 3000)
program = one.load(many, [region(a) for a in kept[:3]])
import threading
def run(one, program, kept):  # its frame keeps them while the interpreter goes down
    one.run(program, 0, 3000)
threading.Thread(target=run, args=(one, program, kept), daemon=True).start()
"""
    )
    assert done.returncode == 0, done.stderr
