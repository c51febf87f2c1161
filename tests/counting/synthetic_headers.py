"""Headers and censuses from plain lists, without files."""

from __future__ import annotations

from math import prod
from typing import Any

from moegauge.counting.census import Census, take_census
from moegauge.counting.headers.header import DTYPE_BITS, Header
from moegauge.counting.sources.checkpoint import Checkpoint


def header(rows: list[tuple[str, str, tuple[int, ...]]], file: str = "model.safetensors") -> Header:
    """A header of (name, dtype, shape) rows, their data one after the other."""
    offsets, end = [], 0
    for _, dtype, shape in rows:
        begin, end = end, end + prod(shape) * DTYPE_BITS[dtype] // 8
        offsets.append((begin, end))
    names, dtypes, shapes = [r[0] for r in rows], [r[1] for r in rows], [tuple(r[2]) for r in rows]
    return Header(file, names, dtypes, shapes, offsets, header_bytes=8, data_bytes=end)


def unfold(folded: list[list[Any]]) -> list[tuple[str, str, tuple[int, ...]]]:
    """The rows of a family fixture: [template, dtype, shape, [numbers]] -> one row per tensor."""
    return [
        (template.format(*numbers), dtype, tuple(shape)) for template, dtype, shape, many in folded for numbers in many
    ]


def expand(folded: list[list[Any]]) -> list[tuple[str, str, tuple[int, ...]]]:
    """The rows of a release fixture: [template, dtype, shape, "0-2,5"] -> one row per layer."""
    rows = []
    for template, dtype, shape, spans in folded:
        for span in spans.split(","):
            first, _, last = span.partition("-")
            rows += [(template.format(n), dtype, tuple(shape)) for n in range(int(first), int(last or first) + 1)]
    return rows


def census(
    rows: list[tuple[str, str, tuple[int, ...]]],
    config: dict[str, Any] | None = None,
    *,
    kind: str = "folder",
    documents: dict[str, Any] | None = None,
    **more: Any,
) -> Census:
    """The census of a one-file checkpoint with these tensors and this config."""
    found = dict(documents or {})
    if config is not None:
        found["config.json"] = config
    return take_census(Checkpoint(kind, "tiny", None, [header(rows)], found), **more)
