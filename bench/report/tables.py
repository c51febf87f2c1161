"""Records as CSV and as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moegauge.bench.judge.compare import Comparison, Summary
from moegauge.bench.judge.two_records import SpeedRatio
from moegauge.record import Case, Pattern, Record
from moegauge.text import csv_text
from moegauge.text import markdown as cell

# Columns of the CSV: name -> how it is read off a case.
_COLUMNS = (
    *(
        "kind",
        "backend",
        "model",
        "kernel",
        "format",
        "batch",
        "context",
        "kv_format",
        "routing",
        "launch_mode",
        "threads",
    ),
    *("layers", "kernels_per_step", "distinct_experts", "median_ms", "mad_ms", "tokens_per_s", "gb_per_s"),
    *("roof_fraction", "max_relative_error"),
)
_BEFORE = ("created", "machine", "commit", "roof_gb_per_s")
_MARKDOWN_BEGINS = "Machine `"
_AFTER = ("weights", "scales", "kv", "bytes", "low_ms", "high_ms", "samples")


def record_csv(record: Record) -> str:
    """One row per point, machine and roof repeated on each, so that files can be concatenated."""
    return csv_text([(*_BEFORE, *_COLUMNS, *_AFTER), *(_csv_row(record, case) for case in record.cases)])


def _csv_row(record: Record, case: Case) -> list[object]:
    low, high = case.interval_ms or (None, None)
    size = case.bytes
    return [
        *(record.created, record.machine_id, record.project.commit, record.roof.gb_per_s if record.roof else None),
        *(getattr(case, name) for name in _COLUMNS),
        *(size.weights, size.scales, size.kv, size.total, low, high, len(case.samples_ms)),
    ]


def is_csv(path: Path) -> bool:
    """Whether a file is a table of `record_csv`, which a later one may replace."""
    return _begins_with(path, ",".join((*_BEFORE, *_COLUMNS, *_AFTER)) + "\n")


def is_markdown(path: Path) -> bool:
    """Whether a file is a page of `markdown`, which a later one may replace."""
    return _begins_with(path, _MARKDOWN_BEGINS)


def _begins_with(path: Path, text: str) -> bool:
    with path.open("rb") as file:
        return file.read(len(text)) == text.encode()


def markdown(record: Record) -> str:
    """The points as a Markdown table, the machine and roof in one line above it."""
    roof = f", read roof {record.roof.gb_per_s:.2f} GB/s" if record.roof else ""
    lines = [f"{_MARKDOWN_BEGINS}{cell(record.machine_id)}`{roof}.", ""]
    lines.append("| model | format | batch | context | GB per step | ms | tokens/s | GB/s | of roof |")
    lines.append("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    lines += [_row(case) for case in record.cases]
    parts = (
        in_cache_markdown(record),
        floors_markdown(record),
        sweep_markdown(record),
        profile_markdown(record),
        left_out_markdown(record),
    )
    return "\n".join([*lines, *(f"\n{part}" for part in parts if part)]).rstrip("\n") + "\n"


def sweep_markdown(record: Record, most: int = 12) -> str:
    """The best access pattern of every width and number of loads in flight, the fastest first; "" without a sweep."""
    best: dict[tuple[int, int], Pattern] = {}
    for p in record.roof.sweep if record.roof else []:
        key = p.width, p.unroll
        if key not in best or p.gb_per_s > best[key].gb_per_s:
            best[key] = p
    if not best:
        return ""
    lines = ["| bytes per load | loads in flight | programs | warps | GB/s |", "|--:|--:|--:|--:|--:|"]
    ranked = sorted(best.values(), key=lambda p: -p.gb_per_s)[:most]
    lines += [f"| {p.width} | {p.unroll} | {p.programs} | {p.warps} | {p.gb_per_s:.1f} |" for p in ranked]
    return "\n".join(lines) + "\n"


IN_CACHE = ("in cache", "instruction set", "cores", "GB/s per core", "95 % interval", "several tokens")


def in_cache_cells(record: Record) -> list[tuple[str, ...]]:
    """Products and attention in cache, a row each, under the headings `IN_CACHE`."""
    rows: list[tuple[str, ...]] = []
    for row in record.in_cache:
        low, high = row.interval_gb_per_s_per_core or (row.gb_per_s_per_core, row.gb_per_s_per_core)
        tile = f"{row.tile_gb_per_s_per_core:.1f} ({row.tile} tokens)" if row.tile_gb_per_s_per_core else ""
        speed, interval = f"{row.gb_per_s_per_core:.1f}", f"{low:.1f} to {high:.1f}"
        rows.append((row.format, row.isa, str(row.threads), speed, interval, tile))
    for one in record.attention_in_cache:
        name = f"{one.kind} attention, {one.heads} heads of {one.head_dim} on {one.kv_heads}, {one.kv_format}"
        rows.append((name, one.isa, str(one.threads), f"{one.ps_per_mac:.1f} ps per MAC", "", ""))
    return rows


def in_cache_markdown(record: Record) -> str:
    """What products and attention cost where memory costs nothing; "" where that was not measured."""
    rows = ["| " + " | ".join(map(cell, cells)) + " |" for cells in in_cache_cells(record)]
    head = [f"| {' | '.join(IN_CACHE)} |", "|---|---|--:|--:|--:|--:|"]
    return "\n".join([*head, *rows]) + "\n" if rows else ""


def floors_markdown(record: Record) -> str:
    """The cost of an empty kernel boundary by the way it is crossed; "" where none was measured."""
    if not record.floors:
        return ""
    lines = ["| boundary | us | 95 % interval |", "|---|--:|--:|"]
    for f in record.floors:
        low, high = f.interval_us
        lines.append(f"| {cell(f.name)} | {f.us_per_kernel:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines) + "\n"


def profile_markdown(record: Record) -> str:
    """What is left of each kernel case beside its bytes; "" without profiles."""
    names = ("programs", "KB each", "most waves", "worst tail", "registers", "instr./weight", "issue slots", "GB/s")
    lines = [f"| kernel | {' | '.join(names)} | of roof |", "|---|" + "--:|" * (len(names) + 1)]
    rows = [profile_cells(case) for case in record.cases if case.profile]
    lines += ["| " + " | ".join((cell(name), *cells)) + " |" for name, *cells in rows]
    return "\n".join(lines) + "\n" if rows else ""


def profile_cells(case: Case) -> tuple[str, ...]:
    """A profile as cells: name, programs, KB each, waves, tail, registers, instructions, issue share, GB/s, roof."""
    profile = case.profile
    assert profile is not None
    main = [k for k in profile.kernels if k.instructions_per_weight is not None] or profile.kernels
    per_weight = [k.instructions_per_weight for k in main if k.instructions_per_weight is not None]
    return (
        case.label,
        str(profile.programs),
        f"{profile.bytes_per_program / 1e3:.1f}",
        f"{max((k.waves for k in main), default=0.0):.2f}",
        f"{100 * max((k.tail for k in main), default=0.0):.0f} %",
        str(max((k.registers for k in main), default=0)),
        f"{max(per_weight):.2f}" if per_weight else "",
        "" if profile.issue_share is None else f"{100 * profile.issue_share:.0f} %",
        f"{case.gb_per_s:.1f}",
        f"{100 * case.roof_fraction:.1f} %",
    )


def left_out_markdown(record: Record) -> str:
    """What was not measured and why, one line each; "" where nothing was left out."""
    wrong = [f"- {cell(str(one))}\n" for one in record.verdicts if not one.passed]
    return "".join([*wrong, *(f"- not measured: {cell(str(one))}\n" for one in record.left_out)])


def peers_markdown(records: Sequence[Record]) -> str:
    """Other programs beside this kit, one row per program and point; "" where none was timed.

    The time ratio is this kit's time over the peer's for the same number of weights, in the same rounds.
    """
    rows = []
    for record in records:
        own = {_point(case): case for case in record.own_cases}
        for case in record.cases:
            if case.peer is None or case.time_ratio is None or case.time_ratio_interval is None:
                continue
            low, high = case.time_ratio_interval
            cells = (
                cell(case.model),
                cell(case.kernel or "whole step"),
                cell(case.format),
                str(case.batch),
                cell(" ".join(part for part in (case.backend, case.stored) if part)),
                f"{100 * beside.roof_fraction:.0f} %" if (beside := own.get(_point(case))) else "",
                f"{100 * case.roof_fraction:.0f} %",
                f"{case.time_ratio:.2f}",
                f"{low:.2f} to {high:.2f}",
            )
            rows.append("| " + " | ".join(cells) + " |")
    if not rows:
        return ""
    head = "| model | what | format | batch | other | of roof | its | time / its | 95 % interval |"
    return "\n".join([head, "|---|---|---|--:|---|--:|--:|--:|--:|", *rows]) + "\n"


def _point(case: Case) -> tuple[object, ...]:
    return case.kernel, case.model, case.format, case.batch, case.context


def _row(case: Case) -> str:
    cells = (
        cell(", ".join([_subject(case), *([case.backend] if case.peer else [])])),
        cell(case.format),
        str(case.batch),
        str(case.context),
        f"{case.bytes.total / 1e9:.2f}",
        f"{case.median_ms:.4g}",
        f"{case.tokens_per_s:.4g}",
        f"{case.gb_per_s:.2f}",
        f"{case.roof_fraction:.3f}",
    )
    return "| " + " | ".join(cells) + " |"


def _subject(case: Case) -> str:
    return f"{case.model}: {case.kernel}" if case.kernel else case.model


def comparison_markdown(found: Comparison, record: Record, *, formats: Sequence[str] = ()) -> str:
    """Measured beside predicted, single streams without context, one row per point; errors of all points below.

    Args:
        found: the comparison.
        record: the latest record of its machine.
        formats: rows of these formats only; empty is all.
    """
    points = [p for p in found.points if p.case.batch == 1 and p.case.context == 0]
    lines = [
        "| model | format | GB/token | kernels | measured tok/s | predicted | error | one-term formula | of roof |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for p in points:
        if formats and p.case.format not in formats:
            continue
        predicted = "" if p.predicted_tokens_per_s is None else f"{p.predicted_tokens_per_s:.4g}"
        cells = (
            cell(p.case.model),
            cell(p.case.format),
            f"{p.case.bytes.total / 1e9:.2f}",
            str(p.case.kernels_per_step),
            f"{p.case.tokens_per_s:.4g}",
            predicted,
            _percent(p.error),
            _percent(p.simple_error),
            f"{100 * p.case.roof_fraction:.1f} %",
        )
        lines.append("| " + " | ".join(cells) + " |")
    roof = f"read roof {record.roof.gb_per_s:.2f} GB/s, " if record.roof else ""
    if record.floors:
        roof += "empty kernel " + ", ".join(f"{cell(f.name)} {f.us_per_kernel:.2f} us" for f in record.floors) + ", "
    lines += ["", f"Machine `{cell(record.machine_id)}`, {roof}measured {cell(record.created[:10])}."]
    lines += [f"Each model is predicted from the others only. {_judgement('The law', found.by_model)}"]
    if found.batch_one.n not in (0, found.by_model.n):
        lines[-1] += f" ({_judgement('single streams without context', found.batch_one)})"
    if found.by_format.n:
        lines[-1] += f" {_judgement('Leaving a whole format out', found.by_format)}"
    lines[-1] += f" {_judgement('The one-term formula', found.simple)}"
    return "\n".join(lines) + "\n"


def _judgement(name: str, summary: Summary) -> str:
    if summary.median is None or summary.worst is None:
        return f"{name}: nothing to judge by."
    return f"{name}: median error {100 * summary.median:.1f} %, worst {100 * summary.worst:.1f} %, {summary.n} points."


def verdict_markdown(verdicts: Sequence[SpeedRatio]) -> str:
    """One record against another, one row per point, counts below."""
    lines = ["| point | verdict | speed ratio | 95 % interval |", "|---|---|--:|--:|"]
    lines += [
        f"| {cell(v.before.label)} | {v.verdict} | {v.ratio:.3f} | {v.low:.3f} to {v.high:.3f} |" for v in verdicts
    ]
    counts = ", ".join(
        f"{sum(v.verdict == name for v in verdicts)} {name}" for name in ("same", "faster", "slower", "undecided")
    )
    return "\n".join([*lines, "", f"{len(verdicts)} points: {counts}."]) + "\n"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f} %"
