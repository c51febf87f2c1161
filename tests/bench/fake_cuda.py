"""A made-up CUDA device that runs `moegauge` without a GPU and holds its users to CUDA's rules.

Tensors on `cuda` lie on the CPU, launches are counted, not executed; streams, events, graphs and compiled kernels are
stand-ins. What kernels compute is tested elsewhere; here every line of Python that needs a GPU is run. Run by
test_fake_cuda.py in a process of its own, since TRITON_INTERPRET must be set before Triton is imported: then no kernel
asks for a driver.

    python fake_cuda.py FAULT ARGUMENTS OF MOEGAUGE ...

FAULT breaks one thing on purpose: `none`; `compile` (a kernel that Triton refuses), `killed` (a kernel at which the
process is killed, as one that never ends is); or KIND@STAGE, in one stage of the suite only: `hang` (the process is
killed at a launch, every time it comes there), `wrong` (an answer outside its bound), `lost` (the device stops
answering), `compile`, `room` (no memory). What the device saw is printed as one JSON line at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "kernels", "triton"))  # noqa: PTH100, PTH118, PTH120

import interpreted  # makes the interpreter quicker, too
import torch
from torch.overrides import TorchFunctionMode
from triton.errors import TritonError
from triton.runtime import interpreter

FAULT, _, WHERE = sys.argv[1].partition("@")
seen = dict.fromkeys(("launches", "pdl", "captures", "replays", "captured_in_time", "compiled"), 0)
state = types.SimpleNamespace(capture=None, timing=False, warm=set(), now=0.0, executed=0, stage="", lost=False)


def strikes(kind: str) -> bool:
    """Whether a fault of this kind is to happen now."""
    return kind == FAULT and bool(WHERE) and state.stage == WHERE


class OnCpu(TorchFunctionMode):
    """`cuda` becomes `cpu` wherever a device is named."""

    def __torch_function__(self, function, kinds, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        if getattr(function, "__name__", "") == "to":
            args = tuple("cpu" if isinstance(a, str) and a.startswith("cuda") else a for a in args)
        return function(*args, **kwargs)


class Stream:
    def wait_stream(self, other) -> None:
        assert state.capture is None, "a stream is waited for within a capture"


class Event:
    """Time on this device passes by launches: 1 ms each."""

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at, state.timing = state.now, not state.timing

    def synchronize(self) -> None:
        synchronize()

    def elapsed_time(self, other) -> float:
        return 1e3 * (other.at - self.at)


class CUDAGraph:
    def __init__(self) -> None:
        self.launches = 0

    def replay(self) -> None:
        seen["replays"] += 1
        execute(max(1, self.launches))


@contextlib.contextmanager
def graph(made):
    synchronize()
    seen["captures"] += 1
    seen["captured_in_time"] += state.timing
    state.capture = made
    try:
        yield
    finally:
        state.capture = None


def synchronize() -> None:
    assert state.capture is None, "synchronised within a capture"
    if state.lost:
        raise RuntimeError("CUDA error: unspecified launch failure")


class Compiled:
    """What Triton compiled: as much as is asked of it."""

    def __init__(self, name: str) -> None:
        self.hash, self.asm = name, {"cubin": b""}
        self.metadata = types.SimpleNamespace(shared=1024)

    def _init_handles(self) -> None:
        self.n_regs = 168


def execute(launches: int) -> None:
    """Launches on the device."""
    state.executed += launches
    state.now += 1e-3 * launches


def install() -> None:
    """Put the device in place of PyTorch's and Triton's."""
    OnCpu().__enter__()
    cuda = torch.cuda
    properties = types.SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=4, L2_cache_size=1 << 10,
        shared_memory_per_multiprocessor=233472, total_memory=1 << 27,
    )  # fmt: skip
    changes = {
        "is_available": lambda: True, "get_device_properties": lambda *_: properties, "synchronize": synchronize,
        "get_device_capability": lambda *_: (9, 0), "mem_get_info": lambda *_: (1 << 27, 1 << 27), "graph": graph,
        "Stream": Stream, "current_stream": Stream, "stream": lambda _: contextlib.nullcontext(), "Event": Event,
        "set_stream": lambda _: None, "CUDAGraph": CUDAGraph,
    }  # fmt: skip
    for name, value in changes.items():
        setattr(cuda, name, value)

    def launch(kernel, *args, grid, warmup, **kwargs):
        name = kernel.__name__
        if strikes("compile") or (FAULT == "compile" and not WHERE and name == "experts_down"):
            raise TritonError("PTXAS error: ptxas died\nmore lines")
        dependent = bool(kwargs.pop("launch_pdl", False))
        if warmup:
            seen["compiled"] += 1
            return Compiled(name)
        seen["launches"] += 1
        if strikes("hang"):
            os._exit(9)
        if strikes("lost") or state.lost:
            state.lost = True
            raise RuntimeError("CUDA error: unspecified launch failure")
        seen["pdl"] += dependent
        key = name, str(sorted((k, v) for k, v in kwargs.items() if not hasattr(v, "data_ptr") and k.isupper()))
        assert state.capture is None or key in state.warm, f"{name} would be loaded within a capture"
        state.warm.add(key)
        if FAULT == "killed" and dependent and name == "experts_down":
            os._exit(9)
        if state.capture is not None:
            state.capture.launches += 1
        else:
            execute(1)
        return Compiled(name)

    interpreter.InterpretedFunction.run = launch


def small_suite() -> None:
    """The gpu suite's stages on one made-up model, a roof of a few patterns, and no other peers than PyTorch's."""
    from dataclasses import replace

    from moegauge import machine, models, nvml
    from moegauge.bench.clock import boundaries, roof
    from moegauge.bench.plan import smoke, suites
    from moegauge.bench.plan.gpu_suite import Stage
    from moegauge.bench.plan.points import Row
    from moegauge.bench.run import staged_run
    from moegauge.bench.step import build
    from moegauge.errors import NumericsError
    from moegauge.kernels.triton import backend
    from moegauge.kernels.triton.inspect import compile_report
    from moegauge.kernels.triton.launching import launch, precompile, signature
    from moegauge.kernels.triton.lowering import registers

    def check(kernel, arguments, device, real=signature.check):
        real(kernel, arguments, "cpu")

    def tables(self, op, batch, device, real=registers.RouteTables.__init__):
        real(self, op, batch, device)
        self.distinct.fill_(self.most(batch))

    def gate(self, lap, i, rng, samples):
        lap.run_operation(i)
        # `dependent`: right in the smoke tests, wrong in the first whole step launched dependently.
        if strikes("wrong") or (
            (FAULT, WHERE, lap._mode) == ("wrong", "dependent", "pdl") and "smoke" not in state.stage
        ):
            raise NumericsError("made-up step: output 0 of token 0 is wrong.")
        return 1e-6

    def memory(self, pools, seed=0, real=backend.TritonBackend.arena):
        if strikes("room"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64 GiB")
        return real(self, pools, seed)

    def buffer(self, size, real=backend.TritonBackend._stream_buffer):
        if strikes("room"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(self, size)

    def passing(self, real=staged_run.StageRun._stages):
        for stage in real(self):
            state.stage = stage.name
            yield stage

    def whole(lap, before, synchronize):
        for name, values in before.items():
            lap.write(name, values)
        run_once(lap)
        synchronize()
        return ""

    def run_once(lap):
        start, steps = state.executed, lap.kernels_per_step
        steps += len(lap._before) if lap._stale else 0
        lap.run()
        assert state.executed - start == steps, "a run is not one step"

    def warm(lap, ranges=(), real=backend.TritonRunnable.warm):
        if not lap._graphs:
            run_once(lap)
        real(lap, ranges)

    launch.check, registers.RouteTables.__init__ = check, tables
    build.DecodeStep._judge, build.disagreement, backend.TritonRunnable.warm = gate, whole, warm
    backend.TritonBackend.arena, backend.TritonBackend._stream_buffer = memory, buffer
    staged_run.StageRun._stages = passing
    smoke.HIDDEN, smoke.INNER, smoke.VOCABULARY, smoke.REPEATS = 128, 64, 64, 2
    staged_run.SMOKE_ARENA = 1 << 24
    precompile.build_launchers = lambda kernels, workers=0: None
    backend.SWEEP_WIDTHS, backend.SWEEP_UNROLLS, backend.SWEEP_WARPS = (16,), (1, 2), (4,)
    roof.PASS_BYTES = {"triton": 1 << 16}
    boundaries.LENGTHS, boundaries.ROUNDS = (2, 6), 2
    compile_report.inspect = lambda cubin, case, target: compile_report.Report(
        case.name, 90, 64, 1024, 0, 1.0, 2.0, 3.9
    )
    nvml.first_gpu = lambda: None  # what PyTorch tells must do
    precompile.MAX_WORKERS = 2
    machine.load_average = lambda: 0.0
    stages = (
        Stage("smoke tests", "smoke", ""),
        Stage("roof", "roof", ""),
        Stage("floors", "floors", ""),
        Stage("first steps", "decode", "", (Row(("moe",)),), launch_mode="graph"),
        Stage("whole steps", "decode", "", (Row(("moe", "dense")),)),
        Stage("kernels", "kernel", "", (Row(("moe",)),), 0.01),
        Stage("launch modes", "launch modes", "", (Row(("moe",)),)),
        Stage("batch curve", "decode", "", (Row(("dense",), ("bf16",), (2,), (3,)),)),
        Stage("roof sweep", "sweep", ""),
        Stage("peers", "peers", "", (Row(("moe",), ("bf16",)),), 0.01),
    )
    rows = tuple(row for stage in stages for row in stage.rows)
    suites.SUITES["gpu"] = suites.Suite(rows, 0.01, "", stages, 1e9, 1e-6, 1e-6, 2)
    made = {"moe": interpreted.shape("mxfp4", "mla", 64, 128), "dense": interpreted.shape("fp8", "gqa", 64, 128)}
    models.resolve = lambda name: replace(made[name], name=name)


if __name__ == "__main__":
    install()
    small_suite()
    from moegauge import cli

    code = 0
    try:
        cli.main(sys.argv[2:])
    except SystemExit as stop:
        code = stop.code or 0
    sys.stdout.write(f"\n{json.dumps(seen)}\n")
    sys.exit(code)
