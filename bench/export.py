"""Records as CSV and as a Markdown table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from moegauge.bench.compare import Comparison, Summary
from moegauge.bench.verdict import Verdict
from moegauge.record import Case, Record

# Columns of the CSV: name -> how it is read off a case.
_COLUMNS = (
    *("kind", "backend", "model", "kernel", "format", "batch", "context", "kv_format", "routing", "rung", "threads"),
    *("layers", "kernels_per_step", "distinct_experts", "median_ms", "mad_ms", "tokens_per_s", "gb_per_s"),
    *("roof_fraction", "max_relative_error"),
)
_BEFORE = ("created", "machine", "commit", "roof_gb_per_s")
_AFTER = ("weights", "scales", "kv", "bytes", "low_ms", "high_ms", "samples")


def csv_text(record: Record) -> str:
    """One row per point, machine and roof repeated on each, so that files can be concatenated."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "created",
            "machine",
            "commit",
            "roof_gb_per_s",
            *_COLUMNS,
            "weights",
            "scales",
            "kv",
            "bytes",
            "low_ms",
            "high_ms",
            "samples",
        ]
    )
    for case in record.cases:
        low, high = case.interval_ms or ("", "")
        writer.writerow(
            [
                record.created,
                record.machine_id,
                record.project.commit or "",
                record.roof.gb_per_s if record.roof else "",
                *("" if (value := getattr(case, name)) is None else value for name in _COLUMNS),
                case.bytes.weights,
                case.bytes.scales,
                case.bytes.kv,
                case.bytes.total,
                low,
                high,
                len(case.samples_ms),
            ]
        )
    return out.getvalue()


def markdown(record: Record) -> str:
    """The points as a Markdown table, the machine and roof in one line above it."""
    roof = f", read roof {record.roof.gb_per_s:.2f} GB/s" if record.roof else ""
    lines = [f"Machine `{record.machine_id}`{roof}.", ""]
    lines.append("| model | format | batch | context | GB per step | ms | tokens/s | GB/s | of roof |")
    lines.append("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    lines += [_row(case) for case in record.cases]
    return "\n".join(lines) + "\n"


def _row(case: Case) -> str:
    cells = (
        escape(", ".join([_subject(case), *([case.backend] if case.peer else [])])),
        escape(case.format),
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


def escape(text: str) -> str:
    """Text as one Markdown table cell."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")


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
            escape(p.case.model),
            escape(p.case.format),
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
    lines += ["", f"Machine `{escape(record.machine_id)}`, {roof}measured {record.created[:10]}."]
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


def verdict_markdown(verdicts: Sequence[Verdict]) -> str:
    """One record against another, one row per point, counts below."""
    lines = ["| point | verdict | speed ratio | 95 % interval |", "|---|---|--:|--:|"]
    lines += [
        f"| {escape(v.before.label)} | {v.verdict} | {v.ratio:.3f} | {v.low:.3f} to {v.high:.3f} |" for v in verdicts
    ]
    counts = ", ".join(
        f"{sum(v.verdict == name for v in verdicts)} {name}" for name in ("same", "faster", "slower", "undecided")
    )
    return "\n".join([*lines, "", f"{len(verdicts)} points: {counts}."]) + "\n"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f} %"
