"""Stages of the GPU suite, most valuable first, each a list of points, within one time budget.

A run that ends early has measured what matters most; the same command goes on with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from moegauge.bench.plan.points import Point, Row, unique

# Released as the issue of the day has them: DeepSeek-V3 in fp8, Kimi-K2-Thinking in int4, gpt-oss in mxfp4.
LEADING = ("deepseek-v3", "kimi-k2-thinking", "glm-4.7", "gpt-oss-120b")
OTHERS = ("gpt-oss-20b", "qwen3-30b-a3b", "mixtral-8x7b", "qwen3-235b-a22b", "kimi-k2")
NARROW = ("fp8", "int4", "mxfp4", "nvfp4")
BATCHES = (1, 2, 4, 8, 16, 32, 64)

# Seconds of sampling. A GPU's steps last 1 to 10 ms and settle in well under a second.
STEP_S, KERNELS_S = 0.8, 1.6


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a suite.

    Attributes:
        name: as shown and as `left_out` names it.
        kind: `smoke` (small steps judged, not timed), `roof`, `sweep` (the roof by many patterns), `floors`, `decode`
            (whole steps), `kernel` (each kind alone), `launch modes` (whole steps, launched in every way the backend
            has) or `peers`.
        about: one line for --dry-run.
        rows: its points, in order; empty for the roof and the floors.
        time_limit_s: seconds of sampling per point (for `kernel`, of all kinds of one step together).
        launch_mode: of its points; "" is the fastest that has been judged right on this device.
    """

    name: str
    kind: str
    about: str
    rows: tuple[Row, ...] = ()
    time_limit_s: float = STEP_S
    launch_mode: str = ""

    @property
    def points(self) -> list[Point]:
        """Every point once, in order."""
        return unique(self.rows)


SMOKE = Stage("smoke tests", "smoke", "every format, layer and launch mode right? small steps, judged, not timed")
ROOF = Stage("roof", "roof", "read-only streams, the usual access patterns")
FLOORS = Stage("floors", "floors", "an empty kernel, by launch mode, programs and count-in")
FIRST = ("gpt-oss-120b", "deepseek-v3")

# What a first short contact is for: what works at all, the ceilings, and two steps by which the rest can be planned.
GPU_FIRST = (
    SMOKE,
    ROOF,
    FLOORS,
    Stage("first steps", "decode", "batch 1, CUDA graph", (Row((*FIRST, "gpt-oss-20b")),), launch_mode="graph"),
    Stage("dependent launches", "decode", "the same, launched dependently", (Row(FIRST),), launch_mode="pdl"),
    Stage("first kernels", "kernel", "batch 1: each kind of kernel alone", (Row(FIRST),), KERNELS_S),
)
GPU = (
    *GPU_FIRST,
    Stage(
        "kernels",
        "kernel",
        "batch 1: each kind of kernel alone, cold weights",
        (
            Row(("deepseek-v3", "kimi-k2-thinking")),
            Row(("glm-4.7",), ("fp8",)),
            Row(("gpt-oss-120b",)),
            Row(("deepseek-v3", "gpt-oss-120b"), NARROW[1:]),
            Row(("gpt-oss-120b",), ("fp8",)),
            Row(("kimi-k2-thinking", "glm-4.7"), ("mxfp4",)),
        ),
        KERNELS_S,
    ),
    Stage(
        "launch modes",
        "launch modes",
        "batch 1: the same step, launched in every way there is",
        (Row(FIRST),),
    ),
    Stage(
        "whole steps",
        "decode",
        "batch 1: released formats, then narrow ones",
        (
            Row(("deepseek-v3", "kimi-k2-thinking")),
            Row(("glm-4.7",), ("fp8",)),
            Row(("gpt-oss-120b",)),
            Row(OTHERS),
            Row(("glm-4.7",)),
            Row(LEADING[:1], NARROW[1:]),  # its release is fp8 throughout
            Row(LEADING[1:], NARROW),
            Row(OTHERS[:3], ("fp8", "mxfp4")),
        ),
    ),
    Stage(
        "batch curve",
        "decode",
        "batch 1 to 64 on 1k tokens of context",
        (Row(("deepseek-v3", "gpt-oss-120b", "glm-4.7"), ("fp8",), BATCHES, (1024,)),),
    ),
    Stage("roof sweep", "sweep", "read-only streams by access width, loads in flight, programs and warps"),
    Stage(
        "context curve",
        "decode",
        "8k and 32k tokens, batch 1 and 8",
        (Row(("deepseek-v3", "gpt-oss-120b", "glm-4.7"), ("fp8",), (1, 8), (8192, 32768)),),
    ),
    Stage(
        "peers",
        "peers",
        "other projects' expert kernels on the same matrices, batch 1 and 8, where they are installed",
        (
            Row(("deepseek-v3",), ("fp8", "int4"), (1, 8)),
            Row(("gpt-oss-120b",), ("mxfp4",), (1, 8)),
            Row(("glm-4.7",), ("fp8",), (1, 8)),
        ),
        KERNELS_S,
    ),
)
