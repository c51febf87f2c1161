"""Counts of many repos as one Parquet table; needs pyarrow (the `parquet` extra)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moegauge.counting.difference import flat
from moegauge.counting.many import Line
from moegauge.errors import MissingExtraError

# Sections whose keys are data (names of formats, roles, layers): kept as JSON text in one column each.
AS_JSON = ("formats", "format_rules", "roles", "unclassified", "warnings", "per_layer")


def check_available() -> None:
    """Raises MissingExtraError when pyarrow is not installed: asked before hours of counting, not after."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise MissingExtraError("Parquet", "parquet") from None


def row(line: Line) -> dict[str, Any]:
    """One line as flat columns: `parameters.routed`, `target.commit`, ...; sections of `AS_JSON` as text."""
    count = line["count"] or {}
    columns: dict[str, Any] = {"name": line["target"], "revision": line["revision"]}
    columns |= {"error": line["error"], "message": line.get("message")}
    columns.update(flat({key: value for key, value in count.items() if key not in AS_JSON}))
    columns.update({key: json.dumps(count[key]) for key in AS_JSON if key in count})
    return columns


def write(lines: Iterable[Line], file: Path) -> int:
    """Write `lines`; the number of rows.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    check_available()
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row(line) for line in lines]
    names = list(dict.fromkeys(name for each in rows for name in each))
    table = pa.table({name: [each.get(name) for each in rows] for name in names})
    scratch = file.with_name(f".{file.name}.part")
    pq.write_table(table, scratch)
    scratch.replace(file)
    return len(rows)
