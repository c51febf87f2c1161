"""Runs Triton kernels under the interpreter and prints one JSON line per case. Run by test_interpreter.py in a
process of its own, since TRITON_INTERPRET must be set before Triton is imported.

    python interpreted.py product FORMAT COLUMNS TOKENS     the tiled product of a random matrix
    python interpreted.py step FORMAT KIND BATCH CONTEXT    a whole made-up model, every operation gated
    python interpreted.py alone FORMAT BATCH LABEL          one kind of kernel of that model, as it is timed alone
    python interpreted.py attention KIND CACHE HEADS BATCH CONTEXT SPLITS    one attention, cut over its context
    python interpreted.py choose EXPERTS TOP_K               experts of two tokens, with ties and scores that are none
    python interpreted.py shares                            chunks shared out, for many totals and grids
"""

from __future__ import annotations

import itertools
import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
sys.path.insert(1, os.path.join(sys.path[0], "..", "..", "gpu"))  # noqa: PTH118
sys.path.insert(2, os.path.join(sys.path[0], "..", ".."))  # noqa: PTH118

import gpu_programs
import made_up
import numpy as np
import quick_interpreter
import torch
import triton
import triton.language as tl

from moegauge.bench.step.build import build_step
from moegauge.kernels import codes, content, packing
from moegauge.kernels.program import Place, Product, Program, View, Weight
from moegauge.kernels.triton.backend import TritonBackend
from moegauge.kernels.triton.device import route
from moegauge.kernels.triton.device.work_split import owner_of, share_of
from moegauge.kernels.triton.lowering import layout
from moegauge.kernels.triton.lowering.arena import canonical_codes
from moegauge.shape import ModelShape, Vectors

quick_interpreter.install()
BACKEND = TritonBackend("cpu")


def matrix(fmt: str, rows: int, columns: int, rng: np.random.Generator) -> packing.Packed:
    """A random packed matrix; its scales span many binades."""
    values = rng.standard_normal((rows, columns)) * np.exp2(rng.integers(-6, 6, (rows, 1)))
    return packing.quantise(values, fmt)


def product(fmt: str, columns: int, tokens: int, rows: int = 16, wrong: str = "") -> None:
    """out = W x for a known W, against float64. `wrong` breaks one thing on purpose."""
    rng = np.random.default_rng([columns, tokens])
    packed = matrix(fmt, rows, columns, rng)
    raw, scales = packed.weights.reshape(-1), packed.scales.reshape(-1)
    tiled = layout.is_tiled(fmt, rows, columns)
    if tiled:
        raw = layout.encode(canonical_codes(raw, packed.format.element_bits, rows, columns), fmt)
        scales = layout.pack_scales(scales, fmt, rows, columns)
    pools = {f"{fmt}.weight": 1 << 17, f"{fmt}.scale": 1 << 16, "nvfp4.tensor": 256}
    if wrong == "scale":
        scales = np.roll(scales, 4)
    if wrong == "nibble":
        raw = (raw << 4) | (raw >> 4)
    pools = {name: size for name, size in pools.items() if name in content.CONTENT}
    arena = BACKEND.arena(pools)
    arena.memory(f"{fmt}.weight")[: raw.size] = torch.from_numpy(raw.copy())
    if scales.size:
        arena.memory(f"{fmt}.scale")[: scales.size] = torch.from_numpy(scales.copy())
    if fmt == "nvfp4":
        arena.memory("nvfp4.tensor").view(torch.float32)[0] = packed.tensor_scale
    weight = Weight(
        "w", "attention", rows, columns, fmt, Place(f"{fmt}.weight", 0, raw.size),
        Place(f"{fmt}.scale", 0, scales.size) if scales.size else None,
        Place("nvfp4.tensor", 0, 4) if fmt == "nvfp4" else None,
    )  # fmt: skip
    op = Product("product", View("x", 0, columns), View("y", 0, rows), (weight,))
    program = Program("test", tokens, {"x": columns, "y": rows}, (op,))
    runnable = BACKEND.compile(program, arena)
    x = rng.standard_normal((tokens, columns)).astype(np.float32)
    x = codes.decode_bf16(codes.encode_bf16(x)).astype(np.float32)  # so that only the sums round
    runnable.write("x", x)
    runnable.run_operation(0)
    w = packing.unpack(packed)
    error = np.abs(runnable.read("y") - x.astype(np.float64) @ w.T)
    bound = (columns * 2.0**-23 + 2.0**-20) * (np.abs(x).astype(np.float64) @ np.abs(w).T)
    back = arena.read(weight.weights.pool, 0, raw.size, weight)
    same = bool((back == packed.weights.reshape(-1)).all())
    if scales.size:
        same &= bool((arena.read(weight.scales.pool, 0, scales.size, weight) == packed.scales.reshape(-1)).all())
    sys.stdout.write(json.dumps({"worst": float((error / bound).max()), "same": same, "tiled": tiled}) + "\n")


def shape(fmt: str, kind: str, hidden: int, inner: int, experts: int = 4) -> ModelShape:
    """A made-up model: one dense layer with gqa, or one MoE layer with mla."""
    if kind == "gqa":
        mixer = made_up.gqa(hidden, 4, 2, 32, window=4, format=fmt)
        layer = made_up.dense_layer(mixer, inner, hidden, fmt)
    else:
        mixer = made_up.mla(hidden, 2, query=192, latent=128, rope=32, nope=64, value=64, format=fmt)
        correction = Vectors(2 * hidden + experts, 4 * hidden + 4 * experts)  # the router's, beside two norms
        layer = made_up.moe_layer(
            mixer, experts, 2, inner, hidden, format=fmt, shared=inner, biases=True, vectors=correction
        )
    return made_up.model([layer], hidden, vocabulary=48)


def step(fmt: str, kind: str, batch: int, context: int, hidden: int = 64, inner: int = 128, experts: int = 4) -> None:
    """Gate every operation of a made-up model's step."""
    made = build_step(
        shape(fmt, kind, hidden, inner, experts), BACKEND, batch=batch, context=context, arena_bytes=1 << 24, reuse=0.0,
        kv_format="fp8" if context % 2 else "bf16",
    )  # fmt: skip
    worst = made.check(8) if batch else 0.0
    sys.stdout.write(json.dumps({"worst": worst, "operations": made.kernels, "batch": batch}) + "\n")
    made.close()


def attention(kind: str, cache: str, heads: int, batch: int, length: int, splits: int) -> None:
    """One attention, and a product that reads its bfloat16 copy, against float64, as on a device of so many
    multiprocessors that the context is cut `splits` times."""
    backend = TritonBackend("cpu")
    blocks = -(-heads // 32) if kind == "mla" else heads // 4
    backend.processors = -(-splits * batch * blocks // 2)
    alone = gpu_programs.attention(kind, cache, heads, batch, length)
    wide = alone.registers["out"]
    weight = Weight("w", "attention", 16, wide, "bf16", Place("bf16.weight", 0, 32 * wide), None, None)
    reader = Product("product", View("out", 0, wide), View("y", 0, 16), (weight,))
    program = Program(alone.name, batch, {**alone.registers, "y": 16}, (*alone.operations, reader))
    arena = backend.arena({f"kv.{cache}": 1 << 22, "bf16.weight": 1 << 20})
    runnable = backend.compile(program, arena)
    gpu_programs.start(runnable, 0.2)
    runnable.write("out", np.full_like(runnable.read("out"), np.nan))
    runnable.run_operation(0)
    out, shadow = runnable._registers["out"], runnable._registers.shadow("out")
    copied = torch.allclose(shadow.float(), out, rtol=2.0**-7, atol=0)  # the interpreter cuts bits off; NaN is unequal
    gpu_programs.gate(backend, arena, runnable)  # asserts
    sys.stdout.write(json.dumps({"grid": runnable._launches[0][0].grid, "copied": copied}) + "\n")


def alone(fmt: str, batch: int, label: str) -> None:
    """The kernels of one kind, gated, and how many launches their step has: no input and no choice is made in it."""
    made = build_step(
        shape(fmt, "mla", 64, 128, 16), BACKEND, batch=batch, context=0, arena_bytes=1 << 24, reuse=0.0,
    )  # fmt: skip
    part = made.part(label.replace("-", " "))
    worst = part.check(8)
    (runnable,) = part._laps
    result = {"worst": worst, "launches": runnable.kernels_per_step}
    # Outputs poisoned by the gate are no reason to make inputs again, inside a timed sample; inputs are.
    for kind, registers in (
        ("output", runnable._written),
        ("input", set(runnable.program.registers) - runnable._written),
    ):
        name = min(registers)
        runnable.write(name, runnable.read(name))
        result[kind] = runnable._stale
    sys.stdout.write(json.dumps(result) + "\n")
    made.close()


def choose(experts: int, top_k: int) -> None:
    """Experts chosen for tokens whose scores tie and are not numbers, and what they should be."""
    rng = np.random.default_rng(experts)
    score = rng.integers(0, 4, (2, experts)).astype(np.float32)
    score[1, ::3] = np.nan
    i32 = {"dtype": torch.int32}
    ids, table, choices = (
        torch.full((2 * top_k,), -1, **i32),
        torch.zeros(2 * experts, **i32),
        torch.zeros(2 * experts, **i32),
    )
    share = torch.zeros(2 * top_k)
    names = ("slot_of", "slots", "counts", "members", "distinct")
    route.choose[(2,)](
        torch.zeros(2, experts), torch.from_numpy(score), ids, share, **dict.fromkeys(names, table), choices=choices,
        experts=experts, logits_stride=experts, stride=1, slot_count=experts, slope=1.0,
        TOPK=top_k, E2=1 << (experts - 1).bit_length(), BATCH1=False, PDL=False,
    )  # fmt: skip
    lowest = np.where(np.isnan(score), -np.inf, score)
    expected = np.argsort(-lowest, axis=1, kind="stable")[:, :top_k]
    even = bool(np.allclose(share.numpy(), 1 / top_k))
    result = {"chosen": ids.reshape(2, top_k).tolist() == expected.tolist(), "even": even}
    sys.stdout.write(json.dumps(result) + "\n")


@triton.jit
def shared_out(begins, ends, owners, grid, total, TOTAL2: tl.constexpr):
    """The shares of every program, and the owner of every chunk."""
    for p in range(grid):
        begin, end = share_of(p, grid, total)
        tl.store(begins + p, begin)
        tl.store(ends + p, end)
    chunk = tl.arange(0, TOTAL2)
    tl.store(owners + chunk, owner_of(chunk, grid, total), mask=chunk < total)


def shares() -> None:
    """Whether shares are neighbours, together everything, even, and known to `owner_of`."""
    for grid, total in ((1, 1), (1, 9), (4, 2), (5, 5), (7, 61), (8, 64), (12, 100)):
        begins, ends, owners = (torch.full((128,), -1, dtype=torch.int32) for _ in range(3))
        shared_out[(1,)](begins, ends, owners, grid, total, TOTAL2=128)
        bounds = [*begins[:grid].tolist(), int(ends[grid - 1])]
        sizes = [b - a for a, b in itertools.pairwise(bounds)]
        expected = [p for p, size in enumerate(sizes) for _ in range(size)]
        result = {
            "joined": begins[1:grid].tolist() == ends[: grid - 1].tolist() and bounds[0] == 0 and bounds[-1] == total,
            "even": max(sizes) - min(sizes) <= 1,
            "owned": owners[:total].tolist() == expected,
        }
        sys.stdout.write(json.dumps({"grid": grid, "total": total, **result}) + "\n")


if __name__ == "__main__":
    for job in " ".join(sys.argv[1:]).split(" , "):
        command, *words = job.split()
        numbers = [int(w) if w.isdigit() else w for w in words]
        commands = {
            "product": product, "step": step, "attention": attention, "alone": alone, "choose": choose,
            "shares": shares,
        }  # fmt: skip
        commands[command](*numbers)
