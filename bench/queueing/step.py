"""A decode step as the queueing model sees it: its launches, their bytes, and what their machine code says; no GPU.

Every kernel is compiled ahead of time for the device's compute capability, as a launch of the asked kind would have it,
and read once; what was read is kept in the user's cache by the hash of the kernels' sources and the compiler's version.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moegauge.bench.queueing.multiprocessor import PieceCost, Workload
from moegauge.bench.step.lowered import on_paper
from moegauge.errors import DeviceError
from moegauge.kernels import program as ir
from moegauge.shape import ModelShape

if TYPE_CHECKING:
    from moegauge.kernels.triton.inspect.compile_report import KernelCase
    from moegauge.kernels.triton.launching.launch import Launch

CAPABILITIES = {"H100": (9, 0), "H200": (9, 0), "B200": (10, 0)}
SHARED_PER_MULTIPROCESSOR = 233472  # bytes, compute capability 9.0 and 10.0 (CUDA C programming guide)


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """What a kernel's machine code says; see `moegauge.kernels.triton.inspect.machine_code.Way`.

    Attributes:
        registers, shared: per thread; bytes per program.
        way: the usual way through it.
        loop: cycles of a warp alone in one turn of its weight loop, or of its longest innermost loop.
        pipes: instructions of that turn by pipe.
    """

    registers: int
    shared: int
    way: dict[str, int]
    loop: int
    pipes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Laid:
    """A launch and the operation it belongs to."""

    kind: str
    bytes: float
    work: Workload


def read_code(job: tuple[KernelCase, int]) -> Code:
    """Compile a kernel and read it."""
    from moegauge.kernels.triton.inspect import machine_code
    from moegauge.kernels.triton.inspect.compile_report import compile_case, disassembled

    case, target = job
    usage, listing = disassembled(compile_case(case, target))
    code = machine_code.parse(listing)
    loops = code.weight_loops or sorted(machine_code.innermost(code.loops), key=lambda ab: ab[0] - ab[1])
    a, b = loops[0] if loops else (0, 0)
    return Code(
        registers=int(usage["REG"]),
        shared=int(usage["SHARED"]),
        way=asdict(machine_code.way(code)),
        loop=code.cycles(range(a, b)),
        pipes=dict(machine_code.pipes(code.text[a:b])),
    )


def case_of(launch: Launch, dependent: bool) -> KernelCase:
    """A launch as a kernel to compile ahead."""
    from moegauge.kernels.triton.inspect.compile_report import KernelCase
    from moegauge.kernels.triton.launching.signature import kind_of

    function = launch.kernel.fn
    types = {name: kind for name, value in launch.arguments.items() if (kind := kind_of(value))}
    name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
    constants = {**launch.constants, "PDL": dependent}
    label = json.dumps([name, types, constants, launch.warps, launch.stages, launch.maxnreg], sort_keys=True)
    return KernelCase(label, name, constants, types, launch.warps, launch.stages, maxnreg=launch.maxnreg)


class CodeBook:
    """Machine code read, by kernel and compute capability; kept between runs.

    Args:
        jobs: processes that compile.
        folder: where it is kept; None: the user's cache.
    """

    def __init__(self, jobs: int = 2, folder: Path | None = None) -> None:
        if os.environ.get("TRITON_INTERPRET"):
            raise DeviceError("TRITON_INTERPRET is set; predicting compiles kernels.", advice="Unset it.")
        home = folder or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moegauge"
        self._file, self._jobs = home / f"code-{_fingerprint()}.json", jobs
        kept = json.loads(self._file.read_text()) if self._file.exists() else {}
        self._known = {key: Code(**value) for key, value in kept.items()}

    def read(self, launches: Iterable[Launch], target: int, dependent: bool) -> list[Code]:
        """The code of each launch, in order; what is not known yet is compiled side by side."""
        cases = [case_of(launch, dependent) for launch in launches]
        keys = [f"{target} {case.name}" for case in cases]
        missing = {key: (case, target) for key, case in zip(keys, cases, strict=True) if key not in self._known}
        if missing:
            with ProcessPoolExecutor(self._jobs) as pool:
                self._known |= dict(zip(missing, pool.map(read_code, missing.values()), strict=True))
            self._file.parent.mkdir(parents=True, exist_ok=True)
            half = self._file.with_suffix(f".{os.getpid()}")
            half.write_text(json.dumps({key: asdict(one) for key, one in self._known.items()}))
            half.replace(self._file)
        return [self._known[key] for key in keys]


def _fingerprint() -> str:
    """A hash of all that what is read depends on beside a kernel's case: device code, options, reader, compiler."""
    import hashlib

    import triton

    from moegauge.kernels.triton import device
    from moegauge.kernels.triton.inspect import machine_code
    from moegauge.kernels.triton.launching import launch

    files = [*sorted(Path(device.__path__[0]).glob("*.py")), Path(machine_code.__file__), Path(launch.__file__)]
    digest = hashlib.sha256(triton.__version__.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def lay_out(
    shape: ModelShape, book: CodeBook, device: str, processors: int, *, batch: int, context: int, dependent: bool
) -> list[Laid]:
    """The launches of a step, in order."""
    major, minor = CAPABILITIES[device]
    program, lowered = on_paper(shape, batch=batch, context=context, processors=processors, capability=(major, minor))
    routes = {op.label: op for op in program.operations if isinstance(op, ir.Route)}
    every = [[one for one in several if one.enqueued] for several in lowered]
    codes = iter(book.read([one for several in every for one in several], 10 * major + minor, dependent))
    found = []
    for op, several in zip(program.operations, every, strict=True):
        distinct = _distinct(routes.get(ir.route_of(op)), batch)
        size = sum(w.bytes * (distinct if routed else 1.0) for w, routed in op.weights())
        size += op.kv_bytes if isinstance(op, ir.Attend | ir.State) else 0
        # What streams weights reads all of them; what only makes an input, or finishes, reads next to nothing.
        streams = [one for one in several if one.chunks] or several[-1:]
        for one in several:
            mine = size * (one.chunks or 1) / sum(s.chunks or 1 for s in streams) if one in streams else 0.0
            found.append(Laid(op.label.partition(": ")[2], mine, work_of(op, one, next(codes), mine, (major, minor))))
    return found


def _distinct(route: ir.Route | None, batch: int) -> float:
    """Experts expected to be distinct: E (1 - (1 - k/E)^B)."""
    return route.experts * (1.0 - (1.0 - route.top_k / route.experts) ** batch) if route else 0.0


def work_of(op: ir.Operation, launch: Launch, code: Code, size: float, capability: tuple[int, int]) -> Workload:
    """A launch of an operation that reads `size` bytes, for the model."""
    from moegauge.kernels.triton.launching.residency import resident

    given, constants, way = launch.arguments, launch.constants, code.way
    programs = 1
    for many in launch.grid:
        programs *= many
    fit = resident(code.registers, code.shared, launch.warps, SHARED_PER_MULTIPROCESSOR, capability)
    biases = sum(int(given.get(name) or 0) > 0 for name in BIASES)
    cold = min(biases + bool(constants.get("NORMALISED")), max(0, way["finish_all"] - 1)) if way["late_vectors"] else 0
    common: dict[str, Any] = {
        "kernel": launch.kernel.fn.__name__,
        "programs": programs,
        "warps": launch.warps,
        "resident": fit,
        "head": way["head"],
        "wait": way["wait_cycles"],
        "tail": way["tail"],
        "finish": way["finish"],
        "alone": way["whole"] or way["tail"] + way["finish"],
        "alone_loads": way["whole_loads"],
        "again": way["again"],
        "onward": way["onward"],
        "head_loads": way["head_loads"],
        "again_loads": way["again_loads"],
        "finish_loads": max(min(1, way["finish_loads"]), way["finish_loads"] - bool(cold)),
        "cold_loads": cold,
        "waits_first": bool(way["waits_first"]),
        "arrives": way["arrives"],
    }
    if not launch.chunks:
        return Workload(**common, chunk_bytes=size, chunk=PieceCost(alone=code.loop), turns=_turns(launch))
    # In a turn each warp of a program has a piece of its own; one left over in a row tile's last turn reads another's.
    matrix = next(w for w, _ in op.weights() if isinstance(w, ir.Weight))
    across, warps = int(constants["ACROSS"]), launch.warps
    length = math.ceil(given["tiles"] / (constants["TILES"] * across))
    piece = matrix.bytes / (matrix.rows // 16 * length * across)
    turns = max(1, round(size / piece / warps))
    down = isinstance(op, ir.ExpertsDown)
    units = matrix.rows // 16 * across // warps
    return Workload(
        **common,
        chunks=turns * warps,
        run=(max(1, round(turns / units)) if down else length) * warps,
        stream=length * warps,
        step=warps,
        whole=constants["BATCH1"] if down else isinstance(op, ir.ExpertsUp) or not constants["TOPK"],
        chunk_bytes=piece,
        chunk=PieceCost(alone=code.loop, pipes=tuple(code.pipes.items())),
    )


BIASES = ("length0", "length1", "length2", "gate_length", "up_length", "length")


def _turns(launch: Launch) -> int:
    """Times a program goes through a loop of two loads in turn: blocks of an attention's cache."""
    if "per_split" in launch.arguments:
        tokens = min(int(launch.arguments["length"]), int(launch.arguments["per_split"]))
        return math.ceil(tokens / int(launch.constants["BLOCK"]))
    return 0
