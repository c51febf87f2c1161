"""Which points a run measures: a suite is a list of rows, a row a product of models, formats, batches and contexts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from moegauge.errors import UnknownNameError, UsageError
from moegauge.formats import FORMATS

NATIVE = "native"

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
class Point:
    """One point to measure. `model` is any name `moegauge.models.resolve` takes."""

    model: str
    format: str = NATIVE
    batch: int = 1
    context: int = 0

    @property
    def label(self) -> str:
        """As `moegauge.record.Case.label`."""
        parts = [self.model, self.format]
        parts += [f"batch {self.batch}"] if self.batch != 1 else []
        parts += [f"context {self.context}"] if self.context else []
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Row:
    """All combinations of its lists."""

    models: tuple[str, ...]
    formats: tuple[str, ...] = (NATIVE,)
    batches: tuple[int, ...] = (1,)
    contexts: tuple[int, ...] = (0,)

    def points(self) -> Iterator[Point]:
        """Model by model, so that neighbouring points share a shape."""
        for model, name, batch, context in product(self.models, self.formats, self.batches, self.contexts):
            yield Point(model, name, batch, context)


@dataclass(frozen=True, slots=True)
class Suite:
    """Rows and the time limit of one point.

    Attributes:
        rows: what is measured.
        time_limit_s: seconds of sampling per point.
        about: one line for --help and docs.
    """

    rows: tuple[Row, ...]
    time_limit_s: float
    about: str


SUITES: dict[str, Suite] = {
    "quick": Suite(
        (Row(SMALL, (NATIVE, "fp8", "mxfp4")),), 4.0, "three small models, three formats: a minute on two cores"
    ),
    "standard": Suite(
        (
            Row(MODELS, (NATIVE, "fp8", "int4", "mxfp4")),
            Row(("kimi-k2-thinking",)),
            Row(SMALL, ("bf16", "int8", "nvfp4")),
            Row(("gpt-oss-20b", "qwen3-30b-a3b"), (NATIVE, "mxfp4"), (2, 4, 8)),
            Row(("gpt-oss-20b", "qwen3-30b-a3b", "deepseek-v3"), ("fp8",), (1,), (4096, 32768)),
        ),
        10.0,
        "eight models, all formats, short batch and context curves: half an hour on two cores",
    ),
    "full": Suite(
        (
            Row(MODELS, (NATIVE, "bf16", "fp8", "int8", "int4", "mxfp4", "nvfp4")),
            Row(("kimi-k2-thinking",)),
            Row(SMALL, (NATIVE, "fp8", "mxfp4"), (2, 4, 8, 16, 32, 64)),
            Row(SMALL, (NATIVE,), (1,), (1024, 4096, 16384, 32768, 131072)),
            Row(("deepseek-v3", "glm-4.7"), ("fp8",), (1,), (4096, 32768)),
            Row(SMALL, ("fp8",), (4, 16), (4096, 32768)),
        ),
        30.0,
        "every model in every format, batch 1 to 64, context 0 to 128k: hours on two cores",
    ),
    "gpu": Suite(
        (
            Row(MODELS, (NATIVE, "bf16", "fp8", "int4", "mxfp4", "nvfp4")),
            Row(MODELS, ("fp8", "mxfp4"), (2, 4, 8, 16, 32, 64)),
            Row(MODELS, ("fp8",), (1, 8), (4096, 32768)),
        ),
        5.0,
        "every model, formats, batches and contexts that fit a few minutes on one GPU",
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
    return list(dict.fromkeys(point for row in suite.rows for point in row.points()))


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
