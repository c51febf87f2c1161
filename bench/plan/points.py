"""A point (model, format, batch, context) to measure, and lists of them as products of such values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from moegauge.shape import ModelShape

NATIVE = "native"


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

    def cast(self, shapes: Mapping[str, ModelShape]) -> ModelShape:
        """Its model, by the name it is asked for, in its format."""
        return shapes[self.model].cast(self.format)


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


def unique(rows: Iterable[Row]) -> list[Point]:
    """Every point of some rows once, in order."""
    return list(dict.fromkeys(point for row in rows for point in row.points()))


def rows_of(points: Iterable[Point]) -> tuple[Row, ...]:
    """A row for each point."""
    return tuple(Row((p.model,), (p.format,), (p.batch,), (p.context,)) for p in points)
