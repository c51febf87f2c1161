"""`moegauge bench peers`: the table of peers timed beside this kit."""

from __future__ import annotations

from moegauge.commands._output import print_table, say
from moegauge.commands._tables import machine_line, roof_line, show_warnings
from moegauge.record import Case, Record
from moegauge.units import human_bytes


def show_peers(record: Record) -> None:
    """Roof and one row per program and point on stdout."""
    say(machine_line(record.machine))
    say(roof_line(record))
    headings = ["model", "what", "program", "format", "batch", "bytes", "ms", "GB/s", "of roof"]
    print_table(
        [*headings, "weights/s", "ours/its time", "95 % interval", "max error"], [_row(c) for c in record.cases], 4
    )
    show_warnings(record)


def _row(case: Case) -> list[str]:
    low, high = case.time_ratio_interval or (0.0, 0.0)
    weights = (case.parameters or 0) / (case.median_ms / 1e3)
    return [
        case.model,
        case.kernel or "decode",
        case.backend if case.peer else f"moegauge {case.backend}",
        case.stored or case.format,
        str(case.batch),
        human_bytes(case.bytes.total),
        f"{case.median_ms:.4g}",
        f"{case.gb_per_s:.2f}",
        f"{case.roof_fraction:.3f}",
        f"{weights / 1e9:.2f} G",
        "" if case.time_ratio is None else f"{case.time_ratio:.3f}",
        "" if case.time_ratio is None else f"{low:.3f} to {high:.3f}",
        f"{case.max_relative_error:.0e}",
    ]
