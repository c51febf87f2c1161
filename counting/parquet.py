"""Counts of many repos as one Parquet table; needs pyarrow (the `parquet` extra)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moegauge import outfile
from moegauge.counting.difference import flat
from moegauge.counting.many import Line
from moegauge.errors import MissingExtraError

# Sections whose keys are data (names of formats, roles, layers): kept as JSON text in one column each.
AS_JSON = ("formats", "format_rules", "roles", "unclassified", "warnings", "per_layer")

_MARK, SCHEMA = b"moegauge", b"moegauge.count/1"  # in the metadata of a table of ours


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
        OutputError: the file is there and is no table of ours, or cannot be written.
    """
    check_available()
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row(line) for line in lines]
    names = list(dict.fromkeys(name for each in rows for name in each))
    columns = {name: _column(pa, [each.get(name) for each in rows]) for name in names}
    table = pa.table(columns).replace_schema_metadata({_MARK: SCHEMA})
    outfile.write_with(file, lambda stream: pq.write_table(table, stream), replaces=is_ours)
    return len(rows)


def _column(pa: Any, values: list[Any]) -> Any:
    """One column; text where a repo's numbers fit no type: past 64 bits, or a number here and a word there."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pa.array([None if value is None else json.dumps(value) for value in values])


def is_ours(file: Path) -> bool:
    """Whether a file is a table of `write`, which a later one may replace."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return _MARK in (pq.read_schema(file).metadata or {})
    except (OSError, pa.ArrowException):
        return False
