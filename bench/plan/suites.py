"""Suites by name (quick, standard, full, gpu), and the command line's lists, as points to measure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moegauge.bench.plan.gpu_suite import GPU, GPU_FIRST, STEP_S, Stage
from moegauge.bench.plan.points import NATIVE, Point, Row, unique
from moegauge.errors import UnknownNameError, UsageError
from moegauge.formats import FORMATS

MODELS = (
    "gpt-oss-20b",
    "qwen3-30b-a3b",
    "gpt-oss-120b",
    "mixtral-8x7b",
    "qwen3-235b-a22b",
    "kimi-k2",
    "glm-4.7",
    "deepseek-v3",
)
SMALL = MODELS[:3]


@dataclass(frozen=True, slots=True)
class Suite:
    """Rows and the time limit of one point.

    Attributes:
        rows: what is measured.
        time_limit_s: seconds of sampling per point.
        about: one line for --help and docs.
        stages: parts in order of worth, within `budget_s`; empty for a suite of whole steps alone.
        budget_s: seconds one command may take, the roof included; None is without end.
        warmup_s, sample_s, gate_rows: as in `Limits` and `Settings`; shorter where a step lasts milliseconds.
    """

    rows: tuple[Row, ...]
    time_limit_s: float
    about: str
    stages: tuple[Stage, ...] = ()
    budget_s: float | None = None
    warmup_s: float = 0.5
    sample_s: float = 0.02
    gate_rows: int = 16


SUITES: dict[str, Suite] = {
    "quick": Suite(
        (Row(SMALL, (NATIVE, "fp8", "mxfp4")),), 4.0, "three small models, three formats: a minute on two cores"
    ),
    "standard": Suite(
        (
            Row(MODELS, (NATIVE, "fp8", "int4", "mxfp4")),
            Row(("kimi-k2-thinking",)),
            Row(SMALL, ("bf16", "int8", "nvfp4")),
            Row(SMALL, (NATIVE, "mxfp4"), (2, 8, 32)),
            Row(SMALL, (NATIVE,), (64,)),
            Row(("gpt-oss-20b", "qwen3-30b-a3b", "deepseek-v3"), ("fp8",), (1,), (4096, 32768)),
        ),
        10.0,
        "eight models, all formats, batch and context curves: half an hour on two cores",
    ),
    "full": Suite(
        (
            Row(MODELS, (NATIVE, "bf16", "fp8", "int8", "int4", "mxfp4", "mxfp8", "nvfp4")),
            Row(("kimi-k2-thinking",)),
            Row(SMALL, (NATIVE, "fp8", "mxfp4"), (2, 4, 8, 16, 32, 64)),
            Row(SMALL, (NATIVE,), (1,), (1024, 4096, 16384, 32768, 131072)),
            Row(("deepseek-v3", "glm-4.7"), ("fp8",), (1,), (4096, 32768)),
            Row(SMALL, ("fp8",), (4, 16), (4096, 32768)),
        ),
        30.0,
        "every model in every format, batch 1 to 64, context 0 to 128k: hours on two cores",
    ),
    "gpu-first": Suite(
        tuple(row for stage in GPU_FIRST for row in stage.rows),
        STEP_S,
        "the first two minutes on a GPU: smoke tests, roof, floors, two steps launched in two ways, their kernels",
        GPU_FIRST,
        budget_s=100.0,
        warmup_s=0.05,
        sample_s=0.01,
        gate_rows=2,
    ),
    "gpu": Suite(
        tuple(row for stage in GPU for row in stage.rows),
        STEP_S,
        "a GPU in stages: as gpu-first, then kernels, launch modes, steps, batches, contexts, peers; eight minutes",
        GPU,
        budget_s=480.0,
        warmup_s=0.05,
        sample_s=0.01,
        # Sixteen outputs of each of DeepSeek-V3's 606 operations take the host 6.4 times as long as two: 19 s a gate
        # against 3 s (scripts/host_times.py on two busy Zen 5 cores).
        gate_rows=2,
    ),
}


def get_suite(name: str) -> Suite:
    """The suite called `name`.

    Raises:
        UnknownNameError: no such suite.
    """
    if name not in SUITES:
        raise UnknownNameError("suite", name, SUITES)
    return SUITES[name]


def suite_points(suite: Suite) -> list[Point]:
    """Every point once, in order."""
    return unique(suite.rows)


def check_formats(names: Iterable[str]) -> tuple[str, ...]:
    """The same names, known ones only.

    Raises:
        UnknownNameError: a name that is neither `native` nor a row of the formats table.
    """
    found = tuple(names)
    for name in found:
        if name != NATIVE and name not in FORMATS:
            raise UnknownNameError("format", name, [*FORMATS, NATIVE])
    return found


def parse_list(text: str, option: str) -> tuple[str, ...]:
    """`a,b , c` -> ("a", "b", "c"), duplicates dropped.

    Raises:
        UsageError: nothing in it.
    """
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise UsageError(f"{option} is empty.", advice=f"Give names after it, separated by commas: {option} a,b")
    return words


def parse_counts(text: str, option: str, low: int, high: int) -> tuple[int, ...]:
    """`1,8` -> (1, 8); a trailing k means 1024.

    Raises:
        UsageError: a word that is no whole number in [low, high].
    """
    found = []
    for word in parse_list(text, option):
        scale = 1024 if word.lower().endswith("k") else 1
        digits = word[:-1] if scale > 1 else word
        whole = digits.isascii() and digits.isdigit() and len(digits) < 12
        if not whole or not low <= int(digits) * scale <= high:
            raise UsageError(
                f"{option} '{word}' is no whole number from {low} to {high}.", advice=f"Example: {option} {low},{high}"
            )
        found.append(int(digits) * scale)
    return tuple(dict.fromkeys(found))
