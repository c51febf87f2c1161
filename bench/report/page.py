"""The HTML page of `moegauge report`: self-contained, no script, every string escaped.

What is measured stands beside what was predicted; what the page cannot say (one model only, no batches) it leaves out
or says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from moegauge.bench.clock import statistics
from moegauge.bench.judge.compare import Compared, Comparison, Summary, compare
from moegauge.bench.judge.launch_modes import HEADINGS, table_rows
from moegauge.bench.report import curves, figures
from moegauge.bench.report.elements import document, table
from moegauge.bench.report.tables import IN_CACHE, in_cache_cells, profile_cells
from moegauge.record import Case, Record, pool
from moegauge.units import human_bytes

# An error larger than this is set in another colour: the law's own goal is 5 % at worst.
LARGE_ERROR = 0.05
MOST_LISTED = 500  # warnings, and points not measured, of one record
_WHAT = (
    "moegauge measures decode steps that read a model’s true bytes, layer by layer in true order, from random weights "
    "held in an arena. It times memory traffic; it is not inference, and the output is no text."
)


def page(records: Sequence[Record], names: Sequence[str]) -> str:
    """The whole page.

    Args:
        records: of one machine.
        names: their file names, for messages and the list of sources.

    Raises:
        RecordError: unlike machines.
    """
    cases = pool(list(records), list(names)) if any(r.cases for r in records) else []
    found = compare(cases) if any(case.kind == "decode" for _, case in cases) else None
    machine = title_of(records[0])
    body = [
        f"<h1>Decode speed on {escape(machine)}</h1>",
        f'<p class="soft">{escape(_when(records))}. {_WHAT}</p>',
        _tiles(records, found),
        *(_decode(found) if found else []),
        _kernels([case for _, case in cases if case.kind == "kernel"]),
        _profiles([case for _, case in cases if case.profile]),
        figures.roof(records),
        _sweep(records[-1]),
        _floors(records[-1]),
        _in_cache(records[-1]),
        _machine(records),
        _commands(records, names),
    ]
    return document(f"Decode speed on {machine}", body)


def title_of(record: Record) -> str:
    """The machine in a few words."""
    gpu, cpu = record.machine.get("gpu"), record.machine.get("cpu")
    if record.machine.get("device") == "cuda" and isinstance(gpu, dict):
        return str(gpu.get("name", record.machine_id))
    if isinstance(cpu, dict) and cpu.get("model"):
        arch = f" ({cpu['microarchitecture']})" if cpu.get("microarchitecture") else ""
        return f"{cpu['model']}{arch}, {cpu.get('cores', '?')} cores"
    return record.machine_id


def _when(records: Sequence[Record]) -> str:
    days = sorted({record.created[:10] for record in records})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    commits = sorted({(record.project.commit or "")[:10] for record in records} - {""})
    changed = ", with local changes" if any(record.project.dirty for record in records) else ""
    return f"Measured {span}" + (f" at commit {', '.join(commits)}{changed}" if commits else "")


def _tiles(records: Sequence[Record], found: Comparison | None) -> str:
    tiles = []
    roof = records[-1].roof
    if roof:
        sheet = f", datasheet {roof.datasheet_gb_per_s:g}" if roof.datasheet_gb_per_s else ""
        tiles.append((f"{roof.gb_per_s:.2f} GB/s", f"read roof ({roof.pattern}{sheet})"))
    if found:
        law = found.law
        shares = [p.case.roof_fraction for p in found.points if p.case.batch == 1 and p.case.context == 0]
        if shares:  # the law's own fraction is no speed where multiplying hides behind streaming
            tiles.append((f"{100 * statistics.median(shares):.1f} %", "of the roof, median of steps of one stream"))
        layers = max(1, sum(p.observation.layers for p in found.points))
        kernels = sum(p.observation.kernels for p in found.points) / layers
        floor = law.floor_per_layer_s + kernels * law.floor_per_kernel_s
        tiles.append((f"{1e6 * floor:.3g} µs", f"fixed per layer of {kernels:.1f} kernels"))
        for summary, text in ((found.by_model, "the law"), (found.simple, "the one-term formula")):
            if summary.median is not None and summary.worst is not None:
                tiles.append(
                    (f"{100 * summary.median:.1f} %", f"median error of {text}, worst {100 * summary.worst:.1f} %")
                )
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(text)}</span></li>" for value, text in tiles)
    return f'<ul class="figures">{items}</ul>' if items else ""


def _decode(found: Comparison) -> Iterable[str]:
    yield "<h2>Tokens per second against bytes per token</h2>"
    yield figures.speed(found)
    yield "<h2>Share of the roof</h2>"
    yield figures.share(found)
    yield "<h2>Measured and predicted</h2>"
    yield (
        "<p>Each prediction is made by a law fitted to the <em>other</em> models only, at the roof measured beside the "
        "point. The one-term formula, tokens/s = bandwidth / active bytes, is calibrated the published way and also "
        "never sees the model it predicts.</p>"
    )
    yield from (f"<p>{escape(note.capitalize())}.</p>" for note in found.notes)
    yield from _points_tables(found)
    yield figures.residuals(found)
    yield _summary_table(found)
    yield _launch_modes_table(found)
    yield curves.batches(found)
    yield curves.contexts(found)


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{'!' if abs(value) > LARGE_ERROR else ''}{100 * value:+.1f} %".replace("-", "−")


def _points_tables(found: Comparison) -> Iterable[str]:
    """One table of single streams without context, one of everything else."""
    plain = [p for p in found.points if p.case.batch == 1 and p.case.context == 0]
    others = [p for p in found.points if p.case.batch != 1 or p.case.context]
    if plain:
        yield _points_table("One stream, no context", plain, False)
    if others:
        yield _points_table("Batches and contexts", others, True)


def _points_table(caption: str, points: Sequence[Compared], wide: bool) -> str:
    rows = []
    for p in points:
        interval = p.interval_tokens_per_s
        rows.append(
            (
                p.case.model,
                p.case.format,
                *((str(p.case.batch), f"{p.case.context:,}") if wide else ()),
                human_bytes(p.case.bytes.total),
                f"{p.case.tokens_per_s:.4g}",
                "–" if p.predicted_tokens_per_s is None else f"{p.predicted_tokens_per_s:.4g}",
                _percent(p.error),
                _percent(p.simple_error),
                f"{100 * p.case.roof_fraction:.1f} %",
                str(p.case.kernels_per_step),
                "–" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}",
                f"{p.case.max_relative_error:.0e}",
            )
        )
    headings = (
        *("model", "format", *(("batch", "context") if wide else ()), "bytes/step", "tok/s", "predicted", "error"),
        *("one-term", "of the roof", "kernels", "80 % interval", "numerical"),
    )
    return table(caption, headings, rows, 2)


def _summary_table(found: Comparison) -> str:
    rows = []
    for name, (law, simple) in found.by_question().items():
        rows += [_summary_row(f"law, model left out: {name}", law)]
        rows += [_summary_row(f"one-term formula, model left out: {name}", simple)]
    rows.append(_summary_row("law, weight format left out", found.by_format))
    rows.append(_summary_row("law, small models predict large ones", found.small_to_large))
    shown = [row for row in rows if row]
    if not shown:
        return ""
    return table("Absolute errors by what was left out", ("predicted by", "points", "median", "worst"), shown)


def _summary_row(name: str, summary: Summary) -> tuple[str, ...]:
    if summary.median is None or summary.worst is None:
        return ()
    worst = f"{'!' if summary.worst > LARGE_ERROR else ''}{100 * summary.worst:.1f} %"
    return name, str(summary.n), f"{100 * summary.median:.1f} %", worst


def _launch_modes_table(found: Comparison) -> str:
    rows = table_rows(found.ladder)
    if not rows:
        return ""
    return "<h2>Launch modes</h2>" + table("The same step in different launch modes", HEADINGS, rows, 2)


def _kernels(cases: Sequence[Case]) -> str:
    if not cases:
        return ""
    rows = [
        (
            c.kernel or "",
            c.model,
            c.format,
            str(c.batch),
            human_bytes(c.bytes.total),
            f"{c.median_ms:.4g}",
            f"{c.gb_per_s:.2f}",
            f"{100 * c.roof_fraction:.1f} %",
        )
        for c in cases
    ]
    headings = ("kernel", "model", "format", "batch", "bytes/step", "ms/step", "GB/s", "of the roof")
    return "<h2>Kernels alone</h2>" + table("Each kind of kernel, all layers of it", headings, rows, 3)


def _profiles(cases: Sequence[Case]) -> str:
    if not cases:
        return ""
    headings = (
        *("kernel", "programs", "KB per program", "most waves", "worst tail", "registers", "instr./weight"),
        *("issue slots", "GB/s", "of the roof"),
    )
    text = (
        "<p>Waves: programs over those that fit the device at once. Tail: empty places of the last wave, if programs "
        "last alike. Issue slots: instructions of the weight loops over those the device can issue in the measured "
        "time.</p>"
    )
    return (
        "<h2>What is left</h2>"
        + text
        + table("Kernels by grid, registers and instructions", headings, [profile_cells(case) for case in cases], 1)
    )


def _sweep(record: Record) -> str:
    if not record.roof or not record.roof.sweep:
        return ""
    rows = [
        (str(p.width), str(p.unroll), str(p.programs), str(p.warps), f"{p.gb_per_s:.1f}")
        for p in sorted(record.roof.sweep, key=lambda p: -p.gb_per_s)
    ]
    headings = ("bytes per load", "loads in flight", "programs per multiprocessor", "warps per program", "GB/s")
    swept = table("The read roof by access pattern", headings, rows, 0)
    return f"<details><summary>{len(rows)} access patterns of the roof</summary>{swept}</details>"


def _floors(record: Record) -> str:
    if not record.floors:
        return ""
    rows = [
        (f.name, f"{f.us_per_kernel:.3f}", f"{f.interval_us[0]:.3f} to {f.interval_us[1]:.3f}") for f in record.floors
    ]
    return "<h2>An empty kernel</h2>" + table(
        "Cost of one boundary by how it is crossed", ("boundary", "µs", "95 % interval"), rows, 1
    )


def _in_cache(record: Record) -> str:
    rows = in_cache_cells(record)
    if not rows:
        return ""
    return "<h2>Products in cache</h2>" + table("What arithmetic costs where memory costs nothing", IN_CACHE, rows, 2)


def _machine(records: Sequence[Record]) -> str:
    record = records[-1]
    m = record.machine
    cpu = m["cpu"] if isinstance(m.get("cpu"), dict) else {}
    gpu = m["gpu"] if isinstance(m.get("gpu"), dict) else {}
    rows = [
        ("id", record.machine_id),
        ("processor", f"{cpu.get('model', '?')} {cpu.get('microarchitecture') or ''}, {cpu.get('cores', '?')} cores"),
        ("vector extensions", " ".join(cpu.get("features", []))),
        ("last-level cache", human_bytes(m["last_level_cache_bytes"]) if m.get("last_level_cache_bytes") else ""),
        ("memory", human_bytes(m["memory_bytes"]) if m.get("memory_bytes") else ""),
        *(
            (f"GPU {k.replace('_', ' ')}", str(v))
            for k, v in gpu.items()
            if v is not None and m.get("device") == "cuda"
        ),
        *_telemetry(records),
        ("system", str(m.get("os", ""))),
        *((name, str(version)) for name, version in record.software.items() if version),
    ]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows if value)
    return f"<h2>Machine and software</h2><dl>{items}</dl>"


def _telemetry(records: Sequence[Record]) -> Iterable[tuple[str, str]]:
    """Ranges of clocks, power and temperature while sampling, over all points that recorded them."""
    seen: dict[str, list[float]] = {}
    reasons: set[str] = set()
    for record in records:
        for case in record.cases:
            for key, value in (case.telemetry or {}).items():
                if key == "reasons":
                    reasons.update(map(str, value))
                else:
                    seen.setdefault(key, []).extend(v for v in value if not isinstance(v, str))
    for key, values in seen.items():
        if not values:
            continue
        yield f"{key.replace('_', ' ')} while sampling", f"{min(values):g} to {max(values):g}"
    if reasons:
        yield "reasons for lower clocks", ", ".join(sorted(reasons))


def _commands(records: Sequence[Record], names: Sequence[str]) -> str:
    parts = ["<h2>Records and commands</h2>"]
    for record, name in zip(records, names, strict=True):
        state = "" if record.complete else ", stopped before its last point"
        parts.append(
            f"<p>{escape(name)}: {len(record.cases)} points, {escape(record.created)}{state}.</p>"
            f"<pre>{escape(' '.join(record.argv) or 'no command recorded')}</pre>"
        )
        parts.append(_folded([str(one) for one in record.left_out], "not measured"))
        parts.append(_folded([f"{case.label}: {text}" for case in record.cases for text in case.warnings], "warnings"))
    return "".join(parts)


def _folded(lines: Sequence[str], what: str) -> str:
    """A list to unfold, of its first entries where there are many."""
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[:MOST_LISTED])
    more = f"<li>and {len(lines) - MOST_LISTED:,} more in the record</li>" if len(lines) > MOST_LISTED else ""
    return f"<details><summary>{len(lines)} {what}</summary><ul>{items}{more}</ul></details>"
