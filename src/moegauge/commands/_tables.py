"""Print tables for people: numbers right-aligned, the unit in the heading."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any

from moegauge.commands._output import print_table, say, warn
from moegauge.record import Case, Caution, Record
from moegauge.units import human_bytes


def machine_line(machine: dict[str, Any]) -> str:
    """`AMD EPYC (zen3), 2 cores, 25.27 GB` or the GPU's name."""
    gpu, cpu = machine.get("gpu"), machine.get("cpu")
    if machine.get("device") == "cuda" and isinstance(gpu, dict):
        driver = f", driver {gpu['driver']}" if gpu.get("driver") else ""
        return f"{gpu.get('name', 'GPU')}{driver}"
    if not isinstance(cpu, dict):
        return str(machine.get("id", "unknown machine"))
    arch = f" ({cpu['microarchitecture']})" if cpu.get("microarchitecture") else ""
    memory = f", {human_bytes(machine['memory_bytes'])}" if machine.get("memory_bytes") else ""
    return f"{cpu.get('model', 'CPU')}{arch}, {cpu.get('cores', '?')} cores{memory}"


def roof_line(record: Record) -> str:
    """The roof in one line, datasheet beside it where known."""
    roof = record.roof
    if roof is None:
        return "roof: not measured"
    sheet = ""
    if roof.datasheet_gb_per_s:
        sheet = (
            f", {100 * roof.gb_per_s / roof.datasheet_gb_per_s:.0f} % of the datasheet's {roof.datasheet_gb_per_s:g}"
        )
    best = f", best sample {roof.best_gb_per_s:.2f}" if roof.best_gb_per_s else ""
    return f"roof: {roof.gb_per_s:.2f} GB/s read ({roof.pattern}{best}{sheet})"


def show_record(record: Record, *, head: bool = True) -> None:
    """Machine, roof (unless `head` is False) and one row per point; warnings on stderr."""
    if head:
        say(machine_line(record.machine))
        say(roof_line(record))
        for floor in record.floors:
            low, high = floor.interval_us
            say(f"empty kernel, {floor.name}: {floor.us_per_kernel:.3f} us ({low:.3f} to {high:.3f})")
    if record.roof and not record.cases:
        print_table(
            ["access pattern", "GB/s"],
            [[name, f"{rate:.2f}"] for name, rate in sorted(record.roof.patterns.items(), key=lambda kv: -kv[1])],
        )
    if not record.cases:
        return
    kernels = any(case.kernel for case in record.cases)
    rows = [_row(case, kernels) for case in record.cases]
    names = ["model", *(["kernel"] if kernels else []), "format"]
    speed = [] if kernels else ["tokens/s"]
    print_table(
        [*names, "batch", "context", "bytes/step", "ms", *speed, "GB/s", "of roof", "max error"], rows, len(names)
    )
    if record.in_cache:
        from moegauge.bench.report.tables import IN_CACHE, in_cache_cells

        say()
        print_table(list(IN_CACHE), [list(row) for row in in_cache_cells(record)], 2)
    if not kernels and any(case.context == 0 for case in record.cases):
        say("Tokens/s at context 0 read no cache; --context gives one.")
    show_warnings(record)
    for verdict in record.verdicts:
        if not verdict.passed:
            warn(str(verdict))
    for one in record.left_out:
        warn(f"not measured: {one}")


_ALIKE = {
    Caution.NOT_SETTLED: "not settled",
    Caution.THROTTLED: "with samples left out",
    Caution.DISTURBED: "disturbed by other work",
    Caution.CACHED: "faster than the roof beside them",
}


def show_warnings(record: Record) -> None:
    """Warnings of the points on stderr, those of one caution in one line."""
    groups: dict[str, list[str]] = {}
    for case in record.cases:
        for text, caution in zip(case.warnings, chain(case.cautions, repeat(None)), strict=False):
            name = _ALIKE[caution] if caution else text
            groups.setdefault(name, []).append(f"{case.label}: {text}")
    for name, lines in groups.items():
        warn(lines[0] if len(lines) == 1 else f"{len(lines)} of {len(record.cases)} points {name}; first {lines[0]}")


def _row(case: Case, kernels: bool) -> list[str]:
    return [
        case.model,
        *([case.kernel or ""] if kernels else []),
        case.format,
        str(case.batch),
        str(case.context),
        human_bytes(case.bytes.total),
        f"{case.median_ms:.3g}" if case.median_ms < 100 else f"{case.median_ms:.0f}",
        *([] if kernels else [f"{case.tokens_per_s:.4g}"]),
        f"{case.gb_per_s:.2f}",
        f"{case.roof_fraction:.3f}",
        f"{case.max_relative_error:.0e}",
    ]
