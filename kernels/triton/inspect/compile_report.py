"""Compile every kernel ahead of time without a GPU; report registers, spills and instructions.

Registers, stack and shared memory are the assembler's own report; instructions are counted in the disassembly between
a loop's label and its backward branch. Triton ships the assembler and both disassemblers.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moegauge.kernels.triton.inspect.machine_code import innermost, parse
from moegauge.kernels.triton.inspect.rules import Broken, early_reads, judge
from moegauge.kernels.triton.launching.launch import (
    BATCH_REGISTERS,
    OPTIONS,
    REGISTERS,
    ROUTER_EXPERTS,
    WARPS,
)
from moegauge.kernels.triton.launching.signature import POINTERS
from moegauge.kernels.triton.lowering import layout
from moegauge.kernels.triton.lowering.configuration import cut

TARGETS = (80, 89, 90, 100)
# Lane instructions per weight that still keep up with 4.25 TB/s on 132 multiprocessors at 1.98 GHz: 16.3 bytes a
# clock each against 128 lanes, for two weights a byte, one, and half of one.
BUDGETS = {4: 3.9, 8: 7.8, 16: 15.7}


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One kernel with its constants.

    Attributes:
        name: for the table.
        kernel: `module.function` under `moegauge.kernels.triton.device`; "" for an assembled source.
        constants: every constexpr.
        types: parameters whose type is not the usual one of their name.
        warps, stages: `num_warps`, `num_stages`.
        loops: formats of its weight loops; empty for kernels that stream no tiles.
        chunk: tiles one turn of a weight loop multiplies.
        per_turn: for a kernel without tiles, the weights one turn of its longest loop gives each lane; it is counted
            and held to no budget.
        maxnreg: most registers per thread; 0 leaves it to the assembler.
        access: bytes every load of a lane must bring; 0 is not checked.
        stack: bytes it may spill outside its weight loops.
        drops: times it may drop the multiprocessor's L1.
    """

    name: str
    kernel: str
    constants: dict[str, Any]
    types: dict[str, str] = field(default_factory=dict)
    warps: int = 1
    stages: int = 1
    loops: tuple[str, ...] = ()
    chunk: int = 4
    per_turn: int = 0
    maxnreg: int = 0
    access: int = 0
    stack: int = 0
    drops: int = 0

    @property
    def single(self) -> bool:
        """Whether it is for a single token: at most eight in its tensor-core products, one of them there."""
        given = self.constants
        return bool(given.get("FEW", 1) == 1 and given.get("NT", 8) == 8 and given.get("BATCH1", True))

    @property
    def walks(self) -> tuple[tuple[str, int], ...]:
        """(format, tiles one turn multiplies) of every weight loop it may have."""
        return tuple((f, 4 if i else self.chunk) for i, f in enumerate(self.loops))


@dataclass(frozen=True, slots=True)
class Report:
    """What a case compiled to.

    Attributes:
        case, target: what was compiled.
        registers, shared, stack: per thread, bytes per program, bytes per thread.
        wide_loads: bytes that 16-byte loads bring per byte of weights in the weight loops; 1 means all weights.
        per_weight: lane instructions per weight of the weight loop nearest to its budget; 0 without one.
        budget: what `per_weight` may be; 0 without one.
        access, wanted: bytes of a lane's narrowest load, and what it must bring; 0 where that is not checked.
        allowed: bytes of stack it may have, outside its loops.
        spilled: instructions of its weight loops that spill.
        weight_loops: how many weight loops it has.
        drops: times it drops the L1, beyond those it may.
        broken: rules it breaks (`moegauge.kernels.triton.inspect.rules`), each as its fields.
    """

    case: str
    target: int
    registers: int
    shared: int
    stack: int
    wide_loads: float
    per_weight: float
    budget: float
    access: int = 0
    wanted: int = 0
    allowed: int = 0
    spilled: int = 0
    weight_loops: int = 0
    drops: int = 0
    broken: tuple[tuple[str, float, float, float, str], ...] = ()

    @property
    def breaks(self) -> list[Broken]:
        """The rules it breaks, those it may for now among them."""
        return [Broken(*one) for one in self.broken]

    @property
    def fault(self) -> str:
        """What is wrong with it, in words; empty when nothing is."""
        if self.stack > self.allowed or self.spilled:
            return f"spills {self.stack} bytes" + (f", {self.spilled} times in a loop" if self.spilled else "")
        if over := [str(one) for one in self.breaks if one.fault]:
            return "; ".join(over)
        if self.drops:
            return "drops the L1, and the input its programs share with it"
        if self.access != self.wanted:
            return f"loads {self.access} bytes at a time, not {self.wanted}"
        if self.budget and self.wide_loads < 1:
            return "loads weights narrower than 16 bytes"
        if self.budget and self.per_weight > self.budget:
            return f"{self.per_weight:.2f} instructions per weight, over {self.budget}"
        return ""


def _common(quad: bool) -> dict[str, Any]:
    return {"QUAD": quad, "ASM": True}


EXPERT_STACK = 32  # bytes the expert kernels may spill outside their loops: 8 to 32 elsewhere, none on 9.0
BATCH_STACK = 128  # bytes a kernel that multiplies 16 tokens or more at a time may spill, outside its loops


# What else a single token's product does: its input was normalised as it was written, it is the router, it writes the
# residual.
ROLES: dict[str, dict[str, Any]] = {
    "": {},
    "normalised": {"TILES2": 512},
    "router": {"TILES2": 512, "TOPK": 8, "E2": 256},
    "router of 512": {"TILES2": 512, "TOPK": 8, "E2": 512},
    "residual": {"NORMALISED": True, "ACCUMULATE": True},
}


def product_case(
    format: str, quad: bool, columns: int = 7168, tokens: int = 8, dependent: bool = False, role: str = ""
) -> KernelCase:
    """The dense product of one format, in one of `ROLES`."""
    plan = cut(format, columns)
    constants = {
        "FORMAT": format, "NT": tokens, "FEW": {8: 1}.get(tokens, tokens), "UNROLL": 32 if tokens == 8 else 1,
        **plan.constants,
        "PDL": dependent, "GATED": False, "SILU": False, "ACCUMULATE": False, "SHADOW": True, "TILES2": 0,
        "NORMALISED": False, "TOPK": 0, "E2": 1, **_common(quad), **ROLES[role],
    }  # fmt: skip
    name = f"product {format}, {columns} columns, " + (role or f"{tokens} tokens") + (", pdl" if dependent else "")
    loops = (format,) if tokens == 8 else ()  # more tokens add work per weight, not per byte: no budget
    many = tokens == 64 or constants["E2"] > ROUTER_EXPERTS
    most, stack = BATCH_REGISTERS if many else REGISTERS, BATCH_STACK if tokens > 8 else 0
    return KernelCase(
        name, "product.product", constants, {"slope": "fp32"}, WARPS, loops=loops, chunk=plan.chunk, maxnreg=most,
        stack=stack, drops=2 * int(constants["TOPK"] > 0),
    )  # fmt: skip


def expert_cases(
    format: str, shared: str, columns: int, top_k: int, quad: bool, dependent: bool, alone: bool = True, tokens: int = 8
) -> Iterator[KernelCase]:
    """The two expert kernels of a model, for a single token or several (`tokens` of one expert at a time)."""
    constants = {
        "FORMAT": format, "SHARED": shared, "TOPK": top_k, "NT": tokens, "SHARED_TILES": 4, "SHARED_RAGGED": 0,
        "PDL": dependent, "SHADOW": True, **_common(quad),
    }  # fmt: skip
    sides, whole = cut(format, columns, WARPS // 2), cut(format, columns, WARPS)
    loops = ((format, shared) if shared else (format,)) if tokens == 8 else ()
    tail = f" {format}" + (f" + {shared}" if shared else "") + f", {columns} columns"
    tail += ("" if alone else f", {tokens} tokens") + (", pdl" if dependent else "")
    few = {"FEW": 1, "UNROLL": 8} if alone else {"FEW": tokens, "UNROLL": 1}
    up = {**constants, **sides.constants, "EARLY": True, "GATED": True, **few, "TILES2": 512 if alone else 0}
    down = {
        **constants,
        **whole.constants,
        "BATCH1": alone,
        "NORMALISED": alone,
        "TOPK2": 1 << (top_k - 1).bit_length(),
        "UNROLL": 32,
    }
    for name, kernel, given in (("up", "experts_up.experts_up", up), ("down", "experts_down.experts_down", down)):
        yield KernelCase(
            f"experts {name}{tail}", kernel, given, warps=WARPS, loops=loops, chunk=whole.chunk,
            maxnreg=REGISTERS if tokens < 16 else BATCH_REGISTERS, stack=BATCH_STACK if tokens > 8 else EXPERT_STACK,
        )  # fmt: skip


def small_cases(dependent: bool) -> Iterator[KernelCase]:
    """Everything that streams no weight tiles."""
    d = {"PDL": dependent}
    tail = ", pdl" if dependent else ""
    finish = {"NT": 8, "GATED": True, "SILU": False, "ACCUMULATE": False, "SHADOW": True, **d}
    yield KernelCase("product finish" + tail, "product.product_finish", finish)
    yield KernelCase(
        "experts up finish" + tail, "experts_up.experts_up_finish", {"TOPK": 8, "GATED": True, "SHADOW": True, **d}
    )
    down = {"TOPK": 8, "SHARED": True, "SHADOW": True, **d}
    yield KernelCase("experts down finish" + tail, "experts_down.experts_down_finish", down)
    choose = {"TOPK": 8, "E2": 512, **d}
    yield KernelCase("choose, one token" + tail, "route.choose", {**choose, "BATCH1": True}, {"slope": "fp32"}, warps=4)
    yield KernelCase("choose" + tail, "route.choose", {**choose, "BATCH1": False}, {"slope": "fp32"}, warps=4)
    yield KernelCase("group" + tail, "route.group", {"TOPK": 8, "E2": 512, "P2": 512, **d}, warps=4)
    types = {"x": "*fp32", "out": "*bf16"}
    yield KernelCase("prepare" + tail, "prepare.prepare", {"NORM": True, "BLOCK": 2048, **d}, types, warps=8)
    bytes_ = {"w_pool": "*u8", "s_pool": "*u8"}
    yield KernelCase("embed bf16" + tail, "prepare.embed", {"FORMAT": "bf16", "BLOCK": 512, **d}, bytes_, warps=4)
    yield KernelCase("state" + tail, "prepare.state", {"BLOCK": 128, **d}, {"x": "*fp32"}, warps=4)
    for name in ("f32", "bf16", "fp8", "mxfp4"):
        plain = {"FORMAT": name, "CHOICES": 1, "ROUTED": False, "BLOCK": 1024, **d}
        yield KernelCase(f"plain {name}" + tail, "plain.plain", plain, bytes_, warps=4, per_turn=8)
    for fp8 in (False, True):
        cache = {"keys": "*u8", "values": "*u8"} if fp8 else {}
        kind = "fp8" if fp8 else "bf16"
        attend = {"FP8": fp8, "ASM": True, "SHADOW": True, **d}
        gqa = {
            "MLA": False, "HEADS": 16, "KEY": 128, "KEY2": 128, "VALUE": 128, "VALUE2": 128, "ROPE": 0, "ROPE2": 16,
            "BLOCK": 64, **attend,
        }  # fmt: skip
        mla = {
            "MLA": True, "HEADS": 32, "KEY": 512, "KEY2": 512, "VALUE": 512, "VALUE2": 512, "ROPE": 64, "ROPE2": 64,
            "BLOCK": 32, **attend,
        }  # fmt: skip
        types = {"scale": "fp32", **cache}
        yield KernelCase(f"attention gqa {kind}" + tail, "attention.attention", gqa, types, warps=4)
        yield KernelCase(f"attention mla {kind}" + tail, "attention.attention", mla, types, warps=8)
    if not dependent:
        wide = {"out": "*i32", "words": "i64"}
        for width in (4, 8, 16):
            for unroll in (1, 4, 8, 16):
                stream = {"BLOCK": 64 * width, "UNROLL": unroll, **d}
                name = f"stream, {unroll} loads of {width} bytes"
                yield KernelCase(name, "stream.stream", stream, wide, warps=8, access=width)
    yield KernelCase("node" + tail, "empty.node", d, {"out": "*i32"}, warps=4)
    yield KernelCase("node, count-in" + tail, "empty.counted_node", d, {"out": "*i32"})


def cases(target: int, quad: bool) -> Iterator[KernelCase]:
    """Every kernel a step of the shipped models launches on `target`; dependent launches from 9.0 on."""
    modes = (False, True) if target >= 90 else (False,)
    for name in sorted(layout.TILED_FORMATS):
        yield product_case(name, quad)
    for tokens in (16, 32, 64):
        yield product_case("bf16", quad, tokens=tokens)
        yield product_case("fp8", quad, tokens=tokens)
    yield product_case("mxfp4", quad, columns=2880)
    for dependent in modes:
        if dependent:
            yield product_case("bf16", quad, dependent=True)
            yield product_case("fp8", quad, dependent=True)
        for role in ("normalised", "router", "router of 512", "residual"):
            yield product_case("bf16", quad, dependent=dependent, role=role)
        for role in ("normalised", "residual"):
            yield product_case("fp8", quad, dependent=dependent, role=role)
        yield from expert_cases("mxfp4", "", 2880, 4, quad, dependent)
        yield from expert_cases("fp8", "fp8", 7168, 8, quad, dependent)
        yield from expert_cases("fp8", "fp8", 7168, 8, quad, dependent, alone=False)
        yield from small_cases(dependent)
    yield from expert_cases("int4", "bf16", 7168, 8, quad, False)
    yield from expert_cases("nvfp4", "", 7168, 8, quad, False)
    yield from expert_cases("mxfp8", "mxfp8", 7168, 8, quad, False)
    yield from expert_cases("mxfp4", "", 2880, 4, quad, False, alone=False, tokens=16)
    yield from expert_cases("fp8", "fp8", 5120, 8, quad, False, alone=False, tokens=16)


def _kernel(path: str) -> Any:
    import importlib

    module, name = path.split(".")
    return getattr(importlib.import_module(f"moegauge.kernels.triton.device.{module}"), name)


def compile_case(case: KernelCase, target: int) -> bytes:
    """The machine code (cubin) of a case."""
    return compile_both(case, target)[0]


def compile_both(case: KernelCase, target: int) -> tuple[bytes, str]:
    """The machine code (cubin) of a case, and its PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = _kernel(case.kernel)
    signature, attributes = {}, {}
    constants = {k: v for k, v in case.constants.items() if k in kernel.arg_names}
    for i, name in enumerate(kernel.arg_names):
        kind = case.types.get(name, POINTERS.get(name, ("i32",))[0])
        signature[name] = "constexpr" if name in constants else kind
        if signature[name].startswith("*"):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    options: dict[str, Any] = {**OPTIONS, "num_warps": case.warps, "num_stages": case.stages}
    if case.maxnreg:
        options["maxnreg"] = case.maxnreg
    if case.constants.get("PDL"):
        options["launch_pdl"] = True
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    return bytes(compiled.asm["cubin"]), str(compiled.asm["ptx"])


def _tool(name: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *arguments], check=True, capture_output=True, text=True).stdout  # noqa: S603


def report(case: KernelCase, target: int) -> Report:
    """Compile a case and read its machine code."""
    cubin, ptx = compile_both(case, target)
    names = [name for name in _kernel(case.kernel).arg_names if name not in case.constants]
    early = early_reads(ptx, names) if case.constants.get("PDL") else set()
    return inspect(cubin, case, target, early)


def disassembled(cubin: bytes) -> tuple[dict[str, str], str]:
    """(resources by the assembler's names, listing with codes) of a machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", _tool("cuobjdump", "-res-usage", str(path))))
        return usage, _tool("nvdisasm", "-c", "-hex", str(path))


def inspect(cubin: bytes, case: KernelCase, target: int, early: Iterable[str] = ()) -> Report:
    """Read the machine code of a case, compiled ahead or on a GPU; `early` as `rules.early_reads` found it."""
    usage, listing = disassembled(cubin)
    code = parse(listing)
    found, loops = list(code.text), list(code.loops)
    held = []  # weight loops with the weights of a turn and lane, and their budget
    stack = int(usage["STACK"]) + int(usage["LOCAL"]) + (0 if case.stack else _spills(found))
    products = [(a, b) for a, b in innermost(loops) if any("HMMA" in i for i in found[a:b])]
    # Each innermost loop with tensor-core products is a weight loop (but attention's: only weights are to be evicted
    # first); the one nearest to its own budget is reported.
    weight_loops = [(a, b) for a, b in products if case.loops and any(".EF" in i for i in found[a:b])]
    per_weight, wide, budget = 0.0, 0.0, 0.0
    if case.per_turn:
        per_weight = max(b - a for a, b in innermost(loops)) / case.per_turn
    if case.loops:
        budget, worst = BUDGETS[min(_bits(f) for f in case.loops)], 0.0
        wide = 1.0 if weight_loops else 0.0
        for a, b in weight_loops:
            body = found[a:b]
            chunk, found_format = _identify(body, case)
            weights = chunk * layout.TILE_BYTES * 8 // _bits(found_format) / 32
            allowed = BUDGETS[_bits(found_format)]
            held.append(((a, b), weights, allowed))
            if (b - a) / weights / allowed > worst:
                worst, per_weight, budget = (b - a) / weights / allowed, (b - a) / weights, allowed
            loads = sum(bool(re.search(r"\bLDG\S*\.128\b", i)) for i in body)
            wide = min(wide, loads / chunk)
    spilled = sum(_spills(found[a:b]) for a, b in products)
    access = min(map(access_bytes, (i for i in found if re.search(r"\bLDG\b", i))), default=0) if case.access else 0
    broken = judge(case.kernel.rpartition(".")[2], code, set(early), stack, case.single, held)
    return Report(
        case.name,
        target,
        int(usage["REG"]),
        int(usage["SHARED"]),
        stack,
        wide,
        round(per_weight, 2),
        budget,
        access=access,
        wanted=case.access,
        allowed=case.stack,
        spilled=spilled,
        weight_loops=len(weight_loops),
        drops=max(0, sum("CCTL.IVALL" in i for i in found) - case.drops),
        broken=tuple((one.rule, one.value, one.limit, one.allowed, one.detail) for one in broken),
    )


def access_bytes(instruction: str) -> int:
    """Bytes one lane's global load brings: `LDG.E.128` 16, `LDG.E.64` 8, `LDG.E` 4."""
    bits = re.search(r"\bLDG\S*?\.(U8|S8|U16|S16|64|128)\b", instruction)
    return {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}[bits[1]] if bits else 4


def _spills(found: list[str]) -> int:
    return sum(bool(re.search(r"\b(LDL|STL)\b", i)) for i in found)


def _identify(body: list[str], case: KernelCase) -> tuple[int, str]:
    """(chunk, format) of a weight loop by its tensor-core products: one per step of 16 columns and 8 tokens."""
    products = sum("HMMA" in i for i in body)
    eights = max(1, int(case.constants.get("NT", 8)) // 8)
    for name, chunk in case.walks:
        if products == chunk * layout.tile_columns(name) // 16 * eights:
            return chunk, name
    raise AssertionError(f"{case.name}: a loop of {products} tensor-core products fits none of its formats")


def _bits(format: str) -> int:
    from moegauge.formats import get_format

    return get_format(format).element_bits


def fingerprint() -> str:
    """A hash of the kernels' sources and the compiler's version: reports with it may be kept."""
    import hashlib

    import triton

    digest = hashlib.sha256(triton.__version__.encode())
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
