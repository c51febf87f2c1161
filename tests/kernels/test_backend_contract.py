"""What a new device must write, and that writing so much is enough: a third backend in as few lines as may be."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
from numpy.typing import NDArray

from moegauge import cli
from moegauge.errors import UnknownNameError
from moegauge.formats import FORMATS
from moegauge.kernels import backend as contract
from moegauge.kernels import devices
from moegauge.kernels.cpu.backend import CpuBackend
from moegauge.kernels.numpy_backend import NumpyArena, NumpyBackend, NumpyRunnable
from moegauge.kernels.program import Choice, Program, Weight

ROOT = Path(__file__).resolve().parents[2]
# What a third backend writes; everything else has a meaning when it is not written.
MUST = {
    contract.Backend: {
        *("memory", "precision", "arena", "compile", "streams", "synchronize", "time"),
        *("name", "description", "last_level_cache", "threads", "matrix_formats"),
    },
    contract.Arena: {"read", "close", "pools"},
    contract.Runnable: {"run_range", "run_operation", "read", "write", "choice", "forget", "program"},
    contract.Stream: {"run", "bytes", "pattern", "shape"},
}
MAY = {
    contract.Backend: {"launch_mode", "launch_modes", "on", "chains", "chain", "sweep", "usual_arena", "isa", "cuts"},
    contract.Arena: set(),
    contract.Runnable: {"run", "run_cut", "warm", "launches"},
    contract.Stream: set(),
}


def members(kind: type) -> tuple[set[str], set[str]]:
    """(what a derived class must give, what it may)."""
    attributes = {name for base in kind.__mro__ for name in inspect.get_annotations(base)}
    methods = {
        name
        for base in kind.__mro__
        for name, value in base.__dict__.items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }
    valued = {name for name in attributes if any(name in base.__dict__ for base in kind.__mro__)}
    must = set(kind.__abstractmethods__) | (attributes - valued)  # type: ignore[attr-defined]
    return must, (methods | attributes) - must


@pytest.mark.parametrize("kind", MUST, ids=lambda kind: kind.__name__)
def test_the_contract_is_this_and_no_more(kind: type) -> None:
    assert members(kind) == (MUST[kind], MAY[kind])
    for name in MUST[kind] | MAY[kind]:
        value = inspect.getattr_static(kind, name, None)
        if callable(value) or isinstance(value, property):
            assert inspect.getdoc(value), f"{kind.__name__}.{name} says nothing"
        else:
            assert f"{name}:" in "".join(inspect.getdoc(base) or "" for base in kind.__mro__), f"{name} says nothing"


class ThirdArena(contract.Arena):
    """Pools in memory."""

    def __init__(self, pools: Mapping[str, int], seed: int) -> None:
        self.pools, self.held = dict(pools), NumpyArena(pools, seed)

    def read(self, pool: str, offset: int, size: int, within: Weight | None = None) -> NDArray[np.uint8]:
        return self.held.read(pool, offset, size, within)

    def close(self) -> None:
        self.held.close()


class ThirdRunnable(contract.Runnable):
    """Runs by somebody else's arithmetic."""

    def __init__(self, program: Program, arena: ThirdArena) -> None:
        self.program, self.held = program, NumpyRunnable(program, arena.held, np.float32)

    def run_range(self, first: int, last: int) -> None:
        for index in range(first, last):
            self.held.run_operation(index)

    def run_operation(self, index: int) -> None:
        self.held.run_operation(index)

    def read(self, register: str) -> NDArray[np.float32]:
        return self.held.read(register)

    def write(self, register: str, values: NDArray[np.float32]) -> None:
        self.held.write(register, values)

    def choice(self, route: str) -> Choice:
        return self.held.choice(route)

    def forget(self) -> None:
        self.held.forget()


class ThirdStream(contract.Stream):
    """One sum."""

    pattern = "one sum"
    shape: Mapping[str, int] = {}

    def __init__(self, size: int) -> None:
        self.bytes, self.words = size // 8 * 8, np.ones(size // 8, np.uint64)

    def run(self) -> None:
        np.bitwise_xor.reduce(self.words)


class ThirdBackend(contract.Backend):
    """Everything a device must write, and nothing it may."""

    name, description, last_level_cache, threads = "third", "a third device", 1 << 12, 0
    matrix_formats = frozenset(FORMATS)
    memory = 1 << 28

    def precision(self, format_name: str) -> contract.Precision:
        return contract.Precision(per_term=2.0**-24)

    def arena(self, pools: Mapping[str, int], seed: int = 0) -> ThirdArena:
        return ThirdArena(pools, seed)

    def compile(self, program: Program, arena: contract.Arena) -> ThirdRunnable:
        assert isinstance(arena, ThirdArena)
        return ThirdRunnable(program, arena)

    def streams(self, size: int) -> list[contract.Stream]:
        return [ThirdStream(min(size, 1 << 20))]

    def synchronize(self) -> None:
        pass

    def time(self, function: Callable[[], None]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs a command on the third device; its JSON document."""
    from moegauge.bench.plan import gpu_suite, points, suites
    from moegauge.bench.step import build

    replace(made_up.decoder(), name="mine").save(tmp_path / "mine.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "get_backend", lambda *_, **__: ThirdBackend())
    monkeypatch.setattr(build, "MINIMUM_ARENA", 1 << 16)
    row = (points.Row(("mine.json",)),)
    stages = tuple(gpu_suite.Stage(kind, kind, "", row) for kind in ("sweep", "floors", "decode", "launch modes"))
    monkeypatch.setitem(suites.SUITES, "gpu", suites.Suite(row, 0.05, "", stages, 1e9, 1e-3, 1e-3, 2))

    def run(*words: str) -> Any:
        argv = [*words, "--device", "cpu", "--out", "r.json", "--time-limit", "0.05", "--min-samples", "3"]
        monkeypatch.setattr("sys.argv", ["moegauge", *argv])
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert not stop.value.code
        return json.loads((tmp_path / "r.json").read_text())

    return run


def test_a_backend_that_writes_so_much_passes_bench_decode(third: Any) -> None:
    record = third("bench", "decode", "--model", "mine.json", "--format", "native,mxfp4", "--batch", "1,2")
    assert [(c["backend"], c["format"], c["batch"]) for c in record["cases"]] == [
        *(("third", "native", 1), ("third", "native", 2), ("third", "mxfp4", 1), ("third", "mxfp4", 2))
    ]
    assert all(c["max_relative_error"] < 1e-5 for c in record["cases"])
    assert record["complete"]


def test_a_suite_says_what_such_a_backend_does_not_have(third: Any) -> None:
    record = third("bench", "--suite", "gpu")
    assert [c["model"] for c in record["cases"]] == ["mine"]
    assert {(one["stage"], one["reason"]) for one in record["left_out"]} == {
        ("floors", "unavailable"), ("launch modes", "unavailable")
    }  # fmt: skip


def test_what_a_backend_does_not_write_is_refused_by_name() -> None:
    third = ThirdBackend()
    assert third.launch_modes == ("",)
    with pytest.raises(UnknownNameError, match="launch mode 'graph'"):
        third.on("graph")
    with pytest.raises(UnknownNameError, match="boundary 'pdl'"):
        third.chain("pdl", 4)


@pytest.mark.parametrize("backend", [CpuBackend, lambda: NumpyBackend("reference")], ids=["cpu", "reference"])
def test_ranges_that_follow_each_other_give_what_a_whole_run_gives(backend: Any) -> None:
    from moegauge.bench.step.build import build_step
    from moegauge.kernels.cpu.core import library

    if backend is CpuBackend and library() is None:
        pytest.skip("no compiled core")
    step = build_step(made_up.decoder(), backend(), arena_bytes=1 << 24, reuse=0.0)
    (lap, *_) = step._laps
    before = {name: lap.read(name) for name in lap.program.registers}
    lap.run()
    whole = {name: lap.read(name) for name in lap.program.registers}
    for name, values in before.items():
        lap.write(name, values)
    count = len(lap.program.operations)
    cuts = [0, 1, count // 3, count // 2, count]
    for first, last in itertools.pairwise(cuts):
        lap.run_range(first, last)
    assert all(np.array_equal(lap.read(name), values) for name, values in whole.items())


# Objects of others, asked whether they have what only some releases or platforms have.
FOREIGN = {
    ("nvml.py", "function"), ("nvml.py", "L2_cache_size"), ("nvml.py", "memory_clock_rate"),
    ("nvml.py", "memory_bus_width"), ("machine.py", "sysconf"),
    ("shape.py", "__dataclass_fields__"), ("torch_cpu.py", "operator"),
    ("torch_cuda.py", "function"), ("llama_cpp.py", "load_mode"), ("cpu/backend.py", "MADV_HUGEPAGE"),
    ("triton/backend.py", "shared_memory_per_multiprocessor"), ("launch.py", "__name__"), ("profile.py", "__name__"),
    ("signature.py", "dtype"), ("precompile.py", "data_ptr"),
    ("gpu_session.py", "stderr"), ("make_packed_headers.py", "shape"), ("make_packed_headers.py", "to_quantized"),
    ("make_family_headers.py", "f'MODEL_FOR_{name}_MAPPING'"),
}  # fmt: skip


def test_nobody_looks_for_a_capability_the_contract_does_not_name() -> None:
    """`getattr` with a default and `hasattr` ask what a thing can do; of our own things the contract says it."""
    seen = set()
    for room in ("bench", "kernels", "counting", "estimator", "src", "scripts"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                    continue
                asks = node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
                if not asks:
                    continue
                asked = node.args[1]
                name = asked.value if isinstance(asked, ast.Constant) else ast.unparse(asked).removeprefix("self.")
                known = {one for one in FOREIGN if path.as_posix().endswith(f"/{one[0]}") and one[1] == name}
                assert known, f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
                seen |= known
    assert len(seen) >= len(FOREIGN) - 1, FOREIGN - seen
